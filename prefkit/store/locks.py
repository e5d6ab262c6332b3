"""One writer per stage and table, between processes; a kill frees a lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefkit.errors import StoreError
from prefkit.store.litter import sweep


@contextmanager
def lock(folder: Path, what: str, seconds: float = 0) -> Iterator[None]:
    """Hold the lock of `what` (such as scores/NAME) of a run. Raises StoreError where another process keeps it.

    What killed processes left half written anywhere in the run is removed first.
    """
    from filelock import FileLock, Timeout

    path = folder / ".locks" / f"{what.replace('/', '-')}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=seconds):
            sweep(folder)
            yield
    except Timeout:
        raise StoreError(
            f"another process is working on {what} in {folder}. Wait for it or end it, then run this again: "
            "nothing is lost."
        ) from None
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}.") from error
