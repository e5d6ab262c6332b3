"""Tar files of img2dataset and webdataset: KEY.jpg with KEY.txt or KEY.json; pairs as KEY.chosen.jpg and KEY.rejected.jpg."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importers.folders import CAPTIONS, MAX_CAPTION, USUAL
from prefkit.hub.importing.cells import FAULTS, reason
from prefkit.hub.importing.readers import split_of_name
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import files_under, kind_of, leave_rest
from prefkit.paths import image_suffixes, read_regular
from prefkit.types import Comparison

SUFFIX = ".tar"
SEEN = 200  # members that are read to detect the layout
KEYS = ("prompt", "caption", "text")  # of the JSON of a sample, best first


@dataclass(frozen=True)
class WebdatasetOptions:
    #: key of a sample's JSON that holds the prompt, if it has no .txt; unset: prompt, caption or text
    caption: str = ""


@dataclass(frozen=True)
class Webdataset:
    options: WebdatasetOptions
    Options = WebdatasetOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        tars = _tars(source)
        kinds = _kinds(tars[0]) if tars else set()
        fits = kinds & image_suffixes() and kinds & {".txt", ".json", ".caption"}
        return f"{tars[0].name} holds images with captions of the same name" if fits else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        tars = _tars(path)
        if not tars:
            raise UsageError(f"import: {source} holds no {SUFFIX} file. Give a {SUFFIX} file, or a folder of them.")
        for tar in tars:
            split = split_of_name(tar.name if path.is_file() else tar.relative_to(path).as_posix())
            for key, files in _samples(work.unpacked([tar]), work).items():
                where = f"{tar} {key}"
                try:
                    yield self._item(where, files, split, work)
                except FAULTS as error:
                    yield Item(where, error=reason(error))
        leave_rest(path, tars, work)

    def _item(self, where: str, files: dict[str, Path], split: str | None, work: Workplace) -> Item:
        """Return the row of one sample. files: {the name after the key, in lower case: file}."""
        images = {name: path for name, path in files.items() if path.suffix.lower() in image_suffixes()}
        for name, path in files.items():
            if name not in images and path.suffix.lower() not in (*CAPTIONS, ".json"):
                work.leave_out(kind_of(path), 1)
        asked = Asked(self._prompt(files), split)
        sides = {name.partition(".")[0]: path for name, path in images.items() if "." in name.lstrip(".")}
        pair = next((pair for pair in USUAL if sides.keys() >= set(pair)), None)
        if pair is not None:
            pictures = tuple(Picture(key, path=sides[side]) for key, side in zip(("w", "l"), pair))
            return Item(where, asked, pictures, (Comparison("w", "l", "a", "people"),))
        if not images:
            raise ValueError("the sample has no image")
        return Item(where, asked, tuple(Picture(name, path=path) for name, path in images.items()))

    def _prompt(self, files: dict[str, Path]) -> str:
        """Return the caption of a sample. Raises ValueError if it has none."""
        for suffix in CAPTIONS:
            if path := files.get(suffix[1:]):
                return read_regular(path, MAX_CAPTION).decode("utf-8-sig").strip()
        values: Any = json.loads(read_regular(files["json"], MAX_CAPTION)) if "json" in files else {}
        values = values if isinstance(values, dict) else {}
        keys = (self.options.caption,) if self.options.caption else KEYS
        prompt = next((values[key] for key in keys if values.get(key)), None)
        if not isinstance(prompt, str):
            raise ValueError(f"the sample has no caption: neither a .txt nor {' or '.join(keys)} in a .json")
        return prompt.strip()


def _tars(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == SUFFIX else []
    return sorted(path for path in source.rglob(f"*{SUFFIX}") if path.is_file() and not path.name.startswith("."))


def _kinds(tar: Path) -> set[str]:
    """Return the suffixes of a tar's first members, in lower case; empty if it cannot be read."""
    try:
        with tarfile.open(tar, "r|*") as archive:
            return {Path(info.name).suffix.lower() for info, _ in zip(archive, range(SEEN)) if info.isreg()}
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return set()


def _samples(folder: Path, work: Workplace) -> dict[str, dict[str, Path]]:
    """Return {key: {rest of the name: file}}: as in webdataset, a file's key ends at the first dot of its name."""
    samples: dict[str, dict[str, Path]] = {}
    for path in files_under(folder, work.leave_out):
        name, _, rest = path.name.partition(".")
        key = path.relative_to(folder).with_name(name).as_posix()
        samples.setdefault(key, {})[rest.casefold()] = path
    return samples


plugin = Webdataset
