"""Training: turns pairs or rewards into an adapter or new weights."""
