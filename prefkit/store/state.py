"""Counts of what a run folder holds. Reads ids, splits and Parquet footers; never an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DamagedError
from prefkit.store.files import read_json
from prefkit.store.lines import read_lines
from prefkit.store.seal import open_sealed

if TYPE_CHECKING:
    from prefkit.store import Store


def status(store: Store) -> dict[str, Any]:
    """JSON-able counts by table. A stage that has not run yet has an empty entry.

    requests {split: n}; candidates {generator: {done, failed}}; scores {alias: {done, failed}};
    pairs {name: {split: n}}; train {name: {step, steps, final}}; eval {name: {done, sets}};
    decisions {verdict: n}.
    """
    return {
        "run": str(store.folder),
        "requests": _requests(store),
        "candidates": {name: _candidates(store, name) for name in store.names("candidates")},
        "scores": {name: _scores(store, name) for name in store.names("scores")},
        "pairs": {name: pair_counts(store.pairs(name)) for name in store.names("pairs")},
        "train": {name: _train(store.train(name)) for name in store.names("train")},
        "eval": {name: _eval(store.eval(name)) for name in store.names("eval")},
        "decisions": {str(k): int(n) for k, n in store.decisions().verdict.value_counts().items()},
    }


def pair_parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.parquet"))


def pair_counts(folder: Path) -> dict[str, int]:
    """Rows per split, from the footers. Raises StoreError where a file is damaged."""
    import pyarrow as pa

    found: dict[str, int] = {}
    for path in pair_parts(folder):
        try:
            with open_sealed(path, []) as file:
                found[path.parent.name] = found.get(path.parent.name, 0) + file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise damaged_pairs(path, error) from error
    return found


def damaged_pairs(path: Path, error: Exception) -> DamagedError:
    text = " ".join(str(error).split())[:160].rstrip(".")
    return DamagedError(path, f"{path} is damaged: {text}. Remove {path.parent.parent} and run `prefkit pair` again.")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that match their checksums; a last line that a kill cut short is left out."""
    return read_lines(folder / "metrics.jsonl")


def _requests(store: Store) -> dict[str, int]:
    found: dict[str, int] = {}
    for request in store.requests():
        found[request.split] = found.get(request.split, 0) + 1
    return found


def _candidates(store: Store, name: str) -> dict[str, int]:
    frame = store.candidates(name).frame(["id", "error"])
    failed = int(frame.error.notna().sum())
    return {"done": len(frame) - failed, "failed": failed}


def _scores(store: Store, name: str) -> dict[str, int]:
    frame = store.scores(name).frame(["id", "value"])
    failed = int(frame.value.isna().sum())
    return {"done": len(frame) - failed, "failed": failed}


def _train(folder: Path) -> dict[str, Any]:
    steps = [row["step"] for row in metrics(folder) if isinstance(row.get("step"), int)]
    return {"step": max(steps, default=0), "final": (folder / "final").exists()}


def _eval(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    done = path.exists()
    return {"done": done, "sets": sorted(read_json(path).get("sets", {})) if done else []}
