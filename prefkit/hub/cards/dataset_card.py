"""The card of a pair dataset, filled from the run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefkit.errors import StoreError
from prefkit.hub.cards import facts
from prefkit.hub.cards import template as card
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.hub.dataset_files import Staged
    from prefkit.store import Store

SHEET = "images/contact-sheet.webp"
MOST = 200  # figures of an audit
WHAT = {
    "default": "the pairs, as Diffusion-DPO scripts read them: jpg_0 and jpg_1 as bytes, label_0 and label_1, caption",
    "gallery": "the same files with jpg_0 and jpg_1 as images, for looking at",
    "candidates": "every image with every raw score, so that pairs can be chosen anew",
    "comparisons": "pairwise verdicts of judges or people on these candidates",
    "ties": "pairs whose scores do not tell them apart; no trainer should read them as wins",
    "lists": "whole requests in the order of their combined score, for listwise objectives",
}
COLUMNS = {
    "jpg_0, jpg_1": "the encoded images as scorers saw them: as they were made or, where a file hides colours or needs a profile, PNG",
    "label_0, label_1": "1 for the winner, 0 for the loser; no ties. Which side wins is decided by a hash",
    "caption": "the prompt",
    "candidate_0, candidate_1": "ids of the images in the config candidates",
    "image_0_uid, image_1_uid": "SHA-256 of the candidates' encoded images",
    "score_gap, rank_gap": "difference of the combined score, and of the rank by it, within the request",
    "p": "soft label: the probability that the winner wins",
    "agreement": "share of the scores (of imported verdicts: of the votes) that agree with the verdict",
    "score_0_NAME, score_1_NAME": "raw scores, on their scorers' own scale, whether or not they chose the winner",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))  # fmt: skip


def dataset_card(store: Store, name: str, to: str, staged: Staged, licence: str | None) -> tuple[dict[str, Any], str]:
    """Metadata and body. Raises StoreError where the pairs' spec.json cannot be read."""
    folder, recipe = store.pairs(name), facts.recipe_of(store)
    spec = read_json(folder / "spec.json") if (folder / "spec.json").exists() else {}
    audit = read_json(folder / "audit.json") if (folder / "audit.json").exists() else {}
    rows = facts.licence_rows(store, recipe)
    pairs = sum(staged.rows["default"].values())
    values = {
        "title": card.text(to.split("/")[-1]),
        "lead": f"{pairs:,} preference pairs of images over {len(staged.requests):,} requests, made with prefkit.",
        "sheet": f"![Pairs chosen by hash: winner (green) beside loser]({SHEET})\n\nPairs chosen by hash, not picked; the "
        "winner has the green edge."
        if staged.shown
        else "",
        "load": _load(to, staged),
        "configs": card.table(_config_rows(staged)),
        "columns": _columns(staged),
        "generators": facts.generators(store, recipe),
        "requests": facts.requests(store, recipe),
        "scorers": card.table(facts.scorer_rows(store)) or "No scorer ran: the preferences came with the images.",
        "pairing": _pairing(spec),
        "decisions": _decisions(store, staged),
        "counts": card.table(_counts(spec, staged)),
        "audit": _audit(audit),
        "licences": facts.licences(rows, licence),
        "limits": _limits(spec, audit, store),
        "rebuild": facts.rebuild(
            facts.relevant(recipe, "pair", name), _packages(store), "its stages generate, score and pair"
        ),
    }
    return metadata(to, staged, licence), card.fill(card.template("dataset"), values)


def metadata(to: str, staged: Staged, licence: str | None) -> dict[str, Any]:
    """The YAML: configs over the files, and the features that make a gallery of bytes."""
    pairs = sum(staged.rows["default"].values())
    configs = [_config("default", staged.rows["default"], ""), _config("gallery", staged.rows["default"], "")]
    info = [_features("gallery", staged.columns["default"], ("jpg_0", "jpg_1"))]
    for name in ("candidates", "comparisons", "ties", "lists"):
        if sum(staged.rows.get(name, {}).values()):
            configs.append(_config(name, staged.rows[name], f"{name}/"))
    if any(config["config_name"] == "candidates" for config in configs):
        info.append(_features("candidates", staged.columns["candidates"], ("image",)))
    found: dict[str, Any] = {"license": licence} if licence else {}
    found |= {"pretty_name": to.split("/")[-1], "task_categories": ["text-to-image"]}
    found |= {"tags": ["prefkit", "preference", "diffusion-dpo", "image"]}
    found["size_categories"] = [next((text for most, text in SIZES if pairs < most), "n>10M")]
    return found | {"configs": configs, "dataset_info": info}


def _config(name: str, splits: Mapping[str, int], folder: str) -> dict[str, Any]:
    files = [{"split": split, "path": f"{folder}{split}/*.parquet"} for split, rows in splits.items() if rows]
    return {"config_name": name, "data_files": files}


def _features(name: str, columns: Mapping[str, str], images: tuple[str, ...]) -> dict[str, Any]:
    return {
        "config_name": name,
        "features": [{"name": c, "dtype": "image" if c in images else dtype} for c, dtype in columns.items()],
    }


def _load(to: str, staged: Staged) -> str:
    lines = [
        "from datasets import load_dataset",
        "",
        f'pairs = load_dataset("{to}", split="{next(iter(staged.rows["default"]))}")',
    ]
    further = [name for name, splits in staged.rows.items() if name != "default" and any(splits.values())]
    lines += [f'load_dataset("{to}", "{name}")' for name in ("gallery", *further)]
    return (
        card.fence("\n".join(lines), "python") + f"\n\n`--dataset_name {to}` of a Diffusion-DPO script reads it as it "
        f"stands, and so does `pairs: {to}` under `train` of a prefkit recipe."
    )


def _config_rows(staged: Staged) -> list[dict[str, Any]]:
    rows = []
    for name in ("default", "gallery", "candidates", "comparisons", "ties", "lists"):
        splits = staged.rows["default" if name == "gallery" else name] if name in (*staged.rows, "gallery") else {}
        if sum(splits.values()):
            counted = ", ".join(f"{split} {n:,}" for split, n in splits.items() if n)
            rows.append({"config": name, "rows": counted, "what": WHAT[name]})
    return rows


def _columns(staged: Staged) -> str:
    have = staged.columns["default"]
    shown = {key: what for key, what in COLUMNS.items() if any(_has(have, name) for name in key.split(", "))}
    rows = [{"column": key, "what": what} for key, what in shown.items()]
    return "Columns of the pairs:\n\n" + card.table(rows)


def _has(have: Mapping[str, str], name: str) -> bool:
    return name in have or (name.endswith("NAME") and any(c.startswith(name.removesuffix("NAME")) for c in have))


def _pairing(spec: Mapping[str, Any]) -> str:
    inner = spec.get("spec") or {}
    if not inner:
        return "The pairs came as pairs: nothing is known here of how they were chosen."
    settings = {key: value for key, value in (inner.get("settings") or {}).items() if value not in (None, {}, [])}
    rows = [{"setting": "strategy", "value": settings.pop("use", "topk_bottomk")}]
    rows += [{"setting": key, "value": facts.clean(value, key)} for key, value in settings.items()]
    if inner.get("weights") and "weights" not in settings:
        rows.append({"setting": "weights", "value": inner["weights"]})
    if tables := _verdicts(spec):
        rows.append({"setting": "winners chosen by the verdicts in", "value": ", ".join(tables)})
    return card.table(rows)


def _verdicts(spec: Mapping[str, Any]) -> list[str]:
    """Tables of comparisons that chose the winners; empty where scores did."""
    tables = (spec.get("spec") or {}).get("comparisons") or []
    return [tables] if isinstance(tables, str) else list(tables)


def _decisions(store: Store, staged: Staged) -> str:
    decisions = store.decisions()
    counts = decisions.verdict.value_counts().to_dict()
    said = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(counts.items())) or "none"
    gone = ", ".join(f"{n:,} of {config}" for config, n in staged.dropped.items())
    left = f" Rows left out because they hold a removed image: {gone}." if gone else ""
    return f"Decisions of a curator on single images: {said}. Removed images are in no config.{left}"


def _counts(spec: Mapping[str, Any], staged: Staged) -> list[dict[str, Any]]:
    found = {"pairs": sum(staged.rows["default"].values()), "requests with pairs": len(staged.requests)}
    rows = [{"": key, "number": value} for key, value in found.items()]
    for key, value in (spec.get("counts") or {}).items():
        if key not in ("splits", "pairs", "requests_with_pairs") and isinstance(value, (int, float)):
            rows.append({"": key.replace("_", " "), "number": value})
    if len(staged.gaps) > 1:
        tenths = statistics.quantiles(staged.gaps, n=10, method="inclusive")
        for label, value in (("smallest", min(staged.gaps)), ("10 %", tenths[0]), ("median", tenths[4]), ("90 %", tenths[8]), ("largest", max(staged.gaps))):  # fmt: skip
            rows.append({"": f"score gap, {label}", "number": value})
    return rows


def _audit(audit: Mapping[str, Any]) -> str:
    """Whatever figures the audit holds, one a row: nested names joined by a dot. Lists and texts of warnings after."""
    rows = [
        {"figure": key, "value": value}
        for key, value in _flat(facts.clean(dict(audit)))
        if not key.startswith("warnings")
    ]
    warnings = audit.get("warnings") or []
    notes = "\n".join(f"- {card.text(note)}" for note in (warnings if isinstance(warnings, list) else [warnings]))
    if not rows and not notes:
        return "No audit was stored with these pairs."
    rest = f"{len(rows) - MOST:,} further figures are not shown.\n\n" if len(rows) > MOST else ""
    return f"{card.table(rows[:MOST])}\n\n{rest}{notes}".strip()


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [
            pair for key, entry in value.items() for pair in _flat(entry, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]


def _limits(spec: Mapping[str, Any], audit: Mapping[str, Any], store: Store) -> str:
    lines = []
    inner = spec.get("spec") or {}
    chose = [name for name in inner.get("weights") or {} if name in (inner.get("scorers") or {})]
    scorers = [inner["scorers"][name] for name in chose]
    if tables := _verdicts(spec):
        lines.append(
            f"The preference is that of whoever gave the verdicts in {card.text(', '.join(tables))}: people or judges."
        )
    if scorers:
        lines.append("The preference is that of the scorers above, not of people, and inherits their blind spots.")
    if any(not scorer.get("verified") for scorer in scorers):
        lines.append("Not every scorer was checked against its published weights: see the table.")
    if store.names("comparisons"):
        lines.append("Annotators appear under salted names; verdicts may still say something about them.")
    if not audit:
        lines.append("Nobody has measured whether brightness, sharpness or file size alone predict the winner.")
    lines.append("Images come from generative models or third parties and were not checked one by one.")
    return "\n".join(f"- {line}" for line in lines)


def _packages(store: Store) -> dict[str, Any]:
    try:
        return read_json(store.folder / "run.json").get("packages") or {}
    except StoreError:
        return {}
