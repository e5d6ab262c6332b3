"""Ranking of mesh hypotheses: features, the network of the scorer `mesh`, and the number of threads it runs on."""
