"""Find out how a pipeline connects its denoiser, scheduler and VAE (its "wiring") by recording a short run."""
