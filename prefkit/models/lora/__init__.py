"""LoRA adapters: add them to a denoiser, check that files are read completely, and export for other programs."""
