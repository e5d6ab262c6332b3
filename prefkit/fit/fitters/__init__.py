"""Fitters, one file each: `plugin` is a class with Options and `run() -> dict`."""
