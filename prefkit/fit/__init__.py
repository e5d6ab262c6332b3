"""Training of scorers on a user's data. Each fit writes a folder with measurements, which the scorer loads by path."""
