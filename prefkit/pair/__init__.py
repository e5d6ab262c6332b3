"""Turns scores into (winner, loser) pairs and writes these as a Hugging Face dataset."""
