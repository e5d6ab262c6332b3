"""Scores in, (win, lose) pairs out, as a Hugging Face dataset."""
