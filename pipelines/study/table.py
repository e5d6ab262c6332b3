"""Make the tables of a study from its cells: gains per request, percentile-bootstrap intervals, README.md's rule."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.evaluate.run import values
from prefkit.evaluate.statistics import bootstrap_interval
from prefkit.store import Store
from prefkit.store.files import read_json

DIVERSE = 0.9  # minimum fraction of the base's background diversity


def outcome(store: Store, where: str, models: list[str], rows: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Return each model's gains (mean and per request) and distance moved. rows: model -> its part of result.json."""
    base = Store(store.eval(where) / where / "base")
    wanted = set(base.candidates("own").frame(["request_id"]).request_id)
    found: dict[str, Any] = {"models": {}, "base": {}, "best_of": {}}
    for model in models:
        folder, row = Store(store.eval(where) / where / model), rows[model]
        gains = {alias: gain_of(base, folder, alias, wanted, seeds) for alias in ("palette", "fidelity", "taste")}
        differ = row["palette"]["aspects"].get("which_background", {})
        found["models"][model] = {
            "gain": float(np.mean(list(gains["palette"].values()))),
            "gain_fidelity": float(np.mean(list(gains["fidelity"].values()))),
            "gains": gains,
            "moved": row["palette"]["moved"] / row["palette"]["seed_distance"],
            "diversity": ratio(differ.get("differ_tuned"), differ.get("differ_base")),
            "image_diversity": ratio(row["palette"]["diversity_tuned"], row["palette"]["diversity_base"]),
        }
    found["base"] = {
        alias: float(np.mean(list(means(base, alias, wanted, seeds).values()))) for alias in ("palette", "fidelity")
    }
    drawn = [values(base, "own", alias, wanted) for alias in ("taste", "palette", "fidelity")]
    found["best_of"] = best_of(*drawn)
    return found


def means(folder: Store, alias: str, wanted: set[str], seeds: int) -> dict[str, float]:
    """Return request -> mean score over its first `seeds` images."""
    frame = values(folder, "own", alias, wanted)
    return frame[frame["index"] < seeds].groupby("request_id").value.mean().to_dict()


def gain_of(base: Store, tuned: Store, alias: str, wanted: set[str], seeds: int) -> dict[str, float]:
    """Return request -> mean score of tuned minus that of base, on the same image seeds."""
    before, after = (means(folder, alias, wanted, seeds) for folder in (base, tuned))
    return {request: after[request] - before[request] for request in sorted(after)}


def ratio(tuned: float | None, base: float | None) -> float | None:
    return tuned / base if tuned is not None and base else None


def best_of(reward: Any, *judges: Any) -> dict[str, list[dict[str, float]]]:
    """Return N -> per judge, request -> expected judge score of the image with the highest reward among N base images.

    Exact over all choices of N from m images: the k-th best (from 0) is the best of N in C(m-1-k, N-1) of C(m, N)
    choices.
    """
    order = reward.sort_values(["request_id", "value"], ascending=[True, False])
    m = int(order.groupby("request_id").size().min())
    found: dict[str, list[dict[str, float]]] = {}
    for n in range(1, m + 1):
        weight = np.array([comb(m - 1 - k, n - 1) / comb(m, n) for k in range(m)])
        found[str(n)] = []
        for judge in judges:
            ranked = order[["id", "request_id"]].merge(judge[["id", "value"]], on="id", how="left")
            found[str(n)].append(
                {r: float(v.to_numpy(float)[:m] @ weight) for r, v in ranked.groupby("request_id").value}
            )
    return found


def chosen(tried: Sequence[Sequence[dict[str, Any]]]) -> int:
    """Return the strength (index into tried, the first of equals) with the largest gain summed over both judges."""

    def gained(cells: Sequence[dict[str, Any]]) -> float:
        main = [next(iter(cell["models"].values())) for cell in cells]
        return float(np.mean([m["gain"] + m["gain_fidelity"] for m in main]))

    return int(np.argmax([gained(cells) for cells in tried]))


# -- the table ----------------------------------------------------------------------------------------------------
def by_request(cells: Sequence[dict[str, Any]], alias: str) -> np.ndarray:
    """Return the gain per request, [requests], averaged over the cells (one per seed)."""
    names = sorted(cells[0]["gains"][alias])
    return np.array([[cell["gains"][alias][name] for name in names] for cell in cells]).mean(axis=0)


def row_of(
    name: str,
    cells: list[dict[str, Any]],
    controls: dict[str, list[dict[str, Any]]],
    dpo: list[dict[str, Any]],
    gate: float,
) -> dict[str, Any]:
    """Return a table row: gains with intervals over requests, their range over seeds, and the verdict of the rule.

    dpo: the cells of dpo on the first strategy, with which the gain is also compared request by request.
    """
    gain, kept = by_request(cells, "palette"), by_request(cells, "fidelity")
    low, high = bootstrap_interval(gain)
    low_kept, high_kept = bootstrap_interval(kept)
    over = gain - by_request(dpo, "palette")
    low_over, high_over = bootstrap_interval(over)
    each = [bootstrap_interval(by_request([cell], "palette"))[0] for cell in cells]
    beats = {control: bootstrap_interval(gain - by_request(found, "palette"))[0] for control, found in controls.items()}
    diverse = [cell["diversity"] for cell in cells if cell["diversity"] is not None]
    moved = min(cell["moved"] for cell in cells)
    failed = [f"seed {i} not above 0" for i, value in enumerate(each) if value <= 0]
    failed += [f"not above {control}" for control, value in beats.items() if value <= 0]
    failed += ["loses prompt fulfilment"] * (high_kept < 0)
    failed += ["backgrounds less diverse"] * (not diverse or float(np.mean(diverse)) < DIVERSE)
    failed += [f"moved by less than {gate:g} seed distances"] * (moved < gate)
    return {
        "cell": name,
        "seeds": len(cells),
        "gain": gain.mean(),
        "low": low,
        "high": high,
        "seed_min": min(cell["gain"] for cell in cells),
        "seed_max": max(cell["gain"] for cell in cells),
        "over_dpo": over.mean(),
        "over_dpo_low": low_over,
        "over_dpo_high": high_over,
        "fidelity": kept.mean(),
        "fidelity_low": low_kept,
        "fidelity_high": high_kept,
        "background_diversity": float(np.mean(diverse)) if diverse else None,
        "image_diversity": float(np.mean([cell["image_diversity"] for cell in cells])),
        "moved": float(np.mean([cell["moved"] for cell in cells])),
        "reward": by_request(cells, "taste").mean(),
        "supported": "; ".join(failed) or "yes",
    }


def write_tables(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Write OUT/study.csv, study.md and grid.md from the held-out cells, and return the rows."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    bests: dict[int, dict[str, Any]] = {}
    for path in sorted((out / "cells").glob("*_test_*.json")):
        result = read_json(path)
        seed, strategy = result["cell"]["seed"], result["cell"]["strategy"]
        bests[seed] = result["best_of"]
        strength = settings["objectives"][result["cell"]["objective"]][result["cell"]["strength"]]
        text = ", ".join(f"{key} {value:g}" for key, value in strength.items())
        for model, values_ in result["models"].items():
            kind = model.partition("-")[2]
            label = f"control: {kind}" if kind else f"{result['cell']['objective']} ({text}), {strategy}"
            found.setdefault(label, {})[seed] = values_
    return publish(out, settings, found, bests)


def publish(
    out: Path, settings: dict[str, Any], found: dict[str, dict[int, Any]], bests: dict[int, Any]
) -> list[dict[str, Any]]:
    """Write the tables of the labels that have results from the most seeds; the other labels are still unfinished."""
    most = max((len(seeds) for seeds in found.values()), default=0)
    whole = {label: [seeds[s] for s in sorted(seeds)] for label, seeds in found.items() if len(seeds) == most}
    controls = {label.removeprefix("control: "): cells for label, cells in whole.items() if label.startswith("control")}
    dpo = next(
        (cells for name, cells in whole.items() if name.startswith("dpo (") and name.endswith(settings["first"])), None
    )
    if dpo is None:
        return []
    rows = [
        row_of(name, cells, {} if name.startswith("control") else controls, dpo, settings["gate"])
        for name, cells in whole.items()
    ]
    columns = list(rows[0])
    rows += [best_row(n, bests) for n in sorted({2, 4, 8} & {int(k) for b in bests.values() for k in b})]
    rows.sort(key=lambda row: -row["gain"])
    with (out / "study.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (out / "study.md").write_text(markdown(rows), encoding="utf-8")
    (out / "grid.md").write_text(grid(rows, list(settings["recipe"]["pair"])), encoding="utf-8")
    return rows


def best_row(n: int, bests: dict[int, Any]) -> dict[str, Any]:
    """Return the row of the base's best of n by the reward, as scored by the judges: choosing instead of training."""

    def gains(judge: int) -> np.ndarray:
        names = sorted(next(iter(bests.values()))["1"][judge])
        return np.array([[b[str(n)][judge][r] - b["1"][judge][r] for r in names] for b in bests.values()]).mean(axis=0)

    gain, kept = gains(0), gains(1)
    (low, high), (low_kept, high_kept) = bootstrap_interval(gain), bootstrap_interval(kept)
    empty = dict.fromkeys(["seed_min", "seed_max", "over_dpo", "over_dpo_low", "over_dpo_high"])
    empty |= dict.fromkeys(["background_diversity", "image_diversity", "moved", "reward"])
    return (
        {
            "cell": f"control: best of {n} of the base by the reward",
            "seeds": len(bests),
            "gain": gain.mean(),
            "low": low,
            "high": high,
            "fidelity": kept.mean(),
            "fidelity_low": low_kept,
            "fidelity_high": high_kept,
        }
        | empty
        | {"supported": ""}
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| cell | in the user's colours, gain [95 %] | of single seeds | minus dpo [95 %] | prompt fulfilled [95 %] | backgrounds | moved | supported |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        trained = r["seed_min"] is not None
        shown = [
            r["cell"],
            interval(r, "gain", "low", "high"),
            f"{r['seed_min']:+.2f} to {r['seed_max']:+.2f}" if trained else "",
            interval(r, "over_dpo", "over_dpo_low", "over_dpo_high") if r["over_dpo"] else "",
            interval(r, "fidelity", "fidelity_low", "fidelity_high"),
            "" if r["background_diversity"] is None else f"{r['background_diversity']:.2f}",
            f"{r['moved']:.2f}" if trained else "",
            "" if r["cell"].startswith("control") else r["supported"],
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def grid(rows: list[dict[str, Any]], strategies: list[str]) -> str:
    """Return a Markdown grid of gains, objectives by strategies; a star marks a gain over dpo with interval above 0."""
    found: dict[str, dict[str, str]] = {}
    for r in rows:
        objective, _, strategy = r["cell"].rpartition(", ")
        if strategy in strategies:
            star = "\\*" if r["over_dpo"] and r["over_dpo_low"] > 0 else ""
            found.setdefault(objective, {})[strategy] = interval(r, "gain", "low", "high") + star
    lines = [f"| | {' | '.join(strategies)} |", "|---" * (len(strategies) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.get(s, '') for s in strategies)} |" for name, cells in found.items()]
    return "\n".join(lines) + "\n"


def interval(row: dict[str, Any], *keys: str) -> str:
    value, low, high = (row[key] for key in keys)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
