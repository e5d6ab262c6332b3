"""One file per strategy, found by its name."""
