"""Families of trainable models: one file each, found by its name."""
