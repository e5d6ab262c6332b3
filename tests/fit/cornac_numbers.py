"""What cornac 3.0.1 makes of one epoch of VBPR, kept in cornac.json so that the tests need no cornac.

python tests/fit/cornac_numbers.py        writes it anew; needs cornac

12 users, 30 items, 16 features; Adam 0.005, lambdas 0.01, 0.02, 0.03. Three things are kept: the triples in cornac's order
and the parameters after them at a batch size of 1; the same at a batch size of 8; and the AUC of the first by
cornac's own measure, one item a user.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

KEPT = Path(__file__).with_name("cornac.json")
K, K2 = 5, 4


def small(users: int = 12, items: int = 30, width: int = 16, seed: int = 3) -> tuple[dict[str, Any], Any, Any]:
    """Parameters by cornac's names, features, and (user, item) pairs: eight items of each user."""
    rng = np.random.default_rng(seed)
    given = {
        "Bi": rng.normal(0, 0.1, items),
        "Gu": rng.normal(0, 0.3, (users, K)),
        "Gi": rng.normal(0, 0.3, (items, K)),
        "Tu": rng.normal(0, 0.3, (users, K2)),
        "E": rng.normal(0, 0.3, (width, K2)),
        "Bp": rng.normal(0, 0.3, (width, 1)),
    }
    given = {name: value.astype(np.float32) for name, value in given.items()}
    features = rng.normal(0, 1, (items, width)).astype(np.float32)
    pairs = sorted({(int(u), int(i)) for u in range(users) for i in rng.choice(items, 8, replace=False)})
    return given, features, pairs


def one_epoch(batch_size: int) -> dict[str, Any]:
    """Triples, parameters after them by our names, and all scores. Items are numbered as in `small`."""
    from cornac.data import Dataset, ImageModality
    from cornac.models import VBPR

    given, features, pairs = small()
    users, items = len(given["Gu"]), len(features)
    data: Any = Dataset.build(  # ids are given, so that its numbers are ours
        [(u, i, 1.0) for u, i in pairs],
        global_uid_map={n: n for n in range(users)},
        global_iid_map={n: n for n in range(items)},
        seed=1,
        fmt="UIR",
    )
    modality = ImageModality(features=features, ids=list(range(items)))
    modality.build(id_map=data.iid_map)
    data.add_modalities(item_image=modality)
    triples: list[list[int]] = []
    original = data.uij_iter

    def recorded(size: int, shuffle: bool) -> Any:
        for u, i, j in original(size, shuffle=False):
            triples.extend([int(a), int(b), int(c)] for a, b, c in zip(u, i, j))
            yield u, i, j

    data.uij_iter = recorded
    net = VBPR(k=K, k2=K2, n_epochs=1, batch_size=batch_size, learning_rate=0.005, lambda_w=0.01, lambda_b=0.02,
               lambda_e=0.03, verbose=False, init_params=copy.deepcopy(given), seed=1).fit(data)  # fmt: skip
    found = {
        "item_bias": net.beta_item,
        "gamma_user": net.gamma_user,
        "gamma_item": net.gamma_item,
        "theta_user": net.theta_user,
        "projection": net.emb_matrix,
        "visual_bias": np.asarray(net.beta_prime).ravel(),
    }
    scores = [net.score(u) for u in range(users)]
    return {"triples": triples, "parameters": {k: _short(v) for k, v in found.items()}, "scores": _short(scores)}


def _short(values: Any) -> Any:
    """Nine digits tell float32 numbers apart."""
    return np.vectorize(lambda x: float(f"{x:.9g}"))(np.asarray(values, np.float64)).tolist()


def auc_of(scores: Any, pairs: Any, held: Any) -> list[float]:
    """cornac.metrics.AUC, a user at a time: all pairs but the held-out one are known."""
    from cornac.metrics import AUC

    found = []
    for u, i in held:
        own = {b for a, b in pairs if a == u}
        others = np.array([j for j in range(len(scores[u])) if j not in own])
        found.append(float(AUC().compute(item_indices=np.arange(len(scores[u])), pd_scores=np.array(scores[u]),
                                         gt_pos=np.array([i]), gt_neg=others)))  # fmt: skip
    return found


def main() -> None:
    import cornac

    single, eight, pairs = one_epoch(1), one_epoch(8), small()[2]
    held = [[u, next(i for a, i in pairs if a == u)] for u in range(12)]
    kept = {
        "cornac": cornac.__version__,
        "batch_size_1": single,
        "batch_size_8": {"triples": eight["triples"], "parameters": eight["parameters"]},
        "auc": {"held": held, "values": auc_of(single["scores"], pairs, held)},
    }
    KEPT.write_text(json.dumps(kept) + "\n")
    print(KEPT, KEPT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
