"""A note for the user about a wait that has become long: for what, and for how long at most."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefkit import output

NOTED = 10.0  # seconds of silence before the note


@contextmanager
def noted(text: str) -> Iterator[None]:
    """Print the note `text` if the block takes longer than NOTED."""
    timer = threading.Timer(NOTED, output.note, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
