"""Loading of pipelines and weights from disk or the Hub: folders, single files, revisions, results of training."""
