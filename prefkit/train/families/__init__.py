"""Families: plug-ins that load trainable models, encode their inputs and run them. The file name is the name."""
