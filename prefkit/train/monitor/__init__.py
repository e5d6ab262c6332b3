"""Monitoring of a training: metrics, held-out pairs, preflight, sample evaluation and early stopping."""
