"""The table of benchmarks/gpu.py, and the goals beside what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from on_gpu.rows import rows

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def summarised(done: dict[str, dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The table's rows. Shares and gaps need other rows' results."""
    every = {row.name: row for row in rows()}
    rates = done.get("matrix products", {}).get("rates", {})
    compared = gaps(done, out)
    table = []
    for name, found in done.items():
        row = every[name]
        line: dict[str, Any] = {"row": name}
        if found.get("unit"):
            line |= {"time": f"{found['seconds']:.4g} s", "per": found["unit"]}
        if "peak" in found:
            line["GiB"] = f"{found['peak'] / GIB:.2f}"
        if found.get("useful") and row.precision in rates:
            line["rate"] = f"{found['useful'] / found['seconds'] / rates[row.precision]:.1%}"
        if "loss" in found:
            line |= {"loss": f"{found['loss']:.5f}"}
        if name in compared:
            line["gap"] = f"{compared[name]:.2g}"
        line["remarks"] = remarks(found)
        table.append(line)
    return table


def remarks(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"failed: {found['error']}".replace("|", "/")
    notes = [f"{name}: {value / 1e12:.1f} TFLOP/s" for name, value in found.get("rates", {}).items()]
    notes += [f"{name} {value:.3g} s" for name, value in found.get("parts", {}).items()]
    names = ("gap of bf16", "gap of seeds", "seconds of scoring")
    return "; ".join(notes + [f"{name} {found[name]:.3g}" for name in names if name in found])


def gaps(done: dict[str, dict[str, Any]], out: Path) -> dict[str, float]:
    """Row -> relative distance of its gradient from the CPU's."""
    known = {name: out / found["gradient"] for name, found in done.items() if "gradient" in found}
    base = known.pop("sd15 cpu reference", None)
    if base is None or not known:
        return {}
    import numpy as np
    from safetensors.numpy import load_file

    true = load_file(base)["gradient"]
    size = float(np.linalg.norm(true))
    return {name: float(np.linalg.norm(load_file(path)["gradient"] - true)) / size for name, path in known.items()}


def goals(done: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals beside what was measured."""

    def ratio(above: str, below: str, key: str = "seconds") -> float | None:
        values = [done.get(name, {}).get(key) for name in (above, below)]
        return values[0] / values[1] if all(values) else None

    script, own = "sd15 script fp32", "sd15 dpo fp32"
    speed = [
        ("steps per second, fp32, to the script's fp32", 1.3, ratio(script, own)),
        ("the same in bf16", 1.3, ratio("sd15 script bf16", "sd15 dpo bf16")),
        ("fp32 with cache_reference to the script's fp32", 1.6, ratio(script, f"{own} cache_reference")),
        ("bf16, prefkit's default, to the script's default fp32", 2.5, ratio(script, "sd15 dpo bf16")),
    ]
    table = [
        goal(text, f"at least {wanted}", value, value is not None and value >= wanted) for text, wanted, value in speed
    ]
    lean = ratio("sd15 dpo bf16 lean", "sd15 script bf16 lean", "peak")
    table.append(
        goal("peak memory, lean, to the script's, lean", "at most 0.75", lean, lean is not None and lean <= 0.75)
    )
    for row in rows():
        if row.estimate and done.get(row.name, {}).get("peak"):
            value = done[row.name]["peak"] / GIB / estimate(row.estimate)
            table.append(
                goal(f"peak memory of {row.estimate} to its estimate", "0.85 to 1.15", value, abs(value - 1) <= 0.15)
            )
    found = done.get("sd15 trajectory", {})
    spread = found["gap of bf16"] / found["gap of seeds"] if found.get("gap of seeds") else None
    text = "losses of bf16 against fp32, to the gap of two seeds"
    return [*table, goal(text, "at most 1", spread, spread is not None and spread <= 1)]


def goal(text: str, wanted: str, value: float | None, reached: bool) -> dict[str, Any]:
    state = "not measured" if value is None else "yes" if reached else "NO"
    return {"goal": text, "wanted": wanted, "measured": "-" if value is None else f"{value:.2f}", "reached": state}


def estimate(recipe: str) -> float:
    """GiB that the shipped recipe states, as benchmarks/memory.py estimated it."""
    text = (ROOT / "pipelines" / f"{recipe}.yaml").read_text(encoding="utf-8")
    found = re.search(r"([\d.]+) GiB in training", text)
    assert found is not None, recipe
    return float(found[1])


def markdown(lines: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    table = [columns, ["---"] * len(columns), *([str(line.get(key, "")) for key in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def write(out: Path, machine: dict[str, Any], done: dict[str, dict[str, Any]], missing: Sequence[str]) -> str:
    """Write gpu.json and gpu.md; return the text of the latter."""
    table, reached = summarised(done, out), goals(done)
    text = "; ".join(f"{key} {value}" for key, value in machine.items())
    text += f"\n\n{markdown(table)}\n\n{markdown(reached)}\n"
    if missing:
        text += f"\nNot run: {', '.join(missing)}.\n"
    (out / "gpu.json").write_text(
        json.dumps({"machine": machine, "rows": done, "goals": reached}, indent=1), encoding="utf-8"
    )
    (out / "gpu.md").write_text(text, encoding="utf-8")
    return text
