"""The card of a pair dataset, filled from the run."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefkit.hub.cards import facts
from prefkit.hub.cards.template import Card, render
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.hub.dataset_files import StagedDataset
    from prefkit.store import Store

MOST_ASPECTS = 20  # aspects whose number of pairs the card shows
INPUT = re.compile(r"^input_\d+$")  # columns of the input images of edits
SHEET = "images/contact-sheet.webp"
CONFIGS = ("candidates", "comparisons", "ties", "lists")
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def dataset_card(store: Store, name: str, to: str, staged: StagedDataset, licence: str | None) -> Card:
    """Build the card of pairs/NAME for the repository `to`. Raises StoreError if spec.json or audit.json is damaged."""
    folder, recipe = store.pairs(name), facts.recipe_of(store)
    stored = read_json(folder / "spec.json") if (folder / "spec.json").exists() else {}
    audit = read_json(folder / "audit.json") if (folder / "audit.json").exists() else {}
    warnings = audit.pop("warnings", None) or []
    spec = stored.get("spec") or {}
    tables = facts.tables_of(spec)
    splits = _splits(staged)
    pairs = sum(splits["default"].values())
    values = {
        "title": to.split("/")[-1],
        "repository": to,
        "pairs": pairs,
        "requests_with_pairs": len(staged.requests),
        "sheet": SHEET if staged.shown else None,
        "splits": splits,
        "columns": {
            re.sub(r"^(score_[01]_).+", r"\1NAME", INPUT.sub("input_N", column)) for column in staged.columns["default"]
        },
        "generators": facts.generators(store, recipe),
        "source": facts.clean_text((recipe.get("requests") or {}).get("source")),
        "request_splits": Counter(request.split for request in store.requests()),
        "scorers": facts.scorers(store, spec.get("scorers")),
        "pairing": _pairing(spec, tables),
        "decisions": store.decisions().verdict.value_counts().to_dict(),
        "dropped": staged.dropped,
        "counts": _counts(stored.get("counts") or {}, pairs, staged),
        "audit": [{"figure": key, "value": value} for key, value in _flat(facts.clean(_few_aspects(audit)))],
        "warnings": warnings if isinstance(warnings, list) else [warnings],
        "verdict_tables": tables,
        "choosers": facts.choosers(store, spec),
        "chosen_by": [
            {"verified": False} | spec["scorers"][s]
            for s in spec.get("weights") or {}
            if s in (spec.get("scorers") or {})
        ],
        "annotators": bool(store.names("comparisons")),
    }
    values |= facts.shared(store, recipe, "pair", name, licence)
    return Card(_metadata(to, staged, splits, pairs, licence), render("dataset", values), values["recipe"])


def _splits(staged: StagedDataset) -> dict[str, dict[str, int]]:
    """Return {config: {split: number of rows}}, without empty splits and configs."""
    rows = {"default": staged.rows["default"], "bytes": staged.rows["default"]}
    rows |= {config: staged.rows.get(config, {}) for config in CONFIGS}
    filled = {config: {split: n for split, n in splits.items() if n} for config, splits in rows.items()}
    return {config: splits for config, splits in filled.items() if splits}


def _metadata(
    to: str, staged: StagedDataset, splits: Mapping[str, Mapping[str, int]], pairs: int, licence: str | None
) -> dict[str, Any]:
    """Return the card's metadata: configs that list the files, and features that declare byte columns as images."""
    configs = []
    for config in splits:
        folder = f"{config}/" if config in CONFIGS else ""
        files = [{"split": split, "path": f"{folder}{split}/*.parquet"} for split in splits[config]]
        configs.append({"config_name": config, "data_files": files})
    inputs = tuple(filter(INPUT.match, staged.columns["default"]))
    images = {"default": ("jpg_0", "jpg_1", *inputs), "ties": ("jpg_0", "jpg_1"), "candidates": ("image",)}
    info = [_features(config, staged.columns[config], images[config]) for config in splits if config in images]
    return {
        **({"license": licence} if licence else {}),
        "pretty_name": to.split("/")[-1],
        "task_categories": ["image-to-image" if inputs else "text-to-image"],
        "tags": ["prefkit", "preference", "diffusion-dpo", "image"],
        "size_categories": [next((size for limit, size in SIZES.items() if pairs < limit), "n>10M")],
        "configs": configs,
        "dataset_info": info,
    }


def _features(name: str, columns: Mapping[str, str], images: tuple[str, ...]) -> dict[str, Any]:
    features = [{"name": c, "dtype": "image" if c in images else dtype} for c, dtype in columns.items()]
    return {"config_name": name, "features": features}


def _pairing(spec: Mapping[str, Any], tables: list[str]) -> list[dict[str, Any]]:
    """Return table rows with the settings that chose the pairs; [] if no settings are stored with the pairs."""
    if not spec:
        return []
    settings = {key: value for key, value in (spec.get("settings") or {}).items() if value not in (None, {}, [])}
    shown = {"strategy": settings.pop("use", "topk_bottomk")}
    shown |= {key: facts.clean(value, key) for key, value in settings.items()}
    if spec.get("weights"):
        shown.setdefault("weights", spec["weights"])
    if tables:
        shown["winners chosen by the verdicts in"] = ", ".join(tables)
    return [{"setting": key, "value": value} for key, value in shown.items()]


def _counts(stored: Mapping[str, Any], pairs: int, staged: StagedDataset) -> list[dict[str, Any]]:
    counts: dict[str, Any] = {"pairs": pairs, "requests with pairs": len(staged.requests)}
    for key, value in stored.items():
        if key not in ("splits", "pairs", "requests_with_pairs") and isinstance(value, (int, float)):
            counts[key.replace("_", " ")] = value
    if len(staged.gaps) > 1:
        tenths = statistics.quantiles(staged.gaps, n=10, method="inclusive")
        gaps = {"smallest": min(staged.gaps), "10 %": tenths[0], "median": tenths[4], "90 %": tenths[8]}
        counts |= {f"score gap, {label}": value for label, value in (gaps | {"largest": max(staged.gaps)}).items()}
    return [{"": key, "number": value} for key, value in counts.items()]


def _few_aspects(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the audit with the MOST_ASPECTS most frequent aspects; prompts with clauses may have thousands."""
    counts = dict(audit.get("counts") or {})
    if "pairs_by_aspect" in counts:
        ranked = sorted(counts["pairs_by_aspect"].items(), key=lambda item: -item[1])
        counts["pairs_by_aspect"] = dict(ranked[:MOST_ASPECTS])
    return {**audit, "counts": counts}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (name, value) for every leaf of nested mappings. The name consists of the leaf's keys, joined by dots."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [leaf for key, entry in value.items() for leaf in _flat(entry, f"{prefix}.{key}".lstrip("."))]
