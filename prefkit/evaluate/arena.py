"""The arena of an evaluation: all models against each other, by scores, by judges that compare two images and by people.

Two images meet if they have the same request and index (seed). `eval.NAME.judges` names entries of `compare`, whose judges
see each pair of images in both orders; contradicting answers count as a tie and as a flip. Each vote of a person is a game.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.evaluate import people, statistics, tiers
from prefkit.evaluate.sets import is_control
from prefkit.human.standings import standings
from prefkit.store.table import Table
from prefkit.types import Candidate, comparison_schema, digest

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from prefkit.config import Eval, Recipe
    from prefkit.store import Store

COLUMNS = ["request_id", "a", "b", "won"]


class Images:
    """The candidates of several run folders, each id once, with the method that a comparison reads them with."""

    def __init__(self, folders: Sequence[Store]) -> None:
        self.folders = folders

    def iter_candidates(self, generators: Any, ids: set[str], columns: Any) -> Iterator[Candidate]:
        missing = set(ids)  # models with equal weights make candidates with equal ids
        for folder in self.folders:
            for candidate in folder.iter_candidates((), missing, columns) if missing else ():
                missing.discard(candidate.id)
                yield candidate


def check(recipe: Recipe, name: str) -> None:
    """Check eval.NAME.judges without loading weights. Raises UsageError."""
    from prefkit.score.compare import judge_of

    for judge in recipe.eval[name].judges:
        if judge not in recipe.compare:
            known = ", ".join(recipe.compare) or "none"
            raise UsageError(f"eval.{name}.judges: {judge!r} is not in the recipe; `compare:` has {known}.")
        judge_of(recipe.compare[judge], judge)


def players(cfg: Eval, opened: Mapping[str, Store]) -> dict[str, Store]:
    """Return the models that meet: all but the base with other prompts; empty if there is nothing to rank."""
    found = {model: folder for model, folder in opened.items() if model not in tiers.columns(cfg)}
    return found if len(found) > 2 or cfg.judges else {}


def by_scores(frames: Mapping[str, pd.DataFrame], tie: float, higher: bool) -> pd.DataFrame:
    """Return the games [request_id, a, b, won] of each pair of models. frames: the models' tables of `run.values`."""
    import pandas as pd

    parts = [pd.DataFrame(columns=COLUMNS)]
    for a, b in itertools.combinations(frames, 2):
        both = frames[a].merge(frames[b], on=["request_id", "index"], suffixes=("_a", "_b")).dropna()
        sign = 1.0 if higher else -1.0
        won = statistics.paired_outcomes(sign * both.value_b.to_numpy(float), sign * both.value_a.to_numpy(float), tie)
        parts.append(pd.DataFrame({"request_id": both.request_id, "a": a, "b": b, "won": won}))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def by_judge(
    recipe: Recipe, judge: str, folder: Path, opened: Mapping[str, Store], images: Mapping[str, pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Ask a judge about all pairs of images that it has not decided; return its games and {flips, first, failed}.

    folder: where its verdicts are stored; images: the models' tables of `run.candidates`. flips: fraction of the pairs whose
    two answers contradict; first: fraction of answers for the image shown first.
    """
    import pandas as pd

    from prefkit.score.compare import answers, ask_all, judge_of, spec_of
    from prefkit.score.judge.compare import rates

    settings = recipe.compare[judge]
    loaded = judge_of(settings, judge)
    known: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    rows = []
    for a, b in itertools.combinations(images, 2):
        both = images[a].merge(images[b], on=["request_id", "index"], suffixes=("_a", "_b"))
        for request, first, second in zip(both.request_id, both.id_a, both.id_b, strict=True):
            if first == second:  # an image of two models with equal weights
                rows.append((request, a, b, 0.5))
            elif digest(second, first) < digest(first, second):
                known.setdefault((second, first), []).append((request, b, a))
            else:
                known.setdefault((first, second), []).append((request, a, b))
    table = Table(folder, comparison_schema())
    source = Images([opened[model] for model in images])
    counts = ask_all(source, settings, loaded, table, spec_of(settings, loaded), list(known), judge)
    frame = table.frame(["id_a", "id_b", "order", "outcome"])
    frame = frame[(frame.order == "both") & frame.outcome.notna()]
    points = {"a": 1.0, "b": 0.0, "tie": 0.5}
    for first, second, outcome in zip(frame.id_a, frame.id_b, frame.outcome, strict=True):
        rows += [(*models, points[outcome]) for models in known.get((first, second), [])]
    # the table may hold further pairs from an earlier, larger evaluation
    flips, shown_first = rates([answer for answer in answers(table) if (answer.id_a, answer.id_b) in known])
    measured = {"flips": flips, "first": shown_first, "failed": counts["failed"]}
    return pd.DataFrame(rows, columns=COLUMNS), measured


def arena(
    recipe: Recipe,
    cfg: Eval,
    folder: Path,
    opened: Mapping[str, Store],
    tables: Mapping[str, tuple[Mapping[str, pd.DataFrame], bool]],
    images: Mapping[str, pd.DataFrame],
    votes: pd.DataFrame,
) -> dict[str, Any]:
    """Return {judge, scorer or "people": standings} of one set; {} if there is nothing to rank.

    folder: where judges' verdicts are stored. tables: scorer -> (the models' tables of `run.values`, higher is better).
    images: the models' tables of `run.candidates`. votes: see `people.read_votes`.
    """
    result: dict[str, Any] = {}
    met = players(cfg, opened)
    for alias, (frames, higher) in tables.items():
        # the tables may hold further seeds, for best-of-N
        chosen = {model: frames[model][frames[model]["index"] < cfg.seeds] for model in met}
        found = standings(by_scores(chosen, cfg.tie, higher)) if met else None
        result |= {alias: found | {"kind": "score"}} if found else {}
    images = {model: images[model][images[model].error.isna()] for model in met}
    for judge in cfg.judges:
        games, measured = by_judge(recipe, judge, folder / judge, met, images)
        if found := standings(games):
            # an entry of compare may have the name of a score, or that of people's votes
            taken = judge in tables or judge == people.PEOPLE
            result[f"{judge} (compare)" if taken else judge] = found | {"kind": "judge"} | measured
    if found := standings(people.games(votes, images)):
        result[people.PEOPLE] = found | {"kind": "people"}
    return result


def rows_of(arenas: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield table rows for the terminal: one per set, judge and model. arenas: result.json's `arena`.

    A ranking by scores of one model and its controls says no more than the table of verdicts, and is left to the report.
    """
    for set_name, judges in arenas.items():
        for judge, found in judges.items():
            rivals = [row for row in found["models"] if row["model"] != "base" and not is_control(row["model"])]
            if len(rivals) < 2 and found["kind"] == "score":
                continue
            for row in found["models"]:
                strength = f"{row['strength']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
                flips = "" if found.get("flips") is None else f"{found['flips']:.0%}"
                shown = {"set": set_name, "judge": judge, "model": row["model"], "strength [95 %]": strength}
                yield shown | {"points": f"{row['points']:.2f}", "ties": f"{found['ties']:.0%}", "flips": flips}
