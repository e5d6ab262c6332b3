"""Requests in, candidates out."""
