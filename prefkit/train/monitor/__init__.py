"""Monitoring of a training run: metrics, held-out pairs, preflight, sample evaluation and early stopping."""
