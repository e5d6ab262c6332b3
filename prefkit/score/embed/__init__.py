"""Networks that scorers look through: encoders, their weights, and the heads trained on embeddings."""
