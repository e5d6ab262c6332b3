"""The pair stage: choose (winner, loser) pairs by scores or votes, and write them as a Hugging Face dataset."""
