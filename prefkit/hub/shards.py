"""Parquet shards for each split, and a README.md that assigns the files to splits for `load_dataset`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit.store.files import write_atomic
from prefkit.store.parquet import Shards


class BySplit(dict[str, Shards]):
    """Maps each split to its shards, which are created at the first access."""

    def __init__(self, make: Callable[[str], Shards]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, split: str) -> Shards:
        self[split] = self.make(split)
        return self[split]

    def close(self) -> dict[str, int]:
        """Finish all shards; return the number of rows per split."""
        for shards in self.values():
            shards.close()
        return {split: self[split].rows for split in sorted(self)}


def write_rows(
    rows: Iterable[tuple[str, dict[str, Any]]], features: Mapping[str, Any], out: Path, title: str, text: str
) -> dict[str, Any]:
    """Write the rows to numbered shards OUT/data/SPLIT-*.parquet, with a card. rows: (split, row). features: as for
    `datasets.Features`. Returns the number of rows per split, and their sum as `pairs`."""
    from datasets import Features

    schema = Features(features).arrow_schema
    writers = BySplit(lambda split: Shards(out / "data", schema, f"{split}-"))
    for split, row in rows:
        writers[split].put(row)
    counts = writers.close()
    card(out, title, text, [(split, f"data/{split}-*.parquet") for split in counts])
    return {"pairs": sum(counts.values()), **counts}


def card(
    folder: Path, title: str, text: str, files: Sequence[tuple[str, str]], features: Mapping[str, str] | None = None
) -> None:
    """Write README.md with the metadata that `load_dataset` reads. files: (split, glob).

    features: column -> dtype; `image` decodes bytes. If given, the config `bytes` reads the same files without it.
    """
    import yaml

    names = ["default", "bytes"] if features else ["default"]
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files]} for name in names
    ]
    metadata: dict[str, Any] = {"configs": configs}
    if features:
        columns = [{"name": name, "dtype": dtype} for name, dtype in features.items()]
        metadata["dataset_info"] = [{"config_name": "default", "features": columns}]
    head = yaml.safe_dump(metadata, sort_keys=False)
    write_atomic(folder / "README.md", f"---\n{head}---\n\n# {title}\n\n{text}\n")
