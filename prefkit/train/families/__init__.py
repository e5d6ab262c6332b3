"""Families: plug-ins that load trainable models, encode their inputs and run them, each in a file of its name."""
