"""Requests from the rows of a source: the prompt, the split, and whatever else a row says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit.config import Requests, bounds
from prefkit.errors import UsageError
from prefkit.generate.inputs import Taken
from prefkit.generate.sources import folder_of, is_lines, rows_of, split_column
from prefkit.output import note, warn
from prefkit.paths import nfc
from prefkit.plugin_guard import described
from prefkit.store import Store
from prefkit.store.files import NAME
from prefkit.store.table import dump_extra
from prefkit.tables import SUFFIXES, id_text
from prefkit.types import Request, digest, split_of


def read_requests(
    config: Requests,
    inputs: Mapping[str, str] | None = None,
    store: Store | None = None,
    every_row: bool = False,
) -> list[Request]:
    """The requests of a source, each once. Raises UsageError: no such file, no such column, nothing in it.

    A request without an id of its own (column `request_id`) is named by the hash of its prompt and extra, so
    that the same request has the same id in every run. inputs: `model.inputs`; images that these fields name are put
    into the store's inputs/ table, and the fields hold their ids. every_row: the caller does not ask for the split.
    """
    if not config.source:
        raise UsageError(f"requests.source is not set: give a file ({', '.join(SUFFIXES)}), or a datasets id.")
    bounds.check(config, "requests")
    found: dict[str, Request] = {}
    counts: Counter[str] = Counter()
    left: Counter[str] = Counter()
    taken = Taken(inputs or {}, folder_of(config), store)
    prompts, splits = nfc(config.prompt_column), split_column(config)
    for where, row, _ in rows_of(config, taken.keys):
        prompt = row.pop(prompts)
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            counts["blank"] += 1
            continue
        _check_prompt(prompt, where)
        if splits is None and row.get("split") is not None:
            counts["split"] += 1
        own = row.pop(splits) if splits else None
        split = split_of(prompt, config.test_share) if own is None else _own_split(own, where)
        extra = _extra(row, taken, where, left)
        named = extra.pop("request_id", None)
        request_id = id_text(named) if named is not None else digest(prompt, extra)
        if request_id in found:
            counts["duplicate"] += 1
            if (found[request_id].prompt, found[request_id].extra) != (prompt, extra):
                raise UsageError(f"{where}: request_id {request_id!r} stands for two different requests.")
            continue
        found[request_id] = Request(request_id, prompt, split, extra)
    taken.write()
    _say(config, counts, left, every_row)
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
        old = there.get(new.request_id)
        if old is None:
            continue
        changed = ["prompt"] * (old.prompt != new.prompt) + ["extra"] * _differ(old.extra, new.extra)
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


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two extras are different ones as they come back from the disk."""
    texts = dump_extra(one), dump_extra(other)
    return texts[0] != texts[1] and len({dump_extra(json.loads(text)) for text in texts}) > 1


def _brief(request: Request) -> str:
    text = f"{request.prompt!r} {dump_extra(request.extra) if request.extra else ''}".strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _own_split(own: Any, where: str) -> str:
    if not NAME.fullmatch(str(own)):
        raise UsageError(f"{where}: {str(own)!r} cannot name a split: use letters, digits, dot, dash and underscore.")
    return str(own)


def _extra(row: Mapping[str, Any], taken: Taken, where: str, left: Counter[str]) -> dict[str, Any]:
    """The further columns that have a value, images in the form of ids. left: columns that cannot be stored, counted."""
    try:
        found = taken.take({name: value for name, value in row.items() if value is not None and value != ""})
        binary = [name for name, value in found.items() if not _storable(value)]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    left.update(binary)
    return {name: value for name, value in found.items() if name not in binary} if binary else found


def _storable(value: Any) -> bool:
    """Whether JSON can hold it: not bytes, not an image. Raises UsageError for text that cannot be stored."""
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, f"the text {value[:60]!r}")
        return True
    if isinstance(value, dict):
        return all(map(_storable, value.values()))
    if isinstance(value, list):
        return all(map(_storable, value))
    return value is None or isinstance(value, (int, float))


def _check_prompt(prompt: Any, where: str) -> None:
    if not isinstance(prompt, str):
        raise UsageError(f"{where}: the prompt {prompt!r} is {described(prompt)}. Write it as text, in quotes.")
    if "\0" in prompt:
        raise UsageError(f"{where}: the prompt {prompt[:60]!r} contains a NUL character. Remove it.")
    if not prompt.isascii():
        _check_text(prompt, f"{where}: the prompt {prompt[:60]!r}")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} holds half of a character (a lone surrogate) and cannot be stored. Fix or remove it.") from error  # fmt: skip


def _say(config: Requests, counts: Counter[str], left: Counter[str], every_row: bool) -> None:
    """What was left out, and what a reader of the source may take to be used though it is not."""
    source, blank, twice, named = config.source, counts["blank"], counts["duplicate"], counts["split"]
    if blank and is_lines(config):
        note(f"{source}: {blank} blank line{'s' * (blank > 1)} left out.")
    elif blank:
        warn(f"{source}: {blank} empty prompt{'s' * (blank > 1)} left out.")
    if twice:
        note(f"{source}: {twice} duplicate request{'s' * (twice > 1)} left out.")
    for name, rows in left.items():
        warn(
            f"{source}: the column {name!r} holds bytes or images in {_rows(rows)} and is left out of them. To hand it "
            f"to the pipeline, name it in model.inputs (as extra.{name})."
        )
    if named and every_row:
        warn(f"{source}: the column 'split', which has a value in {_rows(named)}, is not used: every row is taken.")  # fmt: skip
    elif named:
        warn(
            f"{source}: the column 'split', which has a value in {_rows(named)}, does not decide what is held out: a hash of "
            "the prompt does (requests.test_share). To use the column, set requests.split_column: split."
        )


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
