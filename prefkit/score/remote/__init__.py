"""Scorers and judges on other machines or in other processes: HTTP client, stored answers, and the scorer protocol."""
