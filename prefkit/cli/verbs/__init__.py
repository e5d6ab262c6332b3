"""The verbs that are not stages, one file each, imported on use."""
