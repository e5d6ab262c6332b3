"""Evaluation: compares tuned models with the base on held-out requests, and checks for trivial causes of a gain."""
