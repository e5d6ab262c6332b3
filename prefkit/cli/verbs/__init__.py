"""Verbs that are no stage, a file each. Imported when they are called."""
