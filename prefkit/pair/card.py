"""Write the README.md (dataset card) of a pair set: the configs for `load_dataset`, the settings, and the counts."""

from __future__ import annotations

from typing import Any

import yaml

from prefkit.config import Pair
from prefkit.pair.dataset import pair_schema
from prefkit.store.parquet import feature_dtype

MOST_ASPECTS = 20  # rows of the table of aspects


def card(
    name: str, splits: dict[str, int], spec: dict[str, Any], counts: dict[str, Any], config: Pair, warnings: list[str]
) -> str:
    """Return the dataset card as Markdown with YAML front matter."""
    shown = {key: value for key, value in counts.items() if key not in ("splits", "pairs_by_aspect")}
    numbers = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in shown.items())
    warned = "".join(f"\n> {text}\n" for text in warnings)
    head = yaml.safe_dump(_configs(splits, list(spec["scorers"]), counts, config), sort_keys=False)
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
{_aspects(counts)}
`jpg_0` and `jpg_1` are images (in the config `bytes`: encoded images, for Diffusion-DPO scripts), `label_0` and `label_1` are 1 for the winner and 0 for the loser (no ties),
`caption` is the prompt. A hash decides on which side the winner is. `candidate_0/1` are the ids of the images'
candidates, `score_<side>_<name>` their raw scores, `score_gap` {_gap(spec)}, `p` the probability that the winner wins.
`audit.json` holds the pairs per request, the agreement of the scorers, and the features that predict the winner.
"""


def _chosen_by(spec: dict[str, Any]) -> str:
    if "comparisons" in spec:
        return f"The winners were chosen by the verdicts in {', '.join(spec['comparisons'])}, not by scores."
    rows = []
    for alias, weight in spec["weights"].items():
        scorer = spec["scorers"][alias]
        better = "higher" if scorer.get("higher_is_better", True) else "lower"
        name = f"{scorer.get('name')} {scorer.get('version')}"
        rows.append(f"| {alias} | {weight:g} | {name} | {scorer.get('formula')} | {better} |")
    return "\n".join(["| score | weight | scorer | formula | better |", "|---|---|---|---|---|", *rows])


def _aspects(counts: dict[str, Any]) -> str:
    """Return the table of the aspects in which the pairs differ, or "" if the strategy does not compare aspects."""
    by_aspect = counts.get("pairs_by_aspect")
    if not by_aspect:
        return ""
    rows = [f"| {name} | {count} |" for name, count in list(by_aspect.items())[:MOST_ASPECTS]]
    rest = sum(list(by_aspect.values())[MOST_ASPECTS:])
    rows += [f"| {len(by_aspect) - MOST_ASPECTS} other aspects | {rest} |"] if rest else []
    lead = "Each pair differs in one aspect, named in the column `aspect`: the winner has it, the loser lacks it."
    return "\n".join(["", lead, "", "| aspect | pairs |", "|---|---|", *rows, ""])


def _gap(spec: dict[str, Any]) -> str:
    if "comparisons" in spec:
        return (
            "the winner's fraction of the votes minus the loser's (`bradley_terry`: the difference of their strengths)"
        )
    return "the difference of the combined score (the weighted mean of the normalised scores)"


def _configs(splits: dict[str, int], aliases: list[str], counts: dict[str, Any], config: Pair) -> dict[str, Any]:
    """Return the YAML front matter. The config `bytes` reads the same files as `default`, without decoding the images."""

    def files(names: Any, folder: str = "") -> list[dict[str, str]]:
        return [{"split": split, "path": f"{folder}{split}/*.parquet"} for split in names]

    configs: list[dict[str, Any]] = [{"config_name": "default", "data_files": files(splits)}]
    head: dict[str, Any] = {"configs": configs}
    if config.embed:
        configs.append({"config_name": "bytes", "data_files": files(splits)})
        features = [
            {"name": f.name, "dtype": feature_dtype(f.type)}
            for f in pair_schema(aliases, aspect="pairs_by_aspect" in counts)
        ]
        head["dataset_info"] = [{"config_name": "default", "features": features}]
    for extra in ("ties", "lists"):
        if extra_splits := counts.get(f"{extra}_splits"):
            configs.append({"config_name": extra, "data_files": files(extra_splits, f"{extra}/")})
    return head
