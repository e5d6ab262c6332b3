"""The data of `prefkit fit mesh`: a run's mesh hypotheses with known errors, as features and errors per request."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefkit.errors import UsageError
from prefkit.fit.meshes.errors import MEASURES, Errors, known_errors
from prefkit.fit.preferences import rejected_ids
from prefkit.mesh.candidates import hypotheses
from prefkit.mesh.mirror import can_mirror, mirrored
from prefkit.mesh.payload import Mesh
from prefkit.mesh.ranking.features import Layout, features
from prefkit.store import Store
from prefkit.store.reader import by_request
from prefkit.types import Candidate, Score, digest

COLUMNS = ("id", "request_id", "index", "seed", "sha256", "payload", "extra", "error")


@dataclass(frozen=True)
class Hypotheses:
    """The data of R requests with up to M hypotheses each.

    features: [R, M, F]; mirrored: features of the mirror images (prefkit/mesh/mirror.py). errors: [R, M, E] for the E
    `measures`, NaN for missing hypotheses. reprojection: errors [R, M] in units of half the box's longer side
    (`Observed.half`). groups: the group of each request. tests: True for each request whose split is `test`. left_out:
    {reason: number of candidates}. content: a digest of all candidates and errors.
    """

    features: Tensor
    mirrored: Tensor
    errors: Tensor
    reprojection: Tensor
    measures: tuple[str, ...]
    layout: Layout
    groups: list[str]
    tests: list[bool]
    left_out: dict[str, int]
    content: str

    @property
    def present(self) -> Tensor:
        """True for hypotheses that exist, [R, M]."""
        return ~self.errors[..., 0].isnan()


@dataclass(frozen=True)
class Hypothesis:
    """A candidate with a usable mesh and known errors."""

    candidate: Candidate
    mesh: Mesh
    errors: Errors

    def payload_hash(self) -> str:
        return hashlib.sha256(self.candidate.payload or b"").hexdigest()


@dataclass(frozen=True)
class Ranked:
    """The usable candidates of one request, with features and mirrored features [M, F], and reprojection errors [M].

    If the sides of the joints are unknown, `mirrored` equals `features`.
    """

    members: list[Hypothesis]
    features: Tensor
    mirrored: Tensor
    reprojection: Tensor

    @property
    def first(self) -> Candidate:
        return self.members[0].candidate


def read_hypotheses(run: str, generators: Sequence[str], score: str, pose: bool, group: str) -> Hypotheses:
    """Read a run's mesh candidates with their errors, from the table `score` or computed from the requests' truth.

    pose: use the rotations, if the first mesh has any. group: request column whose equal values form a group; "" makes
    each request a group. Requests with fewer than two usable hypotheses are left out. Raises UsageError.
    """
    store = Store(Path(run).expanduser())
    if not store.exists():
        raise UsageError(f"mesh: --run {run!r} is not a run. Give the folder of a run whose candidates are meshes.")
    store.check_single()
    of = known_errors(store, run, score)
    left_out: Counter[str] = Counter()
    layout: Layout | None = None
    found: list[Ranked] = []
    for batch in _batches(store, generators):
        layout = layout or _layout(batch, pose)
        ranked = _ranked(batch, of, layout, left_out)
        found += [] if ranked is None else [ranked]
    if layout is None or not found:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in left_out.most_common(3)) or "no candidates"
        raise UsageError(f"mesh: the run {run} has no request with two meshes of known error. Left out: {reasons}.")
    tests = {request.request_id for request in store.requests() if request.split == "test"}
    return _collected(found, layout, group, tests, left_out)


def _batches(store: Store, generators: Sequence[str]) -> Iterator[list[Candidate]]:
    """Yield the candidates of each request, except failed and rejected ones."""
    names = store.names("candidates")
    unknown = sorted(set(generators) - set(names))
    if unknown:
        raise UsageError(
            f"mesh: --generators: the run has no generator {', '.join(unknown)}; it has {', '.join(names) or 'none'}."
        )
    ids: set[str] = set()
    for name in generators or names:
        frame = store.candidates(name).frame(["id", "error"])
        ids |= set(frame.id[frame.error.isna()])
    yield from by_request(store, generators, ids - rejected_ids(store), COLUMNS)


def _layout(batch: Sequence[Candidate], pose: bool) -> Layout | None:
    """Return the layout of the first candidate whose payload is a mesh; None if there is no such candidate."""
    for candidate in batch:
        try:
            return Layout.of(Mesh.unpack(candidate.payload or b""), pose)
        except ValueError:
            continue
    return None


def _ranked(batch: Sequence[Candidate], of: Any, layout: Layout | None, left_out: Counter[str]) -> Ranked | None:
    """Return a request's usable candidates, or None if there are fewer than two. Counts the others in `left_out`."""
    if layout is None:
        left_out["the payload is not a mesh"] += len(batch)
        return None
    seen, found = hypotheses(batch, layout)
    usable = [(candidate, mesh) for candidate, mesh in zip(batch, found) if not isinstance(mesh, Score)]
    errors = of(usable)
    members = [Hypothesis(*both, error) for both, error in zip(usable, errors) if not isinstance(error, Score)]
    left_out.update(str(failed.error) for failed in (*found, *errors) if isinstance(failed, Score))
    if seen is None or len(members) < 2:
        left_out["the only hypothesis of its request"] += len(members)
        return None
    meshes = [member.mesh for member in members]
    rows, error = features(seen, meshes, layout)
    other = features(*mirrored(seen, meshes, layout), layout)[0] if can_mirror(layout) else rows
    return Ranked(members, rows, other, error)


def _collected(found: list[Ranked], layout: Layout, group: str, tests: set[str], left_out: Counter[str]) -> Hypotheses:
    """Stack the tensors of all requests, padded to the largest number of hypotheses."""
    common = set.intersection(*(set(member.errors) for ranked in found for member in ranked.members))
    measures = tuple(name for name in MEASURES if name in common)
    if not measures:
        raise UsageError(
            "mesh: --score: some candidates have the aspect mpjpe and others do not. Score all candidates again."
        )
    missing = [ranked.first.request_id for ranked in found if group and group not in ranked.first.extra]
    if missing:
        raise UsageError(f"mesh: --group: request {missing[0]} has no column {group!r}. Add it, or leave out --group.")
    errors = [torch.tensor([[member.errors[m] for m in measures] for member in ranked.members]) for ranked in found]
    return Hypotheses(
        features=pad_sequence([ranked.features for ranked in found], batch_first=True),
        mirrored=pad_sequence([ranked.mirrored for ranked in found], batch_first=True),
        errors=pad_sequence(errors, batch_first=True, padding_value=torch.nan),
        reprojection=pad_sequence([ranked.reprojection for ranked in found], batch_first=True),
        measures=measures,
        layout=layout,
        groups=[str(ranked.first.extra[group]) if group else ranked.first.request_id for ranked in found],
        tests=[ranked.first.request_id in tests for ranked in found],
        left_out=dict(left_out),
        content=digest([[m.candidate.id, m.payload_hash(), m.errors] for ranked in found for m in ranked.members]),
    )


def split(data: Hypotheses, validation: float, test: float, seed: int) -> dict[str, list[int]]:
    """Return the indices of the train, validation and test requests; a group is never divided between them.

    A group is for testing if one of its requests has the split `test`. If there is no such group, a fraction `test` of
    the groups is used. Raises UsageError.
    """
    held = {group for group, is_test in zip(data.groups, data.tests) if is_test}
    order = sorted(set(data.groups) - held, key=lambda group: digest("split", seed, group))
    n_test = 0 if held else max(1, round(test * len(order)))
    n_validation = max(1, round(validation * len(order)))
    if len(order) < n_test + n_validation + 1:
        raise UsageError(
            f"mesh: {len(order)} groups of requests are too few to train, validate and test on; use a run with more."
        )
    part = dict.fromkeys(held, "test") | dict.fromkeys(order, "train")
    part |= dict.fromkeys(order[:n_test], "test") | dict.fromkeys(order[n_test : n_test + n_validation], "validation")
    return {
        name: [n for n, group in enumerate(data.groups) if part[group] == name]
        for name in ("train", "validation", "test")
    }
