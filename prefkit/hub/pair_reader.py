"""Reads the pairs to export from RUN/pairs/NAME, or from any folder of Parquet files with Pick-a-Pic's columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefkit.config.reader import use_background
from prefkit.errors import UsageError
from prefkit.hub.edit_inputs import EditInputs
from prefkit.hub.importing.readers import of_further_config, split_of_name
from prefkit.hub.importing.walk import describe_skipped, files_under, kind_of
from prefkit.images import shown
from prefkit.output import warn
from prefkit.store import Store
from prefkit.store.parquet import read_rows
from prefkit.store.reader import CandidateReader, run_of

NEEDS = ("label_0", "caption")


@dataclass(frozen=True)
class PairOut:
    """A pair to export, with its encoded images converted so that every decoder returns the pixels that scorers saw.

    side: the index of the winner, 0 or 1. columns: the values of the pair's row, without the images.
    """

    number: int
    split: str
    caption: str
    win: bytes
    lose: bytes
    side: int
    columns: Mapping[str, Any]

    def of(self, name: str, winner: bool) -> Any:
        """Return the winner's or the loser's value of a pair of columns: of("model", True) reads model_0 or model_1."""
        return self.columns.get(f"{name}_{self.side if winner else 1 - self.side}")

    def uid(self, winner: bool) -> str:
        return str(self.columns.get(f"image_{self.side if winner else 1 - self.side}_uid"))

    @property
    def p(self) -> float:
        p = self.columns.get("p")
        return 1.0 if p is None else float(p)

    @property
    def images(self) -> tuple[bytes, bytes]:
        """Both images in stored order, (image 0, image 1), regardless of which one won."""
        return (self.lose, self.win) if self.side else (self.win, self.lose)


class Pairs:
    """The pairs under a folder; `rows()` may be called repeatedly.

    ties: the files of ties, which are not pairs. soft, edits: how many of the pairs that the last `rows()` yielded have
    a probability below 1, and input images.
    """

    def __init__(self, where: str) -> None:
        self.folder = find(where)
        self.run = run_of(self.folder)
        if self.run is not None:
            use_background(self.run.folder)
        self.files: list[tuple[str, Path]] = []
        self.ties: list[Path] = []
        self.soft = self.edits = 0
        skipped: Counter[str] = Counter()
        for path in files_under(self.folder, lambda kind, count: skipped.update({kind: count})):
            name = path.relative_to(self.folder)
            if path.suffix.lower() != ".parquet":
                skipped[kind_of(path)] += 1
            elif of_further_config(path, self.folder):
                self.ties += [path] if name.parts[0] == "ties" else []
            else:
                split = name.parts[0] if len(name.parts) > 1 and name.parts[0] != "data" else None
                self.files.append((split or split_of_name(name.as_posix()) or "train", path))
        if skipped and self.run is None:
            warn(f"{self.folder}: {describe_skipped(skipped)}")
        if not self.files:
            raise UsageError(
                f"export: {self.folder} has no Parquet file, so it has no pairs. This layout needs pairs: give RUN or "
                "RUN/NAME (`prefkit pair` makes them). A training, RUN/train/NAME, is exported with --as diffusers, kohya "
                "or comfyui."
            )

    def count_ties(self) -> int:
        """Return the number of ties. A damaged file counts as 0, because an export does not need it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = 0
        for path in self.ties:
            with suppress(pa.ArrowException, OSError):
                count += pq.read_metadata(path).num_rows
        return count

    @cached_property
    def reader(self) -> CandidateReader | None:
        return CandidateReader(self.run) if self.run is not None else None

    def _candidate_image(self, cid: str) -> bytes | None:
        return self.reader.image(cid) if self.reader is not None else None

    @cached_property
    def edited(self) -> EditInputs:
        return EditInputs(self.run)

    def state(self) -> list[list[Any]]:
        """Return path, size and modification time of every file, to detect changes."""
        stats = [(path, path.stat()) for _, path in self.files]
        return [[p.relative_to(self.folder).as_posix(), s.st_size, s.st_mtime_ns] for p, s in stats]

    def rows(self) -> Iterator[PairOut]:
        """Stream the pairs. Raises UsageError naming file and row if a column, an image or the winner is missing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = self.soft = self.edits = 0
        for split, path in self.files:
            row = 0
            try:
                absent = [name for name in NEEDS if name not in pq.read_schema(path).names]
                if absent:
                    raise UsageError(f"export: {path} lacks column {', '.join(absent)}; pairs need {', '.join(NEEDS)}.")
                for values in read_rows(path):
                    row += 1
                    pair = self._pair(f"{path} row {row}", number, split, values)
                    self.soft += pair.p < 1
                    self.edits += bool(self.edited.ids(pair.columns))
                    yield pair
                    number += 1
            except (pa.ArrowException, OSError) as error:
                text = " ".join(str(error).split())[:160]
                raise UsageError(
                    f"export: {path} row {row + 1} cannot be read ({text}). Make these pairs again."
                ) from error

    def _pair(self, where: str, number: int, split: str, values: dict[str, Any]) -> PairOut:
        images = []
        for i in (0, 1):
            image = pair_image(values, i, self._candidate_image)
            if image is None:
                raise UsageError(
                    f"export: {where} has no image in jpg_{i}. Remove the row, or add the image (for meshes, generate "
                    "them with render: true in generate.NAME.call)."
                )
            images.append(image)
        label, other = values["label_0"], values.get("label_1")
        if label not in (0, 1) or (other is not None and other != 1 - label):
            raise UsageError(f"export: {where} has labels {label} and {other}; a pair needs 1 and 0. Remove the row.")
        side = 0 if label == 1 else 1
        rest = {k: v for k, v in values.items() if k not in ("jpg_0", "jpg_1")}
        return PairOut(number, split, values["caption"] or "", images[side], images[1 - side], side, rest)


def pair_image(row: Mapping[str, Any], i: int, candidate_image: Callable[[str], bytes | None]) -> bytes | None:
    """Return image i of a pair: jpg_i (bytes, or {bytes, path} as in `datasets`) or, if absent, candidate_i's image."""
    image = row.get(f"jpg_{i}")
    if isinstance(image, dict):
        image = image.get("bytes")
    if image is None and row.get(f"candidate_{i}") is not None:
        image = candidate_image(row[f"candidate_{i}"])
    return shown(image) if isinstance(image, bytes) and image else None


def find(where: str) -> Path:
    """Find the folder of pairs that `where` names: RUN/pairs/NAME, RUN/NAME, or any folder of Parquet files.

    RUN or RUN/pairs is enough if the run has one pair set. Raises UsageError.
    """
    path = Path(where).expanduser()
    if path.name == "pairs" and (path.parent / "run.json").exists():
        path = path.parent
    if (path / "run.json").exists():
        store = Store(path)
        store.check_single()
        names = store.names("pairs")
        if len(names) == 1:
            return path / "pairs" / names[0]
        if not names:
            raise UsageError(f"export: {where} has no pairs yet; `prefkit pair` makes them.")
        raise UsageError(f"export: {where} has the pairs {', '.join(names)}. Choose one: {where}/{names[0]}.")
    if path.is_dir():
        return path
    if (path.parent / "pairs" / path.name).is_dir():
        return path.parent / "pairs" / path.name
    raise UsageError(f"export: found no pairs at {where}. Give RUN, RUN/NAME, or a folder of pairs.")
