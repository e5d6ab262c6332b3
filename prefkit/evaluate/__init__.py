"""Evaluation: compares tuned models with the base on held-out requests, with controls for cheap ways to a gain."""
