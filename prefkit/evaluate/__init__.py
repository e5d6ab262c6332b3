"""Base against tuned on held-out requests, with the cheap explanations beside it."""
