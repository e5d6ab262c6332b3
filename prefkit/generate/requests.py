"""Read requests from a source. A row gives the prompt, the split, and the request's extra (all other columns)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit.config import Requests, bounds
from prefkit.errors import UsageError
from prefkit.generate.inputs import InputReader
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
    """Return the distinct requests in a source. Raises UsageError if the file, a column or every prompt is missing.

    A request's id is the row's `request_id` or, without one, a hash of prompt and extra, equal in every run. inputs:
    `model.inputs`; images in these columns are stored in the store's inputs/ table and replaced by their ids.
    every_row: True if the caller uses all rows regardless of their split; it only changes the text of a warning.
    """
    if not config.source:
        raise UsageError(f"requests.source is not set: give a file ({', '.join(SUFFIXES)}), or a Hub dataset's id.")
    bounds.check(config, "requests")
    requests: dict[str, Request] = {}
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    images = InputReader(inputs or {}, folder_of(config), store, config.images)
    prompt_column, splits = nfc(config.prompt_column), split_column(config)
    for where, row, _ in rows_of(config, images.keys):
        prompt = row.pop(prompt_column)
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            counts["blank"] += 1
            continue
        _check_prompt(prompt, where)
        if splits is None and row.get("split") is not None:
            counts["split"] += 1
        split = row.pop(splits) if splits else None
        if split is not None and not NAME.fullmatch(str(split)):
            raise UsageError(
                f"{where}: {str(split)!r} cannot name a split: use letters, digits, dot, dash and underscore."
            )
        extra = _extra(row, images, where, dropped)
        given_id = extra.pop("request_id", None)
        request_id = id_text(given_id) if given_id is not None else digest(prompt, extra)
        if request_id in requests:
            counts["duplicate"] += 1
            if (requests[request_id].prompt, requests[request_id].extra) != (prompt, extra):
                raise UsageError(f"{where}: request_id {request_id!r} already belongs to another request. Rename one.")
            continue
        split = split_of(prompt, config.test_share) if split is None else str(split)
        requests[request_id] = Request(request_id, prompt, split, extra)
    for name in sorted(images.keys - images.found) if requests else ():
        raise UsageError(f"requests.images: no request of {config.source} has a column {name!r} with a value.")
    images.write()
    _report(config, counts, dropped, every_row)
    if not requests:
        raise UsageError(f"{config.source} contains no prompt. Add at least one (in a .txt file, one per line).")
    return list(requests.values())


def keep_known(known: Sequence[Request], wanted: Sequence[Request], where: str | Path) -> list[Request]:
    """Return the requests `wanted`, but with the split that the run already stores for known requests.

    where: the run, for messages. Raises UsageError if the prompt or extra of a known request has changed, because the
    images and scores in the run belong to the old one.
    """
    old = {r.request_id: r for r in known}
    for new in wanted:
        before = old.get(new.request_id, new)
        changed = ["prompt"] * (before.prompt != new.prompt) + ["extra"] * (
            before is not new and _differ(before.extra, new.extra)
        )
        if changed:
            raise UsageError(
                f"the {' and '.join(changed)} of request {new.request_id!r} in {where} changed (before: "
                f"{_brief(before)}; now: {_brief(new)}), but the images and scores there belong to the old request. "
                "Restore the old request, give the new one its own request_id, or use a new run (or evaluation) name."
            )
    moved = sum(old.get(r.request_id, r).split != r.split for r in wanted)
    if moved:
        note(
            f"{moved} request{'s keep their' if moved > 1 else ' keeps its'} split in {where}, although the recipe now "
            "gives another one: a request that was trained on must not become held out. Use a new run to split again."
        )
    return [replace(r, split=old.get(r.request_id, r).split) for r in wanted]


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two extras differ after both are converted to JSON and back."""
    texts = dump_extra(one), dump_extra(other)
    return texts[0] != texts[1] and len({dump_extra(json.loads(text)) for text in texts}) > 1


def _brief(request: Request) -> str:
    text = f"{request.prompt!r} {dump_extra(request.extra) if request.extra else ''}".strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _extra(row: Mapping[str, Any], images: InputReader, where: str, dropped: Counter[str]) -> dict[str, Any]:
    """Return a row's non-empty columns, with images replaced by ids. dropped: counts columns that JSON cannot hold."""
    try:
        extra = images.replace_images({name: value for name, value in row.items() if value is not None and value != ""})
        binary = [name for name, value in extra.items() if not _storable(value)]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    dropped.update(binary)
    return {name: value for name, value in extra.items() if name not in binary} if binary else extra


def _storable(value: Any) -> bool:
    """True if JSON can hold the value, unlike bytes or an image. Raises UsageError for invalid Unicode text."""
    if isinstance(value, str):
        _check_text(value, f"the text {value[:60]!r}")
        return True
    if isinstance(value, (dict, list)):
        return all(map(_storable, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (int, float))


def _check_prompt(prompt: Any, where: str) -> None:
    if not isinstance(prompt, str):
        raise UsageError(f"{where}: the prompt {prompt!r} is {described(prompt)}, not text. Put it in quotes.")
    if "\0" in prompt:
        raise UsageError(f"{where}: the prompt {prompt[:60]!r} contains a NUL character. Remove it.")
    _check_text(prompt, f"{where}: the prompt {prompt[:60]!r}")


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} is not valid Unicode (it contains a lone surrogate) and cannot be stored. Fix or remove it."
        ) from error


def _report(config: Requests, counts: Counter[str], dropped: Counter[str], every_row: bool) -> None:
    """Warn about rows and columns that were left out, and about a split column that is ignored."""
    source, blank, duplicates, splits = config.source, counts["blank"], counts["duplicate"], counts["split"]
    if blank and is_lines(config):
        note(f"{source}: {blank} blank line{'s' * (blank > 1)} left out.")
    elif blank:
        warn(f"{source}: {blank} empty prompt{'s' * (blank > 1)} left out.")
    if duplicates:
        note(f"{source}: {duplicates} duplicate request{'s' * (duplicates > 1)} left out.")
    for name, rows in dropped.items():
        warn(
            f"{source}: the column {name!r} contains bytes or images in {_rows(rows)}; these values are left out. To "
            f"pass them to the pipeline, add extra.{name} to model.inputs."
        )
    if splits:
        column = f"{source}: the column 'split', which has a value in {_rows(splits)},"
        warn(
            f"{column} is not used: all rows are read."
            if every_row
            else f"{column} is not used: a hash of the prompt decides what is held out (requests.test_share). To use "
            "the column, set requests.split_column: split."
        )


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
