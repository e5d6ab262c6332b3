"""The run folder."""

from prefkit.store.run import Store as Store
