"""How a pipeline calls its denoiser and what the denoiser predicts: recorded from a short run and proven."""
