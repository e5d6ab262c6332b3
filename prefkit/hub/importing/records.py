"""Records that importers yield; prefkit/hub/importers/__init__.py describes the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prefkit.types import Comparison, Score


@dataclass(frozen=True)
class Asked:
    """The request for which an item's images were made.

    split: None to choose it by a hash of the prompt. request_id: None to use a hash of prompt and extra.
    """

    prompt: str
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None


@dataclass(frozen=True)
class Picture:
    """One candidate of an item: an image (encoded bytes or a file's path), or a payload with or without an image.

    key: the picture's name in the item's comparisons and scores. seed: None if unknown. Stored with the candidate:
    extra (such as the model's name) and payload (such as a mesh, see prefkit/mesh/payload.py).
    """

    key: str
    data: bytes | None = None
    path: Path | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes | None = None


@dataclass(frozen=True)
class Item:
    """One row of a source.

    where: file and row, for messages. comparisons: id_a and id_b are keys of this item's pictures, or ids of candidates
    in the run. scores: (key of a picture, name of the rating, score). error: the reason why the row cannot be used.
    """

    where: str
    asked: Asked | None = None
    pictures: Sequence[Picture] = ()
    comparisons: Sequence[Comparison] = ()
    scores: Sequence[tuple[str, str, Score]] = ()
    error: str | None = None


class Workplace(Protocol):
    """Services that the import core offers to an importer."""

    def leave_out(self, kind: str, count: int) -> None:
        """Count skipped files. kind: their suffix, or the reason. The counts are printed after the last file."""
        ...

    def unpacked(self, archives: Sequence[Path]) -> Path:
        """Unpack an archive (zip, tar, tar.gz), or the parts of a split one in order; return the folder of its content.

        Each archive is unpacked only once; the folder is removed after the import. Raises UsageError naming archive
        and member.
        """
        ...
