"""The pairing strategies: one file each, found by its name."""
