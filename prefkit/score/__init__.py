"""Candidates in, one table of numbers per scorer out."""
