"""Objectives: losses for groups of images or for denoising steps. Each is in a file of its name."""
