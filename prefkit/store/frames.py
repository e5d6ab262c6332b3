"""Reading for the report: ids and scalars as frames, and the few rows whose images are shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.store.seal import check, open_sealed
from prefkit.store.state import damaged_pairs, pair_parts

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store

INDEX = ["id", "request_id", "index", "seed", "error"]


def candidate_index(store: Store) -> pd.DataFrame:
    """generator, id, request_id, index, seed, error of every candidate; no image is read."""
    import pandas as pd

    frames = [store.candidates(name).frame(INDEX).assign(generator=name) for name in store.names("candidates")]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*INDEX, "generator"])


def score_table(store: Store) -> pd.DataFrame:
    """Scores as they are, one column per alias, indexed by candidate id; NaN = failed or not scored."""
    import pandas as pd

    columns = {
        alias: store.scores(alias).frame(["id", "value"]).set_index("id").value for alias in store.names("scores")
    }
    return pd.DataFrame(columns, dtype=float).rename_axis("id")


def higher_is_better(store: Store, alias: str) -> bool:
    return bool((store.scores(alias).spec() or {}).get("higher_is_better", True))


def rank_correlation(store: Store, scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman, pairwise complete, each scorer turned so that higher is better."""
    signs = {alias: 1.0 if higher_is_better(store, alias) else -1.0 for alias in scores.columns}
    return (scores * signs).replace([np.inf, -np.inf], np.nan).corr(method="spearman")


class Pairs:
    """The pair set of one folder: all gaps at once, whole rows only where asked."""

    def __init__(self, folder: Path) -> None:
        self.paths = pair_parts(folder)
        self.files = [_opened(path) for path in self.paths]
        self.where: list[tuple[int, int]] = []
        gaps = []
        for number, file in enumerate(self.files):
            rows = file.metadata.num_rows
            self.where += [(number, row) for row in range(rows)]
            known = "score_gap" in file.schema_arrow.names
            column = file.read(["score_gap"]).column(0).to_numpy() if known else np.full(rows, np.nan)
            gaps.append(np.asarray(column, np.float64))
        self.gaps = np.concatenate(gaps) if gaps else np.empty(0)

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Numbers of the widest and of the narrowest pairs; no pair is in both."""
        order = np.argsort(-self.gaps, kind="stable")
        order = order[np.isfinite(self.gaps[order])]
        count = min(count, (len(order) + 1) // 2)
        return order[:count].tolist(), order[count:][::-1][:count].tolist()

    def row(self, number: int) -> dict[str, Any]:
        """One whole row, from its row group alone."""
        which, row = self.where[number]
        file, path = self.files[which], self.paths[which]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                _checked(path, partial(check, path, file.metadata, group=group))
                return file.read_row_group(group).slice(row, 1).to_pylist()[0]
            row -= rows
        raise IndexError(number)


def _opened(path: Path) -> Any:
    return _checked(path, partial(open_sealed, path, ["score_gap"]))


def _checked(path: Path, work: Callable[[], Any]) -> Any:
    """Raises DamagedError naming the file of pairs."""
    import pyarrow as pa

    try:
        return work()
    except (pa.ArrowException, OSError) as error:
        raise damaged_pairs(path, error) from error
