"""Scorer plug-ins, one file each, found by file name."""
