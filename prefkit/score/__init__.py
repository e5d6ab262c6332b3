"""The score stage: computes one table of values per score from the candidates."""
