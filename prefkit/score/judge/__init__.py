"""Multimodal language models as judges: two back ends (here, or an OpenAI-compatible server) and what is asked of them."""
