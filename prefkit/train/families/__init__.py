"""Kinds of model that can be trained: one file each, found by its name."""
