"""The import core: reads an importer's records, checks them, and stores them in the tables of a run."""
