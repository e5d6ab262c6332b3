"""Results of a seed of the study: one line for each picture of a held-out request, and one for each set of pairs.

Columns of the pictures:

row, request, index   row of the tables (a model and its round), request, number of the picture
rule, palette         1 if the picture obeys the rule, or is in the user's palette (rule.py), else 0
rule_other            the shuffled-outfit control: `rule` beside the outfits of all other held-out requests, mean
palette_other         the same for `palette`, with the palettes of all other held-out users
fidelity              fraction of item, background and pattern that are as the prompt asks (scorer `attributes`)
quality, compatibility, personal   the experts
diversity             mean RMS distance of the request's pictures in pixels, the same for all of them
probe                 P(undamaged) by a judge outside the experts (probe.py), if its weights are present

A model that does not use the outfit has equal `rule` and `rule_other`, up to chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rule import goes_with
from samplers import measured_per_request

from prefkit import Run
from prefkit.evaluate.distances import images
from prefkit.pair.normalise import normalise
from prefkit.score.diversity import diversity, thumbnail
from prefkit.store import Store
from prefkit.tiny.captions import asked
from prefkit.tiny.domain import COLOURS

EXPERTS = ("quality", "compatibility", "personal")
SCORES = ("rule", "palette", "fidelity", *EXPERTS)
BEST = "base, best of N by the experts"
#: folder of a model -> row of the tables
NAMES = {
    "base": "base",
    "ours": "ours, round 1",
    "ours-sft": "SFT on the winners",
    "ours-flipped": "flipped pairs",
    "published": "FashionDPO's pairs",
    "quality": "quality only",
    "compatibility": "compatibility only",
    "personal": "personal only",
    "d3po": "D3PO, online",
}
Folders = Mapping[str, Path]


def evaluated(rounds: Sequence[Path]) -> dict[str, Path]:
    """Return {row: run folder of its held-out pictures}. rounds: run folders of the rounds."""
    first, *later = (round / "eval" / "held_out" / "held_out" for round in rounds)
    found = {name: first / model for model, name in NAMES.items()}
    return found | {f"ours, round {number}": folder / "ours" for number, folder in enumerate(later, 2)}


def pictures(folders: Folders, requests: Path) -> pd.DataFrame:
    """Return the table of pictures, without `probe`. requests: requests.jsonl of the world."""
    held_out = requests_of(requests, "test")
    tables = {name: scored(Store(folder), held_out) for name, folder in folders.items()}
    seeds = min(len(table["index"].unique()) for table in tables.values())
    all_of_base = tables["base"]
    tables = {name: with_diversity(table[table["index"] < seeds], folders[name]) for name, table in tables.items()}
    tables[BEST] = best_of(all_of_base)
    tables |= {f"sampler: {name}": table for name, table in known(list(held_out.values())).items()}
    return pd.concat([table.assign(row=name) for name, table in tables.items()], ignore_index=True)


def scored(store: Store, held_out: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return request, index, scores and controls of the pictures of one model. held_out: all requests of their split."""
    table = store.candidates("own").frame(["id", "request_id", "index"]).rename(columns={"request_id": "request"})
    for score in SCORES:
        values = store.scores(score).frame(["id", "value", *(["text"] if score == "fidelity" else [])])
        table = table.merge(values.rename(columns={"value": score}), on="id", how="left", validate="one_to_one")
    controls = [others(text, held_out[request], held_out) for text, request in zip(table["text"], table["request"])]
    table[["rule_other", "palette_other"]] = np.array(controls)
    return table.drop(columns=["id", "text"]).sort_values(["request", "index"], ignore_index=True)


def others(text: str, row: Mapping[str, Any], held_out: Mapping[str, dict[str, Any]]) -> tuple[float, float]:
    """Return (rule_other, palette_other) of a picture. text: its description, such as `red dress on plain sky`."""
    colour, _, item = text.partition(" on ")[0].partition(" ")
    if colour not in COLOURS or item != asked(row["prompt"]).item:
        return 0.0, 0.0
    obeys = [goes_with(colour, other["colours"]) for name, other in held_out.items() if name != row["request_id"]]
    palettes = {other["user"]: colour in other["palette"] for other in held_out.values()}
    liked = [value for user, value in palettes.items() if user != row["user"]]
    return float(np.mean(obeys)), float(np.mean(liked)) if liked else float("nan")


def with_diversity(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the table with the column `diversity`."""
    wanted, seeds = set(table["request"]), int(table["index"].max()) + 1
    groups: dict[str, list[np.ndarray]] = {}
    for (request, _), image in images(Store(folder), "own", wanted, seeds):
        groups.setdefault(request, []).append(thumbnail(image) / 255.0)
    values = {request: diversity(np.stack(group)) for request, group in groups.items()}
    return table.assign(diversity=table["request"].map(values))


def best_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the picture of each request with the largest sum of the experts, each centred and scaled as in `ours`."""
    groups = table["request"].factorize()[0]
    total = sum(normalise(table[expert].to_numpy(), groups, "centred") for expert in EXPERTS)
    return table.loc[pd.Series(total, table.index).groupby(table["request"]).idxmax()]


def known(rows: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return the exact shares of samplers of colours (samplers.py), one line per request."""
    names = [row["request_id"] for row in rows]
    return {
        name.partition(" (")[0]: pd.DataFrame(shares[:, :2], columns=["rule", "palette"]).assign(request=names, index=0)
        for name, shares in measured_per_request(rows).items()
    }


def training(rounds: Sequence[Path], requests: Path) -> pd.DataFrame:
    """Return the mean scores and controls of the candidates of each round, on training requests."""
    train = requests_of(requests, "train")
    means = [scored(Store(folder), train).drop(columns=["request", "index"]).mean() for folder in rounds]
    return pd.DataFrame(means).assign(round=range(1, len(rounds) + 1))


def requests_of(path: Path, split: str) -> dict[str, dict[str, Any]]:
    """Return {id: row} of the requests of a split. path: requests.jsonl of the world."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["request_id"]: row for row in rows if row["split"] == split}


def pairs(round: Path) -> pd.DataFrame:
    """Return, for each set of pairs of a round, how often the winner obeys the rule (or is in the palette) and the loser not."""
    run = Run(round)
    scores = run.scores().set_index("id")
    found = []
    for name in run.store.names("pairs"):
        table = run.pairs(name)
        first, second = table["candidate_0"], table["candidate_1"]
        win, lose = (first.where(table[f"label_{side}"] == 1, second) for side in (0, 1))
        row: dict[str, Any] = {"pairs": name, "number": len(table), "requests": table["request_id"].nunique()}
        for score in SCORES:
            gap = scores[score].reindex(win).to_numpy() - scores[score].reindex(lose).to_numpy()
            row |= {f"{score} better": (gap > 0).mean(), f"{score} worse": (gap < 0).mean()}
        found.append(row)
    return pd.DataFrame(found)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file in one step."""
    partial = path.with_suffix(".partial")
    table.to_csv(partial, index=False, float_format="%.6g")
    partial.rename(path)
