"""Reinforcement of a generator by rewards: sample with the pipeline, score, learn from it, again."""
