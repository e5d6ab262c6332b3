"""Families: plug-ins that load, encode for and run trainable models. One file each, found by its name."""
