"""LoRA adapters: add them to a denoiser, read them completely or refuse them, and write them for other programs."""
