"""The generate stage: make candidates (images) for requests (prompts)."""
