"""Tables of the study: means over the held-out requests of all seeds, and changes against the base model.

A value is the mean over requests of the mean over a request's pictures. A change is the mean over requests of (row - base);
its interval, 95 %, is over 2,000 bootstrap samples of the requests, drawn within each seed. It does not cover the variation
between seeds: the last table has the changes of each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from outcome import BEST, EXPERTS, NAMES

from prefkit.errors import UsageError

SAMPLES = 2000
COLUMNS = ("rule", "rule_other", "gap", "palette", "palette_other", "fidelity", "probe", "diversity")
KEYS = ["seed", "request"]


def written(work: Path, fast: bool = False) -> str:
    """Write WORK/results.md, the tables of all seeds that are finished, and return it. Raises UsageError without one."""
    files = sorted(path for path in work.glob("seed-*.csv") if path.stem[5:].isdigit())
    if not files:
        raise UsageError(f"{work} has no results. Run a seed first: study.py {work} --seed 0")
    seeds = [int(path.stem[5:]) for path in files]
    pictures = pd.concat([pd.read_csv(path).assign(seed=seed) for path, seed in zip(files, seeds)])
    pairs = pd.concat([pd.read_csv(work / f"seed-{seed}-pairs.csv").assign(seed=seed) for seed in seeds])
    values = per_request(pictures)
    rounds = pd.concat([pd.read_csv(work / f"seed-{seed}-rounds.csv").assign(seed=seed) for seed in seeds])
    parts = [
        "Made with --fast: the numbers mean nothing." if fast else f"Seeds {', '.join(map(str, seeds))}.",
        "### Held-out requests\n\n" + changes(values, COLUMNS, unit_of=()),
        "### Experts, in units of the base's std over pictures\n\n"
        + changes(values, EXPERTS, unit_of=EXPERTS, std=pictures[pictures["row"] == "base"]),
        "### Pairs of round 1\n\n" + of_pairs(pairs),
        "### Training requests: the candidates of `ours`\n\n" + of_training(rounds),
        *(f"### Change of `{column}`, by seed\n\n" + by_seed(values, column) for column in ("rule", "gap")),
        *of_probe(work / f"seed-{seeds[0]}" / "probe.npz"),
    ]
    text = "\n\n".join(parts) + "\n"
    (work / "results.md").write_text(text, encoding="utf-8")
    return text


def per_request(pictures: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each request's pictures, by (row, seed, request). gap: `rule` - `rule_other`, the use of the outfit."""
    values = pictures.drop(columns="index").groupby(["row", *KEYS]).mean()
    return values.assign(gap=values["rule"] - values["rule_other"])


def rows_of(values: pd.DataFrame) -> list[str]:
    """Return the rows in the order of the tables."""
    found = set(values.index.get_level_values("row"))
    names = list(NAMES.values())
    later = sorted(row for row in found if row.startswith("ours, round ") and row not in names)
    known = [*names[:2], *later, *names[2:], BEST]
    return [row for row in known if row in found] + sorted(found - set(known))


def difference(values: pd.DataFrame, row: str, column: str) -> pd.Series:
    """Return row - base of each request that has both, indexed by (seed, request)."""
    return (values.loc[row, column] - values.loc["base", column]).dropna()


def interval(change: pd.Series) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean, over requests within each seed."""
    rng = np.random.default_rng(0)
    groups = [group.to_numpy() for _, group in change.groupby(level="seed")]
    sums = sum(group[rng.integers(len(group), size=(SAMPLES, len(group)))].sum(1) for group in groups)
    low, high = np.percentile(sums / len(change), [2.5, 97.5])
    return float(low), float(high)


def changes(
    values: pd.DataFrame, columns: Sequence[str], unit_of: Sequence[str], std: pd.DataFrame | None = None
) -> str:
    """Return a table of rows and columns. Columns in unit_of show only changes, divided by their std in the table `std`."""
    lines = []
    for row in rows_of(values):
        cells = []
        for column in columns:
            if column not in values or values.loc[row, column].isna().all():
                cells.append("")
                continue
            unit = float(std[column].std()) if std is not None and column in unit_of else 1.0
            mean = f"{values.loc[row, column].mean():.3f}"
            if row == "base":
                cells.append("0" if column in unit_of else mean)
                continue
            change = difference(values, row, column) / unit
            low, high = interval(change)
            text = f"{change.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            text = f"**{text}**" if low > 0 or high < 0 else text
            cells.append(text if column in unit_of else f"{mean}, {text}")
        if any(cells):
            lines.append([row, *cells])
    return table(["row", *columns], lines)


def of_training(rounds: pd.DataFrame) -> str:
    """Return means over seeds of the candidates of each round, which the model before that round made."""
    means = rounds.groupby("round")[["rule", "rule_other", "palette", "fidelity"]].mean()
    lines = [[str(name), *(f"{value:.3f}" for value in row)] for name, row in means.iterrows()]
    return table(["candidates of round", *means.columns], lines)


def of_pairs(pairs: pd.DataFrame) -> str:
    """Return, for each set of pairs, means over seeds of how often winner and loser differ in the program's reading."""
    means = pairs.groupby("pairs", sort=False).mean(numeric_only=True)
    heads = [
        "pairs",
        "number",
        "requests",
        *(f"{name}: winner / loser better" for name in ("rule", "palette", "fidelity")),
    ]
    lines = []
    for name, row in means.iterrows():
        shares = [f"{row[f'{c} better']:.3f} / {row[f'{c} worse']:.3f}" for c in ("rule", "palette", "fidelity")]
        lines.append([str(name), f"{row['number']:.0f}", f"{row['requests']:.0f}", *shares])
    return table(heads, lines)


def by_seed(values: pd.DataFrame, column: str) -> str:
    """Return the change of each row at each seed."""
    seeds = sorted(values.index.get_level_values("seed").unique())
    lines = []
    for row in rows_of(values):
        if row != "base" and not row.startswith("sampler"):
            change = difference(values, row, column).groupby(level="seed").mean()
            lines.append([row, *(f"{change[seed]:+.3f}" if seed in change else "" for seed in seeds)])
    return table(["row", *(f"seed {seed}" for seed in seeds)], lines)


def of_probe(path: Path) -> list[str]:
    """Return a sentence on the accuracy of the probe; nothing without a probe."""
    if not path.exists():
        return []
    kept = np.load(path)
    shares = [f"{name} {value:.3f}" for name, value in zip(kept["names"].tolist(), kept["accuracy"])]
    return [f"Accuracy of the probe on held-out renders: {', '.join(shares)}."]


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
