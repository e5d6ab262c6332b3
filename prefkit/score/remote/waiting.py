"""A note to the user when something takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefkit import output

SLOW = 10.0  # seconds until the note is printed


@contextmanager
def note_if_slow(text: str) -> Iterator[None]:
    """Print the note `text` if the block takes longer than SLOW."""
    timer = threading.Timer(SLOW, output.note, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
