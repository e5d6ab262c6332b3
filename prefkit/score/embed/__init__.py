"""Networks of scorers: encoders, their weights, and heads trained on embeddings."""
