"""Families: plug-ins that load trainable models, encode their inputs and run them. One file each, found by its name."""
