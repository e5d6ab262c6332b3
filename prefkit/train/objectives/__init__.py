"""Objectives: losses for groups of images or for denoising steps. The file name is the objective's name."""
