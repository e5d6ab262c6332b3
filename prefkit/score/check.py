"""Conformance test of a scorer, for `prefkit score --check NAME` and prefkit.testing.check_scorer.

The scorer must be loaded. Its values may differ by up to `TOLERANCE` between calls, because the result of a
floating-point sum depends on the order of its terms.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefkit.errors import PrefkitError, UsageError
from prefkit.score.core import missing_keys, score_batch
from prefkit.score.licence import licences, restriction
from prefkit.types import Candidate, Score

TOLERANCE = 1e-4  # relative to the value; absolute if the value is below 1
EXIF_ORIENTATION = 0x0112
PROMPTS = ("a red hat on a table", "a blue coat", "two green boots", "a dress", 'a sign that says "open"', "a scarf")
SIZES = ((96, 96), (64, 96), (120, 80), (96, 64), (101, 67), (80, 80))
Answer = tuple[bool | None, str]


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of one check. `ok` is None if the check does not apply to the scorer; `detail` then gives the reason."""

    name: str
    ok: bool | None
    detail: str = ""


def check_scorer(
    scorer: Any, candidates: Sequence[Candidate] = (), extra: Mapping[str, Any] | None = None
) -> list[Check]:
    """Run all checks on a loaded scorer.

    candidates: at least two, with all columns that the scorer requires; if empty, six images are generated. extra:
    extra request columns for the generated images. Raises UsageError if a candidate lacks a required column.
    """
    batch = list(candidates) or generated(extra or {})
    if len(batch) < 2:
        raise UsageError("a scorer can only be checked with at least two candidates. Generate more, or omit RUN.")
    missing = sorted({key for c in batch for key in missing_keys(scorer, c)})
    if missing:
        add = "" if "payload" in missing else "Add columns with --extra '{\"name\": value}', or use"
        raise UsageError(
            f"the scorer needs {', '.join(missing)}, which the test images lack. {add or 'Use'} a run whose candidates have "
            "them: prefkit score RUN --check NAME."
        )
    checks: dict[str, Callable[[Any, Sequence[Candidate]], Answer]] = {
        "spec": _check_spec,
        "length": _check_length,
        "order invariance": _check_order,
        "batch invariance": _check_batches,
        "determinism": _check_determinism,
        "null on failure": _check_failure,
        "image modes": _check_modes,
    }
    results = []
    for name, check in checks.items():
        try:
            ok, detail = check(scorer, batch)
        except PrefkitError as error:
            ok, detail = False, str(error)
        except Exception as error:
            ok, detail = False, f"{type(error).__name__}: {error}"
        results.append(Check(name, ok, " ".join(detail.split())))
    return results


def generated(extra: Mapping[str, Any]) -> list[Candidate]:
    """Return six candidates of one request, with generated images of different sizes."""
    import numpy as np
    from PIL import Image

    candidates = []
    for i, (prompt, size) in enumerate(zip(PROMPTS, SIZES)):
        small = np.random.default_rng(i).integers(0, 255, (5, 4, 3), np.uint8)
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        candidates.append(Candidate(f"check-{i}", "check", i, i, prompt, _encoded(image, "PNG"), extra=dict(extra)))
    return candidates


def _check_spec(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    spec = scorer.spec()
    json.dumps(dataclasses.asdict(spec))
    if not spec.name or not spec.version:
        return False, "the spec has no name or no version"
    if spec != scorer.spec():
        return False, "two calls of spec() return different specs, so prefkit could not add values to the score's table"
    restricted = [f"{name} ({kind})" for name in licences(scorer).values() if (kind := restriction(name)) is not None]
    low, high = spec.range
    for value in (s.value for s in _scores(scorer, batch) if s.value is not None):
        if (low is not None and value < low) or (high is not None and value > high):
            return False, f"the value {value:g} is outside of the scorer's range, {low} to {high}"
    licence = f"licence: {spec.licence or 'unknown'}"
    return True, licence + (f"; the user must accept: {', '.join(restricted)}" if restricted else "")


def _check_length(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    for n in (len(batch), 1, 2):
        _forget(scorer)
        scores = scorer.score(list(batch[:n]))
        if len(scores) != n:
            return False, f"score() returned {len(scores)} scores for {n} candidates"
        for score in scores:
            if not isinstance(score, Score):
                return False, f"score() returned a {type(score).__name__} instead of a Score"
            if score.value is not None and not math.isfinite(score.value):
                return False, f"a value is {score.value}; it must be a finite number, or None with a reason"
            if score.value is None and not score.error:
                return False, "a value is None, but its Score has no `error` with the reason"
    failed = [s.error for s in _scores(scorer, batch) if s.value is None]
    if len(failed) == len(batch):
        return False, f"every candidate failed, the first with: {failed[0]}"
    return True, f"{len(failed)} of {len(batch)} failed" if failed else ""


def _check_order(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    return _same(_scores(scorer, batch), _scores(scorer, batch[::-1])[::-1], "in reverse order")


def _check_batches(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    if scorer.scope == "within_request":
        return None, "the scorer gets whole requests, which are not split into batches"
    scores = _scores(scorer, batch)
    for size in (1, 2):
        parts = [s for start in range(0, len(batch), size) for s in _scores(scorer, batch[start : start + size])]
        ok, detail = _same(scores, parts, f"in batches of {size}")
        if not ok:
            return ok, detail
    return True, detail


def _check_determinism(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    return _same(_scores(scorer, batch), _scores(scorer, batch), "the second time")


def _check_failure(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    """Check that a truncated image fails, and that the other images in its batch do not."""
    from PIL import Image

    if "image" not in scorer.requires:
        return None, "the scorer does not use the image"
    data = _encoded(batch[1].pil(), "PNG")[:-40]
    cut = dataclasses.replace(
        batch[1], image=data, path=None, decoded=Image.open(io.BytesIO(data)), sha256=hashlib.sha256(data).hexdigest()
    )
    intact = _scores(scorer, batch)
    _forget(scorer)
    scores = score_batch(scorer, [batch[0], cut, *batch[2:]])
    value = scores[1].value
    if value is not None and value == intact[1].value:
        return None, "the truncated image has the value of the intact one, so the scorer does not read pixels"
    if value is not None:
        return False, f"a truncated image has the value {value:g}; its value must be None, with a reason"
    others = [b.error for a, b in zip(intact, scores) if a.value is not None and b.value is None and b is not scores[1]]
    if others and scorer.scope != "within_request":
        return False, f"another image in the same batch failed too: {others[0]}"
    return True, f"the truncated image failed with: {scores[1].error}"


def _check_modes(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    """Check that RGBA, greyscale, palette and EXIF-rotated images score like the RGB images of `Candidate.pil()`."""
    from PIL import Image

    if "image" not in scorer.requires:
        return None, "the scorer does not use the image"
    base = batch[0].pil()
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    alpha = base.convert("RGBA")
    alpha.putalpha(base.convert("L"))
    files = {
        "RGBA": _encoded(alpha, "PNG"),
        "L": _encoded(base.convert("L"), "PNG"),
        "P": _encoded(base.quantize(16), "PNG"),
        "EXIF rotation": _encoded(base, "JPEG", exif=turned),
    }
    if getattr(scorer, "own_modes", False):  # the scorer resizes images before it converts them to RGB
        del files["P"]
    for mode, data in files.items():
        other = dataclasses.replace(batch[0], image=data, path=None, decoded=None, sha256=None)
        plain = dataclasses.replace(other, image=_encoded(other.pil(), "PNG"))
        expected, actual = (_scores(scorer, [first, *batch[1:]]) for first in (plain, other))
        ok, detail = _same(expected, actual, f"as {mode} instead of RGB")
        if not ok:
            return ok, detail
    return True, ", ".join(files)


def _scores(scorer: Any, batch: Sequence[Candidate]) -> list[Score]:
    _forget(scorer)
    return score_batch(scorer, list(batch))


def _forget(scorer: Any) -> None:
    """Clear the encoder's cached embeddings, so that the next call computes them again."""
    network = getattr(getattr(scorer, "encoder", None), "network", None)
    for cache in (getattr(network, "images", None), getattr(network, "texts", None)):
        if cache is not None:
            cache.entries.clear()


def _same(one: Sequence[Score], two: Sequence[Score], when: str) -> Answer:
    widest = 0.0
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        if a.value is None or b.value is None:
            if (a.value is None) != (b.value is None):
                return False, f"candidate {i}: {a.value} at first, {b.value} {when} ({a.error or b.error})"
            continue
        gap = abs(a.value - b.value)
        widest = max(widest, gap)
        if gap > TOLERANCE * max(1.0, abs(a.value)):
            return False, f"candidate {i}: {a.value:.6g} at first, {b.value:.6g} {when}"
    return True, f"largest difference {widest:.2g}" if widest else "equal to the bit"


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
