"""People's votes as one frame, and what is known of the candidates that they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefkit.store import Store
from prefkit.store.summary import candidate_index, higher_is_better
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["id", "id_a", "id_b", "outcome", "judge", "order", "aspect", "time"]


def verdicts(store: Store, people: bool) -> pd.DataFrame:
    """first, second, verdict (1: first is better, -1, 0 tie), judge, left (1: the left one was chosen, NaN: not known), showing.

    people: imported comparisons (votes); otherwise those of model judges. first < second by id, so that both orders of a
    pair are one pair. showing 0 is a judge's first verdict on a pair, 1 the second, by time. Failed ones are left out.
    """
    import pandas as pd

    frames = []
    for alias in store.names("comparisons"):
        table = store.comparisons(alias)
        if ("imported" in (table.spec() or {})) == people:
            frame = table.frame(COLUMNS)
            # a model judge has a name per table, a person the same name everywhere
            frames.append(frame if people else frame.assign(judge=alias))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    frame = frame[frame.outcome.isin(["a", "b", "tie"]) & (frame.id_a != frame.id_b)]
    if (frame.aspect.fillna("") == "").any():
        frame = frame[frame.aspect.fillna("") == ""]  # the verdict on the whole, where there is one
    swapped = (frame.id_a > frame.id_b).to_numpy(bool)
    said = frame.outcome.map({"a": 1, "b": -1, "tie": 0}).to_numpy(np.int64)
    side = np.where(frame.order == "ab", 1, np.where(frame.order == "ba", -1, 0)) * said
    found = pd.DataFrame(
        {
            "first": np.where(swapped, frame.id_b, frame.id_a),
            "second": np.where(swapped, frame.id_a, frame.id_b),
            "verdict": np.where(swapped, -said, said),
            "judge": frame.judge.to_numpy(),
            "left": np.where(side == 0, np.nan, side > 0),
            "time": frame.time.to_numpy(np.float64),
            "id": frame.id.to_numpy(),
        }
    )
    found = found.sort_values(["time", "id"], kind="stable", ignore_index=True)
    return found.assign(showing=found.groupby(["judge", "first", "second"]).cumcount())


def evaluations(store: Store) -> dict[tuple[str, str, str], Store]:
    """(evaluation, set, model) -> its run-shaped folder."""
    return {
        (name, folder.parent.name, folder.name): Store(folder)
        for name in store.names("eval")
        for folder in sorted(store.eval(name).glob("*/*"))
        if (folder / "run.json").exists()
    }


def candidates(store: Store, folders: dict[tuple[str, str, str], Store]) -> pd.DataFrame:
    """id -> request_id, index, and eval, set, model (empty for the run's own). The first place of an id holds."""
    import pandas as pd

    own = candidate_index(store)[["id", "request_id", "index"]].assign(eval="", set="", model="")
    frames = [own]
    for (name, set_name, model), folder in folders.items():
        index = candidate_index(folder)[["id", "request_id", "index"]]
        frames.append(index.assign(eval=name, set=set_name, model=model))
    return pd.concat(frames, ignore_index=True)


def scores(store: Store, folders: dict[tuple[str, str, str], Store]) -> dict[str, pd.Series]:
    """alias -> value by candidate id, turned so that higher is better; of the run and of its evaluations' images.

    A scorer that means something else in an evaluation stands apart, as "alias (evaluation)".
    """
    import pandas as pd

    found: dict[str, list[pd.Series]] = {}
    specs: dict[str, str] = {}
    for name, place in [("", store), *((key[0], folder) for key, folder in folders.items())]:
        for alias in place.names("scores"):
            spec = digest(place.scores(alias).spec())
            label = alias if specs.setdefault(alias, spec) == spec else f"{alias} ({name})"
            sign = 1.0 if higher_is_better(place, alias) else -1.0
            values = place.scores(alias).frame(["id", "value"]).set_index("id").value
            found.setdefault(label, []).append(sign * values.astype(float))
    joined = {alias: pd.concat(parts) for alias, parts in found.items()}
    return {alias: values[~values.index.duplicated()] for alias, values in joined.items()}
