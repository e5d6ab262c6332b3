"""Load pipelines and weights from disk or the Hub: folders, single files, revisions, trained models."""
