"""What comes in and what goes out: importers, exporters, cards, push."""
