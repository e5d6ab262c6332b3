"""Requests from .txt, .csv, .jsonl, .parquet or a datasets id."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit import tiny
from prefkit.config import Requests
from prefkit.errors import UsageError
from prefkit.generate.inputs import Taken
from prefkit.output import note, warn
from prefkit.store import Store
from prefkit.store.files import NAME
from prefkit.store.rows import dump_extra
from prefkit.types import Request, digest, split_of

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")


def read_requests(
    config: Requests, inputs: Mapping[str, str] | None = None, store: Store | None = None
) -> list[Request]:
    """The requests of a source, each once. Raises UsageError: no such file, no such column, nothing in it.

    A request without an id of its own (column `request_id`) is named by the hash of its prompt and extra, so
    that the same request has the same id in every run. inputs: `model.inputs`; images that these fields name are put
    into the store's inputs/ table, and the fields hold their ids.
    """
    if not config.source:
        raise UsageError("requests.source is not set: give a .txt, .csv, .jsonl or .parquet file, or a datasets id.")
    if not 0 <= config.test_share <= 1:
        raise UsageError(f"requests.test_share is {config.test_share}: a share lies between 0 and 1.")
    found: dict[str, Request] = {}
    taken = Taken(inputs or {}, Path(config.source).expanduser().parent, store)
    blank = duplicates = 0
    for row in _rows(config):
        prompt = row.pop(config.prompt_column)
        if _missing(prompt) or (isinstance(prompt, str) and not prompt.strip()):
            blank += 1
            continue
        _check_prompt(prompt, config.source)
        split = _split(row, prompt, config)
        extra = taken.take({k: v for k, v in row.items() if not _missing(v)})
        named = extra.pop("request_id", None)
        request_id = str(named) if named is not None else digest(prompt, extra)
        if request_id in found:
            duplicates += 1
            if (found[request_id].prompt, found[request_id].extra) != (prompt, extra):
                raise UsageError(f"{config.source}: request_id {request_id!r} stands for two different requests.")
            continue
        found[request_id] = Request(request_id, prompt, str(split), extra)
    taken.write()
    if blank:
        warn(f"{config.source}: {blank} empty prompt{'s' * (blank > 1)} left out.")
    if duplicates:
        note(f"{config.source}: {duplicates} duplicate request{'s' * (duplicates > 1)} left out.")
    if not found:
        raise UsageError(f"{config.source} holds no prompt. Write at least one, a line each in a .txt file.")
    return list(found.values())


def keep_known(known: Sequence[Request], wanted: Sequence[Request], where: str | Path) -> list[Request]:
    """`wanted`, where those that are known keep their split: one that was trained on never becomes held out.

    where: the run, for the message. Raises UsageError where a known id has another prompt or extra now: its images and
    scores answer the old one.
    """
    there = {r.request_id: r for r in known}
    for new in wanted:
        old = there.get(new.request_id, new)
        changed = [
            key for key, a, b in (("prompt", old.prompt, new.prompt), ("extra", *map(_stored, (old, new)))) if a != b
        ]
        if changed:
            raise UsageError(
                f"the request {new.request_id!r} of {where} has another {' and another '.join(changed)} now "
                f"({_brief(old)} there, {_brief(new)} asked for), and what was made for it answers the old one. Give the "
                "changed request a request_id of its own, put it back as it was, or give the run (or the evaluation) another "
                "name."
            )
    moved = sum(there.get(r.request_id, r).split != r.split for r in wanted)
    if moved:
        note(
            f"{moved} request{'s keep their' if moved > 1 else ' keeps its'} split in {where}, though the recipe would now "
            "give another: a request that may have been trained on must not become held out. To split anew, use a new run "
            "folder."
        )
    return [replace(r, split=there.get(r.request_id, r).split) for r in wanted]


def _stored(request: Request) -> str:
    """The extra as it comes back from the disk."""
    return dump_extra(json.loads(dump_extra(request.extra)))


def _brief(request: Request) -> str:
    text = f"{request.prompt!r} {_stored(request) if request.extra else ''}".strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _check_prompt(prompt: Any, source: str) -> None:
    if not isinstance(prompt, str):
        raise UsageError(f"{source}: the prompt {prompt!r} is a {type(prompt).__name__}. Write it as text, in quotes.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{source}: the prompt {prompt[:60]!r} holds half of a character (a lone surrogate) and cannot be stored. "
            "Mend or remove it."
        ) from error


def _split(row: dict[str, Any], prompt: str, config: Requests) -> str:
    """The request's own split, where the column says one; else by the hash of the prompt."""
    column = "split" if config.source.partition(":")[0] == tiny.NAME else config.split_column
    own = row.pop(column) if column else None
    if _missing(own):
        return split_of(prompt, config.test_share)
    if not NAME.fullmatch(str(own)):
        raise UsageError(
            f"{config.source}: {str(own)!r} cannot name a split: use letters, digits, dot, dash and underscore."
        )
    return str(own)


def _rows(config: Requests) -> Iterator[dict[str, Any]]:
    embedded, _, kind = config.source.partition(":")
    if embedded == tiny.NAME:
        from prefkit.tiny.source import rows as wardrobe

        yield from wardrobe(kind)
        return
    path = Path(config.source).expanduser()
    if path.suffix not in SUFFIXES and not path.exists():
        yield from _hub_rows(config)
        return
    if not path.is_file():
        raise UsageError(f"requests.source: {config.source} is not there.")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"requests.source: {config.source} is none of {', '.join(SUFFIXES)}.")
    if path.suffix == ".txt":
        lines = _text(path).splitlines()
        yield from ({config.prompt_column: line.strip()} for line in lines if line.strip())
        return
    rows = _json_lines(path) if path.suffix == ".jsonl" else _frame_rows(path, config)
    for number, row in enumerate(rows, 1):
        _check_columns(row, config, f"{path} (row {number})")
        yield dict(row)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not valid JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(f'{path}:{number}: wants an object such as {{"prompt": "..."}}.')
        yield row


def _csv(path: Path, config: Requests) -> Any:
    """Prompts, ids and splits stay text: 007 is not 7."""
    import pandas as pd

    names = [name for name in (config.prompt_column, config.split_column, "request_id") if name]
    return pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(names, str))


def _frame_rows(path: Path, config: Requests) -> Iterator[dict[str, Any]]:
    import pandas as pd

    try:
        frame = _csv(path, config) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} could not be read: {' '.join(str(error).split())[:200].rstrip('.')}.") from error
    yield from frame.to_dict("records")  # type: ignore[misc]


def _hub_rows(config: Requests) -> Iterator[dict[str, Any]]:
    import datasets

    name, _, split = config.source.partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises its own, the Hub's and the network's errors
        raise UsageError(
            f"requests.source: {config.source} is neither a file here nor a dataset that could be loaded: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    for row in table:
        _check_columns(row, config, config.source)
        yield dict(row)


def _check_columns(row: Any, config: Requests, where: str) -> None:
    for key, column in (("prompt_column", config.prompt_column), ("split_column", config.split_column)):
        if column is not None and column not in row:
            raise UsageError(f"{where}: no column {column!r}; it has {', '.join(map(str, row))}. Set requests.{key}.")


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
