"""The wiring between a pipeline, its denoiser and its scheduler: recorded in a short run, and proven."""
