"""What importers yield: see prefkit/hub/importers/__init__.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prefkit.types import Comparison, Score


@dataclass(frozen=True)
class Asked:
    """The request of an item. split None: decided by the hash of the prompt, as everywhere in prefkit."""

    prompt: str
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """An image of an item, as encoded bytes or as a file that may stay where it is.

    key: what the item's comparisons and scores call it. extra: stored with the candidate (the model's name, and so on).
    seed: None where nobody wrote it down.
    """

    key: str
    data: bytes | None = None
    path: Path | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """One row of a source.

    where: file and row, for messages. comparisons: id_a and id_b are keys of this item's pictures, or ids of candidates
    in the run. scores: (key of a picture, name of the rating, score). error: why the row cannot be used.
    """

    where: str
    asked: Asked | None = None
    pictures: Sequence[Picture] = ()
    comparisons: Sequence[Comparison] = ()
    scores: Sequence[tuple[str, str, Score]] = ()
    error: str | None = None


class Workplace(Protocol):
    """What the core lends to an importer."""

    def leave_out(self, kind: str, count: int) -> None:
        """Count files that are skipped. kind: their suffix, or the reason. The counts are printed after the last file."""
        ...

    def unpacked(self, archives: Sequence[Path]) -> Path:
        """A folder with what the archives (zip, tar, tar.gz; the parts of a split one in order) hold, unpacked once and
        safely. Removed when the import is done. Raises UsageError, naming archive and member."""
        ...
