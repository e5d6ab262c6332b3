"""An importer's records into the tables of a run: read, checked, counted, resumable."""
