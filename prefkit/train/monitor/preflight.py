"""Preflight: are the pairs' images such as the start would make? Its error on them against that on its own samples.

Offline objectives compare the policy with the start at noised images of the pairs. Where the start did not make these
and cannot denoise them, winners and losers are both far from what it samples, and a margin says little about samples.

Measured: the start's error on at most 16 of the pairs' images that are not its own, and on at most 16 of its candidates
in the run (of the same requests where there are any), at one fixed draw per image and bin of time; the i-th of both get
the same noise. The ratio is the geometric mean, over the bins, of mean error / mean error on own samples; its 95 %
interval comes from a bootstrap over the images of either side. Far: the ratio is above 1.25, and the interval above 1.
The 1.25 is a rule of thumb, no measured limit; of fewer than 4 images on either side nothing is said. A ratio below 1 is no alarm: the embedded model's error on renders such
as it was trained on is below that on its own samples. Guidance that the candidates were made with is not
undone; masks and a candidate's own noise play no part.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from prefkit import output
from prefkit.store.files import sound_json, write_json
from prefkit.train.data.batches import Batch, PairData
from prefkit.train.data.groups import Group, singles
from prefkit.train.data.pairs import PairImage
from prefkit.train.monitor.validation import BINS, VISIT, Times
from prefkit.types import Candidate, digest

IMAGES = 16
FEW = 4  # an interval from fewer images is too narrow to be believed
FAR = 1.25
RESAMPLES = 1000
COLUMNS = ("id", "request_id", "index", "seed", "error")
OWN = "skipped: all images of the pairs are candidates of the start"
NONE = "not measured: no candidates of the start"
TOO_FEW = f"not measured: fewer than {FEW} images of the pairs that the start did not make, or fewer candidates of it"
MEASURED = "measured"


def chosen(plan: Any, data: PairData) -> tuple[str, PairData, PairData]:
    """(state, the pairs' images, own samples) as groups of one image over the caches of `data`; both empty unless measured.

    Own samples are brought to the size of the pairs' images, whose latents must be there.
    """
    made, groups = _candidates(plan), foreign(plan, data)
    if min(len(made), len(groups)) < FEW:
        state = TOO_FEW if groups else OWN if made else NONE
        return state, _numbered(data, []), _numbered(data, [])
    sizes = {group.request_id: data.size(group) for group in groups}
    ids = heapq.nsmallest(IMAGES, made, key=lambda name: (made[name] not in sizes, digest(name)))
    found = {c.id: c for c in plan.store.iter_candidates(_makers(plan), set(ids), COLUMNS)}
    samples = [
        _group(candidate, sizes.get(candidate.request_id, data.size(groups[0])))
        for candidate in map(found.__getitem__, ids)
    ]
    return MEASURED, _numbered(data, groups), _numbered(data, samples)


def foreign(plan: Any, data: PairData) -> list[Group]:
    """The pairs' images to be measured, whether a step visits them or not; none where there is nothing to compare with."""
    made = _candidates(plan)
    groups = [group for group in singles(data.pairs) if group.sides[0].candidate not in made] if made else []
    with_own = set(made.values())
    return sorted(groups, key=lambda group: (group.request_id not in with_own, digest(group.id)))[:IMAGES]


def complete(plan: Any, data: PairData) -> bool:
    """Whether all that is measured is cached."""
    if any(group.sides[0].key not in data.latents for group in foreign(plan, data)):
        return False
    return all(measured.complete() for measured in chosen(plan, data)[1:])


def _numbered(data: PairData, groups: list[Group]) -> PairData:
    """Draws follow the id, so the i-th images of two such sets share theirs."""
    numbered = [replace(group, id=digest("preflight", i), row=i) for i, group in enumerate(groups)]
    return PairData(numbered, data.latents, data.conditions, data.requests)


def _candidates(plan: Any) -> dict[str, str]:
    """Those that the start itself made, id -> request: of its base with its adapters. Of a large run these are many."""
    found: dict[str, str] = {}
    for name in _makers(plan):
        frame = plan.store.candidates(name).frame(["id", "request_id", "error"])
        frame = frame[frame.error.isna()]
        found |= dict(zip(frame.id, frame.request_id))
    return found


def _makers(plan: Any) -> list[str]:
    start = dict(plan.revision["adapters"])
    specs = {name: plan.store.candidates(name).spec() or {} for name in plan.generators}
    bits = plan.revision.get("quantize")  # a quantized network makes other images from the same base
    return [n for n, spec in specs.items() if spec.get("adapters", {}) == start and spec.get("quantize") == bits]


def _group(candidate: Candidate, size: tuple[int, int]) -> Group:
    side = PairImage(digest("preflight", candidate.id, size, length=40), 0, candidate.id, size)
    return Group(candidate.id, 0, candidate.prompt, candidate.request_id, (side,), (1.0,))


def errors(family: Any, data: PairData, measure: Callable[[Batch], Any], batch_size: int) -> np.ndarray:
    """[images, BINS]. measure: a batch of images -> errors [images], all heads added."""
    found = np.zeros((len(data.pairs), BINS))
    for part, time in enumerate(Times.of(family.schedule).values):
        for start in range(0, len(data.pairs), batch_size):
            visits = [(group, VISIT - part) for group in data.pairs[start : start + batch_size]]
            for batch in data.batches(family, visits, time):
                found[[group.row for group in batch.members], part] = measure(batch).cpu().double().numpy()
    return found


def compare(theirs: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    """Errors [images, bins] of either side -> means and ratios by bin, the ratio, its interval, and whether it is far."""
    rng = np.random.default_rng(0)
    draws = [_log_ratio(rng.choice(theirs, len(theirs)), rng.choice(own, len(own))).mean() for _ in range(RESAMPLES)]
    logs = _log_ratio(theirs, own)
    low, high = np.exp(np.quantile(draws, (0.025, 0.975))).tolist()
    ratio = float(np.exp(logs.mean()))
    by_bin = {"error": theirs.mean(0), "own_error": own.mean(0), "bin_ratio": np.exp(logs)}
    shown = {name: values.tolist() for name, values in by_bin.items()}
    return shown | {"ratio": ratio, "interval": [low, high], "far": ratio > FAR and low > 1}


def _log_ratio(theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.log(theirs.mean(0) / own.mean(0))


def preflight(loop: Any, plan: Any, data: PairData) -> dict[str, Any]:
    """Measure the untouched start once, into <folder>/preflight.json; warn where the images are far from its samples.

    By all processes alike, since a sharded network computes with all of them; the main one writes and tells.
    """
    path = loop.folder / "preflight.json"
    state, theirs, own = chosen(plan, data)
    keys = [group.sides[0].key for side in (theirs, own) for group in side.pairs]
    known = sound_json(path) or {}
    if known.get("state") == state and known.get("of") == digest(keys):
        return known
    found: dict[str, Any] = {"state": state, "of": digest(keys)}
    if state == MEASURED:
        size = loop.config.batch_size
        with loop.measuring(reference=True) as measure:
            both = [errors(loop.family, side, measure, size) for side in (theirs, own)]
        requests = {group.request_id for group in theirs.pairs}
        found |= {"images": len(both[0]), "own": len(both[1]), "bins": Times.of(loop.family.schedule).names}
        found |= {"own_of_same_requests": sum(group.request_id in requests for group in own.pairs)}
        found |= compare(*both)
    if loop.processes.main:
        write_json(path, found)
        _tell(loop, found)
    return found


def _tell(loop: Any, found: dict[str, Any]) -> None:
    label = f"train {loop.folder.name}: preflight"
    if found["state"] != MEASURED:
        output.note(f"{label} {found['state']}.")
        return
    low, high = found["interval"]
    text = f"error on the pairs' images is {found['ratio']:.2f} [{low:.2f}, {high:.2f}] times that on the start's own samples"
    if found["far"] and loop.objective.reference != "none":
        output.warn(f"{label}: {text}, so they are far from what it makes, and margins on them say little about its samples. "
                    "Train with objective sft on the winners first and go on from there, use objective mapo, which has "
                    "no reference, or make the pairs from the model's own candidates (prefkit generate, score, pair).")  # fmt: skip
    else:
        output.note(f"{label}: {text}.")
