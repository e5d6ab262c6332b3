"""The score stage: candidates to one table of numbers per score."""
