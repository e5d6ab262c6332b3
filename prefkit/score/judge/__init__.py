"""Multimodal language models as judges, loaded locally or behind an OpenAI-compatible server."""
