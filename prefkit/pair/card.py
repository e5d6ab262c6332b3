"""README.md of a pair set: the configs that `load_dataset` reads, and what was done, in numbers."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import yaml

from prefkit.config import Pair
from prefkit.pair.dataset import pair_schema


def card(
    name: str, splits: dict[str, int], spec: dict[str, Any], counts: dict[str, Any], config: Pair, warnings: list[str]
) -> str:
    numbers = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in counts.items() if key != "splits")
    warned = "".join(f"\n> {text}\n" for text in warnings)
    head = yaml.safe_dump(configs(splits, list(spec["scorers"]), counts, config), sort_keys=False)
    return f"""---
{head}---

# {name}

Preference pairs made with prefkit: strategy `{config.use}` {config.options or ""},
normalisation `{config.normalise}` per {config.scope}, missing scores `{config.missing}`.
{warned}
| | |
|---|---|
{numbers}

{_chosen_by(spec)}

`jpg_0` and `jpg_1` are encoded images, `label_0` and `label_1` are 1 for the winner and 0 for the loser (no ties),
`caption` is the prompt. Which side wins is decided by a hash. `candidate_0/1` name the images' candidates,
`score_<side>_<name>` their raw scores, `score_gap` {_gap(spec)}, `p` the probability that the winner wins. `audit.json` says how the pairs are spread, how the scorers agree, and what else predicts the winner.
"""


def _chosen_by(spec: dict[str, Any]) -> str:
    if "comparisons" in spec:
        return f"The winners follow from the verdicts in {', '.join(spec['comparisons'])}; no score chose them."
    rows = [
        f"| {alias} | {weight:g} | {spec['scorers'][alias].get('name')} {spec['scorers'][alias].get('version')} "
        f"| {spec['scorers'][alias].get('formula')} | {'higher' if spec['scorers'][alias].get('higher_is_better', True) else 'lower'} |"
        for alias, weight in spec["weights"].items()
    ]
    return "\n".join(["| score | weight | scorer | formula | better |", "|---|---|---|---|---|", *rows])


def _gap(spec: dict[str, Any]) -> str:
    if "comparisons" in spec:
        return "the winner's share of the votes minus the loser's (with `bradley_terry`: the difference of fitted strengths)"
    return "the difference of the combined score (the weighted mean of the normalised scores)"


def configs(splits: dict[str, int], aliases: list[str], counts: dict[str, Any], config: Pair) -> dict[str, Any]:
    """default; gallery: the same files with the images shown; ties and lists where there are any."""

    def files(folder: str = "") -> list[dict[str, str]]:
        return [{"split": split, "path": f"{folder}{split}/*.parquet"} for split in splits]

    found: list[dict[str, Any]] = [{"config_name": "default", "data_files": files()}]
    head: dict[str, Any] = {"configs": found}
    if config.embed:
        found.append({"config_name": "gallery", "data_files": files()})
        kinds = [{"name": f.name, "dtype": _dtype(f.type)} for f in pair_schema(aliases)]
        head["dataset_info"] = [{"config_name": "gallery", "features": kinds}]
    for extra in ("ties", "lists"):
        there = counts.get(f"{extra}_splits") or []
        if there:
            paths = [{"split": split, "path": f"{extra}/{split}/*.parquet"} for split in there]
            found.append({"config_name": extra, "data_files": paths})
    return head


def _dtype(kind: pa.DataType) -> str:
    return "image" if pa.types.is_binary(kind) else {"double": "float64"}.get(str(kind), str(kind))
