"""Base against tuned models on held-out requests, with controls for cheap explanations of a gain."""
