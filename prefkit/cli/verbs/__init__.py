"""The verbs that are not stages, one file each. A file is imported when its verb is used."""
