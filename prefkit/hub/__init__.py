"""Data in and out of a run: importers, exporters, cards, and push to the Hub."""
