"""Preflight: warns if the pairs' images are far from what the initial model generates.

Offline objectives compare the policy with the initial model on noised images of the pairs. If the initial model cannot
denoise these images, the margin between winners and losers says little about the images that the model generates.

The initial model's errors are measured on two sets of at most 16 images: images of the pairs that the model did not
make, and the model's own samples, which are its candidates in the run (for the same requests where possible). Each
image has one fixed draw per time bin, and the i-th images of both sets share their noise. The ratio is the mean error
on the pairs' images divided by the mean error on own samples, as a geometric mean over the bins. Its 95 % interval
comes from a bootstrap over the images of each set. The pairs' images count as far if the ratio is above 1.25 and the
whole interval is above 1. The limit of 1.25 is a rule of thumb. Sets of fewer than 4 images are not compared. A ratio
below 1 causes no warning: the embedded `tiny` model has a lower error on renders like its training images than on its
own samples. The candidates' guidance is not corrected for, and masks are ignored.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import numpy as np

from prefkit import output
from prefkit.store.files import sound_json, write_json
from prefkit.train.data.batches import PairData
from prefkit.train.data.groups import singles
from prefkit.train.data.pairs import Group, PairImage
from prefkit.train.monitor.validation import errors_by_bin, time_bins
from prefkit.types import Candidate, digest

IMAGES = 16
MINIMUM = 4  # an interval from fewer images is too narrow
FAR = 1.25
RESAMPLES = 1000
COLUMNS = ("id", "request_id", "index", "seed", "error")
OWN = "skipped: the initial model made all candidates of the pairs"
NONE = "not measured: the run has no candidates made by the initial model"
TOO_FEW = (
    f"not measured: this needs {MINIMUM} candidates made by the initial model and {MINIMUM} other images in the pairs"
)
MEASURED = "measured"


def groups_to_measure(plan: Any, data: PairData) -> tuple[str, PairData, PairData]:
    """Return (state, the pairs' images to measure, the initial model's own samples to measure).

    Both sets hold one group per image and use the caches of `data`; they are empty unless the state is MEASURED. Own
    samples are fitted to the size of the pairs' images; the latents of the pairs' images must be cached.
    """
    requests, groups = _own_candidates(plan), foreign(plan, data)
    if min(len(requests), len(groups)) < MINIMUM:
        state = TOO_FEW if groups else OWN if requests else NONE
        return state, _numbered(data, []), _numbered(data, [])
    sizes = {group.request_id: data.size(group) for group in groups}
    ids = heapq.nsmallest(IMAGES, requests, key=lambda id: (requests[id] not in sizes, digest(id)))
    candidates = {c.id: c for c in plan.store.iter_candidates(_own_generators(plan), set(ids), COLUMNS)}
    default = data.size(groups[0])
    samples = [_group(candidates[id], sizes.get(candidates[id].request_id, default)) for id in ids]
    return MEASURED, _numbered(data, groups), _numbered(data, samples)


def foreign(plan: Any, data: PairData) -> list[Group]:
    """Return the pairs' images to measure, one per group: at most 16 that the initial model did not make.

    Images that no training step visits are included. Returns [] if the run has no images made by the initial model.
    """
    own = _own_candidates(plan)
    groups = [group for group in singles(data.pairs) if group.images[0].candidate not in own] if own else []
    requests = set(own.values())
    return sorted(groups, key=lambda group: (group.request_id not in requests, digest(group.id)))[:IMAGES]


def complete(plan: Any, data: PairData) -> bool:
    """True if the latents and conditions of all images to measure are cached."""
    if any(group.images[0].key not in data.latents for group in foreign(plan, data)):
        return False
    return all(measured.complete() for measured in groups_to_measure(plan, data)[1:])


def _numbered(data: PairData, groups: list[Group]) -> PairData:
    """Return the groups with ids made from their position, so that the i-th images of both sets share their draws."""
    numbered = [replace(group, id=digest("preflight", i), row=i) for i, group in enumerate(groups)]
    return PairData(numbered, data.latents, data.conditions, data.requests)


def _own_candidates(plan: Any) -> dict[str, str]:
    """Return {candidate id: request id} of all successful candidates that the initial model made."""
    requests: dict[str, str] = {}
    for name in _own_generators(plan):
        frame = plan.store.candidates(name).frame(["id", "request_id", "error"])
        frame = frame[frame.error.isna()]
        requests |= dict(zip(frame.id, frame.request_id))
    return requests


def _own_generators(plan: Any) -> list[str]:
    """Return the names of generators that use the initial model, with its base, adapters and quantization."""
    start, bits = dict(plan.revision["adapters"]), plan.revision.get("quantize")
    specs = {name: plan.store.candidates(name).spec() or {} for name in plan.generators}
    return [n for n, spec in specs.items() if spec.get("adapters", {}) == start and spec.get("quantize") == bits]


def _group(candidate: Candidate, size: tuple[int, int]) -> Group:
    image = PairImage(digest("preflight", candidate.id, size, length=40), 0, candidate.id, size)
    return Group(candidate.id, 0, candidate.prompt, candidate.request_id, (image,), (1.0,))


def compare(foreign: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    """Compare the errors [images, bins] on the pairs' images (`foreign`) with those on the model's own samples (`own`).

    Returns the mean errors and their ratio by bin, the overall ratio, its 95 % interval, and `far`: True if the ratio
    is above FAR and the whole interval is above 1.
    """
    rng = np.random.default_rng(0)
    draws = [_log_ratio(rng.choice(foreign, len(foreign)), rng.choice(own, len(own))).mean() for _ in range(RESAMPLES)]
    logs = _log_ratio(foreign, own)
    low, high = np.exp(np.quantile(draws, (0.025, 0.975))).tolist()
    ratio = float(np.exp(logs.mean()))
    by_bin = {"error": foreign.mean(0), "own_error": own.mean(0), "bin_ratio": np.exp(logs)}
    lists = {name: values.tolist() for name, values in by_bin.items()}
    return lists | {"ratio": ratio, "interval": [low, high], "far": ratio > FAR and low > 1}


def _log_ratio(foreign: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.log(foreign.mean(0) / own.mean(0))


def preflight(loop: Any, plan: Any, data: PairData) -> dict[str, Any]:
    """Measure the initial model once, write <folder>/preflight.json, and warn if the pairs are far from its samples.

    All processes measure, because a sharded network needs all of them; rank 0 writes and prints.
    """
    path = loop.folder / "preflight.json"
    state, *sets = groups_to_measure(plan, data)
    keys = [group.images[0].key for each in sets for group in each.pairs]
    known = sound_json(path) or {}
    if known.get("state") == state and known.get("of") == digest(keys):
        return known
    report: dict[str, Any] = {"state": state, "of": digest(keys)}
    if state == MEASURED:
        size = loop.config.batch_size
        with loop.measuring(reference=True) as measure:
            both = [errors_by_bin(loop.family, each, each.pairs, measure, size)[..., 0].numpy() for each in sets]
        requests = {group.request_id for group in sets[0].pairs}
        report |= {"images": len(both[0]), "own": len(both[1]), "bins": time_bins(loop.family.schedule)[1]}
        report |= {"own_of_same_requests": sum(group.request_id in requests for group in sets[1].pairs)}
        report |= compare(*both)
    if loop.processes.main:
        write_json(path, report)
        _print(loop, report)
    return report


def _print(loop: Any, report: dict[str, Any]) -> None:
    label = f"train {loop.folder.name}: preflight"
    if report["state"] != MEASURED:
        output.note(f"{label} {report['state']}.")
        return
    low, high = report["interval"]
    text = (
        f"{label}: the initial model's error on the pairs' candidates is {report['ratio']:.2f} times its error on "
        f"its own samples (95 % interval {low:.2f} to {high:.2f})"
    )
    if report["far"] and loop.objective.reference != "none":
        output.warn(
            f"{text}, so they are far from what this model generates, and their margins say little about its samples. "
            "Train with objective sft on the winners first and continue from the result; or use objective mapo, which "
            "has no reference; or make the pairs from the model's own candidates (prefkit generate, score, pair)."
        )
    else:
        output.note(f"{text}.")
