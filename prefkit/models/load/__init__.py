"""Load pipelines and weights from folders, single files or the Hub."""
