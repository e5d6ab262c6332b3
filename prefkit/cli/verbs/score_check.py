"""prefkit score --check NAME: the conformance test of a scorer, with its options as flags."""

from __future__ import annotations

import argparse
import json
from typing import Any

from prefkit import output, registry
from prefkit.config import reader
from prefkit.errors import UsageError

OWN = ("extra", "device", "dtype", "accept_license")
TAKEN = 6  # candidates of a run
WORDS = {True: "ok", False: "FAILED", None: "not looked at"}


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    """Exit code 1 where a check fails."""
    from prefkit.distributed import device_of
    from prefkit.score.check import check_scorer
    from prefkit.score.core import make_scorer
    from prefkit.score.licence import check_licence

    own = {key: text for key, text in flags if key in OWN}
    tree: dict[str, Any] = {}
    for key, text in flags:
        if key not in OWN:
            reader.overlay(tree, key, text)
    extra = _extra(own.get("extra", "{}"))
    registry.check_name("scorer", known.check)
    scorer = make_scorer(known.check, tree, f"score --check {known.check}")
    check_licence(scorer, [own.get("accept_license", "")], f"score --check {known.check}")
    try:
        scorer.load(device_of(own.get("device")), own.get("dtype", "float32"))
        found = check_scorer(scorer, _of_run(known.run_folder), extra)
    finally:
        getattr(scorer, "close", lambda: None)()
    rows = [{"check": c.name, "result": WORDS[c.ok], "detail": c.detail} for c in found]
    output.emit(rows, known.json, rows)
    return 1 if any(c.ok is False for c in found) else 0


def _extra(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f'--extra: {text!r} is no JSON object, such as \'{{"user": "u1"}}\'.')
    return found


def _of_run(folder: str | None) -> list[Any]:
    """The first candidates of a run that have an image."""
    if folder is None:
        return []
    from itertools import islice

    from prefkit.store import Store

    found = list(islice((c for c in Store(folder).iter_candidates() if c.error is None), TAKEN))
    if not found:
        raise UsageError(f"{folder} has no candidates to check a scorer on; leave the run out for made-up images.")
    return found
