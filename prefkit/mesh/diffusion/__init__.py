"""Conditional diffusion over pose and shape: network, condition, state, sampling, and the generator `mesh`."""
