"""score --check NAME: the conformance test of a scorer. The scorer's options are given as flags."""

from __future__ import annotations

import argparse
import json
from itertools import islice
from typing import Any

from prefkit import output, registry
from prefkit.config import reader
from prefkit.errors import UsageError

CHECK_FLAGS = ("extra", "device", "dtype", "accept_license")
SAMPLE_SIZE = 6  # maximum number of candidates to check
RESULTS = {True: "ok", False: "FAILED", None: "not checked"}


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    """Check the scorer, print the results and return the exit code: 1 if a check failed, else 0."""
    from prefkit.distributed import device_of
    from prefkit.score.check import check_scorer
    from prefkit.score.core import make_scorer
    from prefkit.score.licence import check_licence

    settings = {key: text for key, text in flags if key in CHECK_FLAGS}
    options = reader.tree_of_flags([flag for flag in flags if flag[0] not in CHECK_FLAGS])
    extra = _extra(settings.get("extra", "{}"))
    registry.check_name("scorer", known.check)
    scorer = make_scorer(known.check, options, f"score --check {known.check}")
    check_licence(scorer, [settings.get("accept_license", "")], f"score --check {known.check}")
    try:
        scorer.load(device_of(settings.get("device")), settings.get("dtype", "float32"))
        checks = check_scorer(scorer, _candidates(known.run_folder), extra)
    finally:
        getattr(scorer, "close", lambda: None)()
    rows = [{"check": check.name, "result": RESULTS[check.ok], "detail": check.detail} for check in checks]
    output.emit(rows, known.json, rows)
    return 1 if any(check.ok is False for check in checks) else 0


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise UsageError(f'--extra: {text!r} is not a JSON object, such as \'{{"user": "u1"}}\'.')
    return extra


def _candidates(folder: str | None) -> list[Any]:
    """Return the first candidates of a run that have an image; [] if `folder` is None."""
    if folder is None:
        return []
    from prefkit.store import Store

    candidates = list(islice((c for c in Store(folder).iter_candidates() if c.error is None), SAMPLE_SIZE))
    if not candidates:
        raise UsageError(f"{folder} has no candidates with an image. To check on synthetic images, leave out the run.")
    return candidates
