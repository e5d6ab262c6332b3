"""Exact shares of the synthetic world's requests that samplers of colours win: upper bounds and blind baselines.

A sampler maps a request to probabilities of colours. Its share is computed, not drawn: the mean over requests of the
probability that its colour obeys the rule (rule.py), is in the user's palette, or both. A picture of another item, which a
real generator also draws, would count as a miss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rule import COLOURED, goes_with, set_obeys

from prefkit.errors import UsageError
from prefkit.tiny.captions import asked
from prefkit.tiny.domain import COLOURS
from prefkit.tiny.rules import compatible

Draw = Mapping[str, float]  # colour -> probability
Rows = list[dict[str, Any]]


def even(colours: Sequence[str]) -> Draw:
    return {colour: 1 / len(colours) for colour in colours}


def fitting(row: Mapping[str, Any]) -> list[str]:
    return [colour for colour in COLOURED if goes_with(colour, row["colours"])]


def samplers(rows: Rows) -> dict[str, Callable[[int], Draw]]:
    """Name -> function from a request's number to the probabilities of colours."""

    def liked(n: int) -> list[str]:
        return [c for c in fitting(rows[n]) if c in rows[n]["palette"]] or fitting(rows[n])

    shares = {colour: sum(colour in fitting(row) for row in rows) for colour in COLOURED}
    best = max(shares, key=lambda colour: shares[colour])
    other = [rows[(n + 1) % len(rows)] for n in range(len(rows))]
    return {
        "knows the rule and the palette": lambda n: even(liked(n)),
        "knows the rule": lambda n: even(fitting(rows[n])),
        "copies the named colour": lambda n: {_named(rows[n]): 1.0},
        "goes with the named colour": lambda n: even([c for c in COLOURED if compatible(c, _named(rows[n]))]),
        "knows the rule, other outfit": lambda n: even(fitting(other[n])),
        "knows the palette": lambda n: even(rows[n]["palette"]),
        f"best fixed colour ({best})": lambda n: {best: 1.0},
        "seven colours": lambda n: even(COLOURED),
        "ten colours": lambda n: even(tuple(COLOURS)),
    }


def _named(row: Mapping[str, Any]) -> str:
    beside = asked(row["prompt"]).beside
    if beside is None:
        raise UsageError(f"{row['request_id']}: the prompt names no other item.")
    return beside[1]


def measure_pfitb(rows: Rows) -> dict[str, tuple[float, float, float]]:
    """Sampler -> expected shares of requests (obeys the rule, in the palette, both)."""
    return {name: tuple(np.mean(shares, 0).tolist()) for name, shares in measured_per_request(rows).items()}


def measured_per_request(rows: Rows) -> dict[str, np.ndarray]:
    """Sampler -> [requests, 3] the same for each request."""
    return {
        name: np.array([_expected(row, draw(n)) for n, row in enumerate(rows)]) for name, draw in samplers(rows).items()
    }


def _expected(row: Mapping[str, Any], draw: Draw) -> tuple[float, float, float]:
    obeys = {c: goes_with(c, row["colours"]) for c in draw}
    liked = {c: c in row["palette"] for c in draw}
    events = (obeys, liked, {c: obeys[c] and liked[c] for c in draw})
    return tuple(sum(p for c, p in draw.items() if event[c]) for event in events)  # type: ignore[return-value]


def measure_gor(rows: Rows) -> dict[str, float]:
    """Sampler -> expected share of outfits whose four colours obey `rule.set_obeys`."""
    palettes = list({row["outfit_id"]: tuple(row["palette"]) for row in rows}.values())
    fixed = {c: float(np.mean([set_obeys([c] * 4, palette) for palette in palettes])) for c in COLOURED}
    best = max(fixed, key=lambda colour: fixed[colour])

    def independent(colours: Sequence[str], palette: Sequence[str]) -> float:
        inside = [c for c in colours if c in palette]
        return sum(set_obeys(drawn, palette) for drawn in product(inside, repeat=4)) / len(colours) ** 4

    return {
        "knows the rule and the palette": float(np.mean([set_obeys(p[:1] * 4, p) for p in palettes])),
        "knows the palette": float(np.mean([independent(p, p) for p in palettes])),
        f"best fixed colour ({best})": fixed[best],
        "seven colours": float(np.mean([independent(COLOURED, p) for p in palettes])),
    }


def report(folder: Path) -> str:
    """Return the shares of all samplers, per split."""
    lines = []
    for split in ("train", "test"):
        rows = [row for row in _read(folder / "requests.jsonl") if row["split"] == split]
        lines += [f"PFITB, {split}: {len(rows)} requests", f"{'':36}rule   palette  both"]
        lines += [f"  {name:34}" + "".join(f"{x:<8.3f}" for x in row) for name, row in measure_pfitb(rows).items()]
        sets = [row for row in _read(folder / "gor.jsonl") if row["split"] == split]
        lines += [f"GOR, {split}: {len(sets) // 4} outfits", f"{'':36}rule and palette"]
        lines += [f"  {name:34}{share:.3f}" for name, share in measure_gor(sets).items()]
    return "\n".join(lines)


def _read(path: Path) -> Rows:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read. Write the world first, without --measure.") from error
