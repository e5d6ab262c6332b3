"""Fit of the scorer `mesh`: hypotheses with known errors, training of the ranker, and measures of a ranking."""
