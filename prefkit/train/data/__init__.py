"""Training data: pairs, groups, batches, and the caches of latents, prompts and reference errors."""
