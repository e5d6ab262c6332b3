"""Does a scorer keep its contract: the conformance test behind `prefkit score --check NAME` and prefkit.testing.check_scorer.

The scorer must be loaded. Values may differ by `TOLERANCE` between batches, since floating point adds up in another order.
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

TOLERANCE = 1e-4  # of the value, and absolutely below 1
EXIF_ORIENTATION = 0x0112
PROMPTS = ("a red hat on a table", "a blue coat", "two green boots", "a dress", 'a sign that says "open"', "a scarf")
SIZES = ((96, 96), (64, 96), (120, 80), (96, 64), (101, 67), (80, 80))


Answer = tuple[bool | None, str]


@dataclasses.dataclass(frozen=True)
class Check:
    """ok None: it could not be looked at, and `detail` says why."""

    name: str
    ok: bool | None
    detail: str = ""


def check_scorer(
    scorer: Any, candidates: Sequence[Candidate] = (), extra: Mapping[str, Any] | None = None
) -> list[Check]:
    """What holds and what does not of a loaded scorer.

    candidates: real ones to score, with what the scorer requires (at least 2); default: six made-up images. extra: what
    the made-up ones' requests have beside a prompt. Raises UsageError where they lack what the scorer requires.
    """
    batch = list(candidates) or made_up(extra or {})
    if len(batch) < 2:
        raise UsageError("a scorer is checked on two candidates or more.")
    lacking = sorted({key for c in batch for key in missing_keys(scorer, c)})
    if lacking:
        raise UsageError(
            f"the scorer needs {', '.join(lacking)}, which the images of the check lack. Give columns of requests as "
            "--extra '{\"name\": value}', or a run whose candidates have them: prefkit score RUN --check NAME."
        )
    checks: dict[str, Callable[[Any, Sequence[Candidate]], Answer]] = {
        "spec": _declares,
        "length": _length,
        "order invariance": _order,
        "batch invariance": _batches,
        "determinism": _again,
        "null on failure": _failure,
        "image modes": _modes,
    }
    found = []
    for name, check in checks.items():
        try:
            ok, detail = check(scorer, batch)
        except PrefkitError as error:
            ok, detail = False, str(error)
        except Exception as error:
            ok, detail = False, f"{type(error).__name__}: {error}"
        found.append(Check(name, ok, " ".join(detail.split())))
    return found


def made_up(extra: Mapping[str, Any]) -> list[Candidate]:
    """Six smooth images of six sizes, all of one request, so that scorers within requests can be checked too."""
    import numpy as np
    from PIL import Image

    found = []
    for i, (prompt, size) in enumerate(zip(PROMPTS, SIZES)):
        small = np.random.default_rng(i).integers(0, 255, (5, 4, 3), np.uint8)
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        found.append(Candidate(f"check-{i}", "check", i, i, prompt, _encoded(image, "PNG"), extra=dict(extra)))
    return found


def _declares(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    spec = scorer.spec()
    json.dumps(dataclasses.asdict(spec))
    if not spec.name or not spec.version:
        return False, "the spec has no name or no version"
    if spec != scorer.spec():
        return False, "two calls of spec() differ, so that its table would be refused on resume"
    refused = [
        f"{licence} ({why})"
        for licence in licences(scorer).values()
        for why in [restriction(licence)]
        if why is not None
    ]
    values = [s.value for s in _scores(scorer, batch) if s.value is not None]
    low, high = spec.range
    outside = [v for v in values if (low is not None and v < low) or (high is not None and v > high)]
    if outside:
        return False, f"{outside[0]:g} lies outside of its range {low} to {high}"
    licence = f"licence: {spec.licence or 'not said'}"
    return True, licence + (f"; to be accepted: {', '.join(refused)}" if refused else "")


def _length(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    for n in (len(batch), 1, 2):
        _forget(scorer)
        scores = scorer.score(list(batch[:n]))
        if len(scores) != n:
            return False, f"{len(scores)} scores for {n} candidates"
        for score in scores:
            if not isinstance(score, Score):
                return False, f"a {type(score).__name__} instead of a Score"
            if score.value is not None and not math.isfinite(score.value):
                return False, f"{score.value} instead of a number, or None with a reason"
            if score.value is None and not score.error:
                return False, "a failed score without a reason"
    failed = [s.error for s in _scores(scorer, batch) if s.value is None]
    if len(failed) == len(batch):
        return False, f"every candidate failed, the first with: {failed[0]}"
    return True, f"{len(failed)} of {len(batch)} failed" if failed else ""


def _order(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    there = _scores(scorer, batch)
    back = _scores(scorer, batch[::-1])[::-1]
    return _same(there, back, "in reverse order")


def _batches(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    if scorer.scope == "within_request":
        return None, "it scores whole requests"
    whole = _scores(scorer, batch)
    for size in (1, 2):
        parts = [s for at in range(0, len(batch), size) for s in _scores(scorer, batch[at : at + size])]
        ok, detail = _same(whole, parts, f"in batches of {size}")
        if not ok:
            return ok, detail
    return True, detail


def _again(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    return _same(_scores(scorer, batch), _scores(scorer, batch), "the second time")


def _failure(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    """The second image is cut off, and what looks at its pixels finds out."""
    from PIL import Image

    if "image" not in scorer.requires:
        return None, "it looks at no image"
    data = _encoded(batch[1].pil(), "PNG")[:-40]
    cut = dataclasses.replace(
        batch[1], image=data, path=None, decoded=Image.open(io.BytesIO(data)), sha256=hashlib.sha256(data).hexdigest()
    )
    intact = _scores(scorer, batch)
    _forget(scorer)
    scores = score_batch(scorer, [batch[0], cut, *batch[2:]])
    value = scores[1].value
    if value is not None and value == intact[1].value:
        return None, "the value is that of the whole image: it does not look at the pixels"
    if value is not None:
        return False, f"an image that cannot be read has the value {value:g}; it must be None, with a reason"
    if scorer.scope == "within_request":
        return True, f"with: {scores[1].error}"
    lost = [b.error for a, b in zip(intact, scores) if a.value is not None and b.value is None and b is not scores[1]]
    if lost:
        return False, f"another image of the batch failed with it: {lost[0]}"
    return True, f"with: {scores[1].error}"


def _modes(scorer: Any, batch: Sequence[Candidate]) -> Answer:
    """RGBA, L, palette and a photo on its side score as the RGB pixels that `Candidate.pil()` gives of them.

    But for a palette where the scorer sets `own_modes`: it resizes before it converts to RGB, as its published code does.
    """
    from PIL import Image

    if "image" not in scorer.requires:
        return None, "it looks at no image"
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
    if getattr(scorer, "own_modes", False):
        del files["P"]
    for mode, data in files.items():
        other = dataclasses.replace(batch[0], image=data, path=None, decoded=None, sha256=None)
        plain = dataclasses.replace(other, image=_encoded(other.pil(), "PNG"))
        ok, detail = _same(
            _scores(scorer, [plain, *batch[1:]]), _scores(scorer, [other, *batch[1:]]), f"as {mode} instead of RGB"
        )
        if not ok:
            return ok, detail
    return True, ", ".join(files)


def _scores(scorer: Any, batch: Sequence[Candidate]) -> list[Score]:
    _forget(scorer)
    return score_batch(scorer, list(batch))


def _forget(scorer: Any) -> None:
    """An encoder keeps what it has embedded; a check of its batches must embed again."""
    network = getattr(getattr(scorer, "encoder", None), "network", None)
    for kept in (getattr(network, "images", None), getattr(network, "texts", None)):
        if kept is not None:
            kept.kept.clear()


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


def _encoded(image: Any, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()
