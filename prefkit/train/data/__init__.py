"""What a training reads: pairs, their groups and batches, and the caches of what is computed once."""
