"""Tables of the mesh study: means over seeds, and paired bootstrap intervals of the change against the base model.

    python pipelines/mesh/tables.py DATA WORK

A change is the mean over test pictures of (row - base), averaged over seeds first; the interval, 95 %, is over 2,000 bootstrap
samples of the pictures. It does not cover the variation between seeds: `seeds` shows the change of each seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from evaluate import sets

COLUMNS = (
    "zero", "mean", "best", "joint_mean", "selected", "ruled", "pa", "mpvpe", "px", "spread", "zero_seen", "zero_hidden",
)  # fmt: skip
SAMPLES = 2000
MEASURES = (
    "srcc", "srcc_reprojection", "pair_accuracy", "pair_accuracy_reprojection", "selected", "selected_reprojection", "random",
    "oracle", "pooled_plcc_mpjpe", "pooled_plcc_mpjpe_reprojection", "pooled_srcc_mpjpe", "pooled_srcc_mpjpe_reprojection",
)  # fmt: skip
TITLES = {"test_procedural": "Held-out procedural poses", "test_motion": "Motion clips"}


class Errors:
    """The errors of all seeds: (set, steps, row, column) -> [seeds, pictures]."""

    def __init__(self, work: Path, seeds: Sequence[int]) -> None:
        files = [np.load(work / f"errors-{seed}.npz") for seed in seeds]
        self.values = {key: np.stack([file[key] for file in files]) for key in files[0].files}

    def of(self, where: str, row: str, column: str) -> np.ndarray | None:
        return self.values.get(f"{where}/{row}/{column}")

    def rows(self, where: str) -> list[str]:
        return list(dict.fromkeys(key.split("/")[2] for key in self.values if key.startswith(f"{where}/")))


def interval(change: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return mean, and the 95 % bootstrap interval, of per-picture values [N]; NaN counts as missing."""
    change = change[~np.isnan(change)]
    means = change[rng.integers(len(change), size=(SAMPLES, len(change)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(change.mean()), float(low), float(high)


def table(errors: Errors, where: str, mask: np.ndarray) -> list[str]:
    """Return the Markdown table of one set and number of steps, over the pictures of `mask`."""
    rng = np.random.default_rng(0)
    lines = ["| row | " + " | ".join(COLUMNS) + " | seeds |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in errors.rows(where):
        cells = []
        for column in COLUMNS:
            values, base = errors.of(where, row, column), errors.of(where, "base", column)
            if values is None or base is None:
                cells.append("")
            elif row == "base":
                cells.append(f"{np.nanmean(values[:, mask]):.1f}")
            else:
                mean, low, high = interval((values - base)[:, mask].mean(0), rng)
                bold = "**" if high < 0 or low > 0 else ""
                cells.append(f"{bold}{mean:+.1f}{bold} [{low:+.1f}, {high:+.1f}]")
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {per_seed(errors, where, row, mask)} |")
    return lines


def per_seed(errors: Errors, where: str, row: str, mask: np.ndarray) -> str:
    """Return the change of `zero` for each seed; for the base, its values."""
    values, base = errors.of(where, row, "zero"), errors.of(where, "base", "zero")
    assert values is not None and base is not None
    if row == "base":
        return ", ".join(f"{v:.0f}" for v in base[:, mask].mean(1))
    return ", ".join(f"{v:+.1f}" for v in (values - base)[:, mask].mean(1))


def blazepose(errors: Errors, name: str, mask: np.ndarray) -> str:
    """Return a sentence that compares the errors of the detector's own 3D joints with those of the base model."""
    rng = np.random.default_rng(0)
    parts = []
    for column in ("zero", "pa"):
        own, base = errors.of(f"{name}/0", "blazepose", column), errors.of(f"{name}/4", "base", column)
        if own is None or base is None:
            return ""
        mean, low, high = interval((base - own)[:, mask].mean(0), rng)
        label = "MPJPE" if column == "zero" else "PA-MPJPE"
        parts.append(
            f"{label} {own[:, mask].mean():.1f} mm (base minus BlazePose {mean:+.1f} [{low:+.1f}, {high:+.1f}])"
        )
    return f"BlazePose's own 3D: {'; '.join(parts)}."


def scorers(work: Path, seeds: Sequence[int]) -> list[str]:
    """Return a table of the held-out measures of the fitted scorers, as `prefkit fit mesh` wrote them."""
    lines = ["| measure | " + " | ".join(f"seed {seed}" for seed in seeds) + " |", "|---" * (len(seeds) + 1) + "|"]
    specs = [json.loads((work / f"scorer-{seed}" / "spec.json").read_text(encoding="utf-8")) for seed in seeds]
    for name in MEASURES:
        cells = [interval_of(spec["validation"][name]) for spec in specs if name in spec["validation"]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def interval_of(value: dict[str, float]) -> str:
    digits = 1 if abs(value["mean"]) > 2 else 3
    text = f"{value['mean']:.{digits}f}"
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" if "low" in value else text


def write_tables(work: Path, data: Path, seeds: Sequence[int], note: str = "") -> None:
    """Write WORK/results.md. note: a first line."""
    errors = Errors(work, seeds)
    lines = [note, ""] if note else []
    for file in sets(data):
        name, title = file.stem, TITLES[file.stem]
        occluded = np.array(pq.read_table(file, columns=["occluded"])["occluded"].to_pylist(), bool)
        for label, mask in (("clean", ~occluded), ("occluded", occluded)):
            for steps in (4, 10):
                lines += [f"### {title}, {label}, {steps} steps", "", *table(errors, f"{name}/{steps}", mask), ""]
            lines += [blazepose(errors, name, mask), ""]
    lines += ["### Scorer", "", *scorers(work, seeds), ""]
    (work / "results.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    seeds = sorted(int(path.stem.split("-")[1]) for path in args.work.glob("errors-?.npz"))
    write_tables(args.work, args.data, seeds)


if __name__ == "__main__":
    main()
