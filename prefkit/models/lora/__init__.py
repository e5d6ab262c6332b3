"""LoRA adapters: added to a denoiser, read whole or refused, and written as other programs read them."""
