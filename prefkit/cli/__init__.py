"""The command line: verbs, their help, and the dry run."""
