"""The pairing strategies, one per file; the file name is the strategy's name."""
