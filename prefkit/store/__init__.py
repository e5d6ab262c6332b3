"""The run folder on disk: tables, files, locks and checksums."""

from prefkit.store.run import Store as Store
