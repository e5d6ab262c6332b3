"""Training of scorers on a user's data. The result is a folder that the scorer loads by path, with its measurements."""
