"""Fit the scorer `mesh`: learn to rank mesh hypotheses from hypotheses with known errors.

`run` is a run with several meshes (payloads) for each request, and `keypoints2d` in the requests. The errors are the
aspects mpjpe, pa_mpjpe and mpvpe of the scores called `score`, made by `use: mesh_error`. If the run has no such
scores, the errors are computed from `true_joints3d`. The loss is that of ADHMR's HMR-Scorer (arXiv 2505.10250), within
each request and summed over the errors.

Requests of the split `test` are for testing, or a fraction `test_share` of all requests if there are none. Requests
with equal values in the column `group` (such as frames of one clip) stay in one split. Metrics on test requests, for
the scorer and for the rule `mesh_reprojection`: correlation and pair accuracy within requests; the error of the
selected hypothesis, and the mean and smallest error; HMR-Scorer's pooled correlations (prefkit/fit/meshes/measures.py).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefkit.fit.options import check_fractions, check_positive


@dataclass(frozen=True)
class MeshFit:
    #: run folder whose candidates are meshes
    run: str = ""
    #: generators whose candidates are used; empty = all
    generators: tuple[str, ...] = ()
    #: the run's score table with the errors; if it is mesh_error and missing, the errors are computed
    score: str = "mesh_error"
    #: pairwise (HMR-Scorer) | listwise (Plackett-Luce)
    loss: Literal["pairwise", "listwise"] = "pairwise"
    #: also use the rotations, which every candidate must then have (no gain was measured); false = joints only
    pose: bool = False
    #: request column; requests with equal values stay in one split; empty = each request is independent
    group: str = ""
    width: int = 256
    dropout: float = 0.1
    #: maximum number of steps
    steps: int = 3000
    #: requests per step
    batch_size: int = 32
    learning_rate: float = 0.0005
    weight_decay: float = 0.01
    #: validations (one every 50 steps) without a higher pair accuracy before training stops
    patience: int = 20
    #: fraction of requests (or groups) for validation
    validation_share: float = 0.1
    #: fraction of requests (or groups) for testing, if no request has the split test
    test_share: float = 0.1
    seed: int = 0
    #: folder to write; empty = fitted/mesh
    out: str = ""

    def __post_init__(self) -> None:
        check_positive("mesh", self, "width", "steps", "batch_size", "patience")
        check_fractions("mesh", self)


class MeshFitter:
    Options = MeshFit

    def __init__(self, options: MeshFit) -> None:
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it already exists. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.meshes.hypotheses import read_hypotheses
        from prefkit.mesh.ranking.threads import one_thread

        o = self.options
        with one_thread():
            data = read_hypotheses(o.run, o.generators, o.score, o.pose, o.group)
            folder = FitFolder("mesh", o.out, o, {"hypotheses": data.content})
            present = folder.present()
            return present if present is not None else self._fit(folder, data)

    def _fit(self, folder: Any, data: Any) -> dict[str, Any]:
        from prefkit.fit.folder import save_tensors
        from prefkit.fit.meshes.hypotheses import split
        from prefkit.fit.meshes.train import train
        from prefkit.output import warn

        o = self.options
        splits = split(data, o.validation_share, o.test_share, o.seed)
        for reason, count in data.left_out.items():
            warn(f"fit mesh: {count} candidates were left out: {reason}")
        started = time.monotonic()
        net, course = train(data, splits, o)
        course["seconds"] = round(time.monotonic() - started, 1)
        results = {
            "features": asdict(data.layout),
            "measures": list(data.measures),
            "counts": {"requests": len(data.groups), "hypotheses": int(data.present.sum())}
            | {name: len(rows) for name, rows in splits.items()}
            | {"left_out": sum(data.left_out.values())},
            "training": course,
            "validation": measured(net, data, splits["test"]),
        }
        return folder.write(results, lambda temporary: save_tensors(temporary, net.state_dict()))


def measured(net: Any, data: Any, rows: list[int]) -> dict[str, Any]:
    """Measure the network and the rule mesh_reprojection on the requests `rows`."""
    import torch

    from prefkit.fit.meshes.measures import compared
    from prefkit.fit.meshes.train import scores_of

    numbers = [data.present[n] for n in rows]
    scores = [s[m].double().numpy() for s, m in zip(scores_of(net, data, torch.tensor(rows)), numbers)]
    rule = [-data.reprojection[n][m].double().numpy() for n, m in zip(rows, numbers)]
    errors = [data.errors[n][m].double().numpy() for n, m in zip(rows, numbers)]
    return compared(scores, rule, errors, data.measures)


plugin = MeshFitter
