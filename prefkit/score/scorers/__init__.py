"""One file per scorer, found by its name."""
