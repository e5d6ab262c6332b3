"""Rows of a table, whatever it is kept in: csv, jsonl, json, Parquet, a folder of those, a saved or Hub dataset."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefkit.errors import UsageError
from prefkit.store.parquet import READ_ROWS, read_rows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
#: folders that pair and push write beside the splits
FURTHER = ("ties", "lists", "candidates", "comparisons")
HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
CHUNK = 1 << 20
SPLIT = re.compile(r"(?:^|[/_.-])(train|training|validation|valid|val|dev|test)(_unique)?(?=[_./-]|$)")


class Row(NamedTuple):
    """where: file and row number from 1. split: what the file's or folder's name says. folder: relative paths start here."""

    where: str
    split: str | None
    folder: Path | None
    values: dict[str, Any]


def rows(source: str, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of a file, of the tables under a folder in order of their names, or of a datasets id (name[:split]).

    Raises UsageError naming file and row where one cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if not HUB.fullmatch(source):
            raise UsageError(f"import: {source} is neither a file, a folder, nor a datasets id such as owner/name.")
        yield from _hub(source)
        return
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        yield from _saved(path)
        return
    for file in files(path):
        split = split_of_name(file.relative_to(path).as_posix() if path.is_dir() else file.name)
        number = 0
        for number, values in enumerate(_file(file, columns), 1):
            if not isinstance(values, dict):
                raise UsageError(f"{file} row {number}: wants an object with named values, not {str(values)[:60]!r}.")
            yield Row(f"{file} row {number}", split, file.parent, values)


def files(path: Path) -> list[Path]:
    """The tables in a folder (or the file itself). Raises UsageError where there are none."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if any((path / name).exists() for name in ("spec.json", "prefkit.json")):  # made by pair, or pushed
        found = [p for p in found if p.suffix.lower() == ".parquet" and not of_further_config(p, path)]
    tables = [p for p in found if p.suffix.lower() == ".parquet"] or found
    if not tables:
        raise UsageError(f"import: {path} holds none of {', '.join(SUFFIXES)}.")
    return tables


def of_further_config(file: Path, folder: Path) -> bool:
    """Whether a file of a pair set holds no pairs, but ties/SPLIT, lists/SPLIT and so on."""
    parts = file.relative_to(folder).parts
    return len(parts) > 2 and parts[0] in FURTHER


def split_of_name(name: str) -> str | None:
    """'data/validation_unique-00000-of-00001.parquet' -> 'validation_unique'; None where no split is named."""
    found = SPLIT.search(name)
    return None if found is None else found[1] + (found[2] or "")


def first(path: Path) -> dict[str, Any]:
    """The first row, for sniffing; {} where there is none or it cannot be read."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return dict.fromkeys(pq.read_schema(path).names)
        return next((v for v in _file(path, None) if isinstance(v, dict)), {})
    except Exception:  # sniffing only asks; reading it says what is wrong
        return {}


def _file(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": json_items}
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, columns)
    elif kind in readers:
        yield from readers[kind](path)
    else:
        raise UsageError(f"import: {path} is none of {', '.join(SUFFIXES)}.")


def _parquet(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    done = 0
    try:
        for row in read_rows(path, columns):
            done += 1
            yield row
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{path} row {done + 1} (or one of the {READ_ROWS - 1} after it): cannot be read as Parquet ({text}). Fetch the file again."
        ) from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    line = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for line, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    raise UsageError(f"{path} row {line}: it has another number of fields than the first line.")
                yield row
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} row {line + 1}: cannot be read ({error}). It is UTF-8 text with commas.") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                if line.strip():
                    yield json.loads(line)
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} row {number}: not valid JSON ({error}).") from error


def json_items(path: Path) -> Iterator[Any]:
    """The members of a JSON list, one by one: files of this kind reach gigabytes.

    Raises UsageError with the row for what is no list or no valid JSON.
    """
    decoder, buffer, at, number, ended = json.JSONDecoder(), "", 0, 0, False
    try:
        with open(path, encoding="utf-8-sig") as file:
            buffer = file.read(CHUNK).lstrip()
            if not buffer.startswith("["):
                raise ValueError("it holds no list")
            at = 1
            while True:
                while at < len(buffer) and buffer[at] in " \t\r\n,":
                    at += 1
                if buffer[at : at + 1] == "]":
                    return
                try:
                    value, end = decoder.raw_decode(buffer, at)
                    whole = end < len(buffer) or ended  # a number may go on in the next chunk
                except ValueError:
                    if ended:
                        raise
                    whole = False
                if not whole:
                    more = file.read(max(CHUNK, len(buffer)))
                    ended, buffer, at = not more, buffer[at:] + more, 0
                    if len(buffer) > 64 * CHUNK:
                        raise ValueError("one member is larger than 64 MB")
                    continue
                number, at = number + 1, end
                yield value
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} row {number + 1}: not valid JSON ({error}).") from error


def _saved(path: Path) -> Iterator[Row]:
    import datasets

    found = datasets.load_from_disk(str(path))
    parts = found.items() if isinstance(found, datasets.DatasetDict) else [(split_of_name(path.name), found)]
    for split, table in parts:
        for number, values in enumerate(_raw(table), 1):
            yield Row(f"{path} {split or ''} row {number}".replace("  ", " "), split, path, values)


def _hub(source: str) -> Iterator[Row]:
    import datasets

    name, _, wanted = source.partition(":")
    try:
        splits = [wanted] if wanted else datasets.get_dataset_split_names(name)
        for split in splits:
            table = datasets.load_dataset(name, split=split, streaming=True)
            for number, values in enumerate(_raw(table), 1):
                yield Row(f"{name}:{split} row {number}", split, None, values)
    except UsageError:
        raise
    except Exception as error:  # the library raises its own, the Hub's and the network's errors
        text = " ".join(str(error).split())[:200]
        raise UsageError(f"import: {source} is neither here nor a dataset that could be loaded: {text}") from error


def _raw(table: Any) -> Any:
    """Images as the bytes they came in, not decoded."""
    import datasets

    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def picture_parts(value: Any, folder: Path | None, anywhere: bool = False) -> tuple[bytes | None, Path | None]:
    """(bytes, path) of a cell: bytes, {'bytes', 'path'} as datasets stores images, or the path of a file.

    Relative paths start at the table's folder (None: rows of the Hub, which name no files here). anywhere: the table is
    the user's own and may name any file. Raises ValueError for what is neither, and for web addresses.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), None
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the image is missing")
    if re.match(r"[a-z]+://", value):
        raise ValueError(f"the image is a web address ({value[:80]}); fetch it first, nothing is downloaded here")
    path = Path(value).expanduser() if anywhere else Path(value)
    if folder is None:
        raise ValueError(
            f"the image is a path ({value[:80]}) without its bytes; download the dataset and import the folder"
        )
    if not anywhere and (path.is_absolute() or ".." in path.parts):
        raise ValueError(f"the image {value[:80]!r} leads out of {folder}. Refused")
    return None, folder / path
