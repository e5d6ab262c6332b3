"""Errors of a run's mesh candidates: stored in a score table, or computed from the truth in the requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from prefkit.fit.preferences import open_run
from prefkit.mesh.payload import Mesh
from prefkit.mesh.truth import Truth, errors_of, truth_of
from prefkit.store import Store
from prefkit.types import Candidate, Score

DEFAULT = "mesh_error"
#: the aspects of mesh_error, in mm, and `error`, an error given by the value of another score
MEASURES = ("mpjpe", "pa_mpjpe", "mpvpe", "error")
Errors = dict[str, float]
Member = tuple[Candidate, Mesh]


def known_errors(store: Store, run: str, score: str) -> Callable[[Sequence[Member]], list[Errors | Score]]:
    """Return a function from (candidate, mesh) pairs to the errors of each; a failed Score if they are unknown.

    The errors are the MEASURES among the aspects in the score table `score`. Without any, the score's value is the
    error (negated if higher is better). If `score` is DEFAULT and the run has no such table, the errors are computed.
    Raises UsageError if any other table is missing.
    """
    if score == DEFAULT and score not in store.names("scores"):
        return _computed
    stored = _stored(open_run("mesh.score", run, "scores", score), score)
    missing = Score(None, error=f"no value in the scores {score}")
    return lambda members: [stored.get(candidate.id, missing) for candidate, _ in members]


def _computed(members: Sequence[Member]) -> list[Errors | Score]:
    truths = [_truth(*member) for member in members]
    good = [(mesh, truth) for (_, mesh), truth in zip(members, truths) if not isinstance(truth, Score)]
    found = iter(errors_of([mesh for mesh, _ in good], [truth for _, truth in good]))
    return [truth if isinstance(truth, Score) else _measures(next(found)) for truth in truths]


def _truth(candidate: Candidate, mesh: Mesh) -> Truth | Score:
    try:
        return truth_of(candidate.extra, mesh)
    except ValueError as error:
        return Score(None, error=str(error))


def _measures(errors: Errors) -> Errors:
    return {name: errors[name] for name in MEASURES if name in errors}


def _stored(store: Store, score: str) -> dict[str, Errors]:
    table = store.scores(score)
    sign = -1.0 if (table.spec() or {}).get("higher_is_better", True) else 1.0
    frame = table.frame(["id", "value", "aspects"]).dropna(subset=["value"])
    errors: dict[str, Errors] = {}
    for cid, value, aspects in frame.itertuples(index=False):
        parts = json.loads(aspects) if isinstance(aspects, str) else {}
        errors[cid] = _measures(parts) or {"error": sign * value}
    return errors
