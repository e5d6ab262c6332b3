"""Shards by split, and the README.md that says which files are which split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefkit.store.files import write_atomic
from prefkit.store.parquet import Shards


class BySplit(dict[str, Shards]):
    """`writers[split]` is made when it is first asked for."""

    def __init__(self, make: Callable[[str], Shards]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, split: str) -> Shards:
        self[split] = self.make(split)
        return self[split]

    def close(self) -> dict[str, int]:
        """Rows per split."""
        for shards in self.values():
            shards.close()
        return {split: self[split].rows for split in sorted(self)}


def in_data(out: Path, schema: Any) -> BySplit:
    """OUT/data/SPLIT-00000.parquet and on."""
    return BySplit(lambda split: Shards(out / "data", schema, f"{split}-"))


def finish(writers: BySplit, out: Path, title: str, text: str) -> dict[str, Any]:
    """Close the shards and write the card. Returns rows per split, and as `pairs` their sum."""
    counts = writers.close()
    card(out, title, text, [(split, f"data/{split}-*.parquet") for split in counts])
    return {"pairs": sum(counts.values()), **counts}


def card(folder: Path, title: str, text: str, files: Sequence[tuple[str, str]]) -> None:
    """README.md with what `load_dataset` needs. files: (split, glob)."""
    import yaml

    data = [{"split": split, "path": path} for split, path in files]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": data}]}, sort_keys=False)
    write_atomic(folder / "README.md", f"---\n{head}---\n\n# {title}\n\n{text}\n")
