"""Pairs in, an adapter or new weights out."""
