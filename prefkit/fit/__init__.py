"""Training of scorers: data of the user's -> a folder that the scorer loads by path, with its numbers inside."""
