"""The card of a trained adapter or pipeline, filled from train/NAME and from every evaluation of that model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import Online, Train, plain
from prefkit.errors import PrefkitError, UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards.template import Card, render
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.store import Store

SHEET = "images/base-and-tuned.webp"
ADAPTER = "pytorch_lora_weights.safetensors"
TRAINED_ON = "trained_on.json"  # also in prefkit.models.load.trained, whose import would load torch
CONTROLS = ("sft", "flipped")  # NAME-sft and NAME-flipped are the controls of training NAME
MEASURES = {"frechet": "Fréchet", "cmmd": "CMMD"}  # distances to real images
JUDGE = {True: "training signal", False: "held out", None: "unknown"}
#: training settings that the card states even if they have their default values
STATED = ("objective", "lora", "learning_rate", "warmup", "schedule", "optimizer", "precision", "max_grad_norm", "seed")


def result_folder(store: Store, name: str) -> Path:
    """Return train/NAME/final. Raises UsageError if the training has no result."""
    final = store.train(name) / "final"
    if not final.is_dir():
        known = ", ".join(n for n in store.names("train") if (store.train(n) / "final").is_dir()) or "none"
        raise UsageError(
            f"train/{name} of {store.folder} has no result. Run `prefkit train`; trainings with a result: {known}."
        )
    return final


def model_card(store: Store, name: str, to: str, sheet: bool, licence: str | None) -> Card:
    """Build the card of train/NAME for the repository `to`. sheet: True if the contact sheet SHEET exists."""
    recipe, folder = facts.recipe_of(store), store.train(name)
    spec = read_json(folder / "spec.json") if (folder / "spec.json").exists() else {}
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    results = {n: r for n, r in evaluations(store).items() if any(name in models for models in _sets(r).values())}
    verdicts = [row for r in results.values() for models in _sets(r).values() for row in models.get(name, {}).values()]
    final = result_folder(store, name)
    adapter = (final / ADAPTER).is_file()
    training, model = spec.get("train") or {}, recipe.get("model") or {}
    online, source = spec.get("online") or {}, source_of(name, recipe)
    values = {
        "title": to.split("/")[-1],
        "repository": to,
        "name": name,
        "source": source,
        "adapter": adapter,
        "mesh": training.get("family") == "mesh",
        "base": facts.base_of(recipe),
        "base_source": str(model.get("base") or "unknown"),
        "revision": model.get("revision"),
        "online": bool(online),
        "rewards": list(online.get("rewards") or {}),
        "objective": (training.get("objective") or {}).get("use") or "dpo",
        "sheet": SHEET if sheet else None,
        "training": _training(spec, result, final / ADAPTER if adapter else None, facts.base_of(recipe)),
        "evaluation": _evaluation(results, name),
        "real_distances": _real_distances(results, name),
        "settings": [result.get("settings") or {} for result in results.values()],
        "missing_controls": _missing_controls(results, name, bool(online)),
        "trained_on": read_json(folder / TRAINED_ON) if (folder / TRAINED_ON).is_file() else None,
        "choosers": _choosers(store, training.get("pairs")),
        "pairs": facts.clean_text(str(training.get("pairs") or "unknown")),
        "verdicts": verdicts,
    }
    recipe = _as_trained(recipe, source, spec, result)
    values |= facts.shared(store, recipe, "train", source, licence)
    return Card(_metadata(recipe, training, adapter, licence), render("model", values), values["recipe"])


def _choosers(store: Store, pairs: Any) -> list[str]:
    """Return who or what chose the pairs of a training, if they are a pair set of this run; [] if unknown."""
    path = store.pairs(pairs) / "spec.json" if pairs in store.names("pairs") else None
    return facts.choosers(store, read_json(path).get("spec") or {}) if path is not None and path.is_file() else []


def _as_trained(
    recipe: Mapping[str, Any], name: str, spec: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the recipe with the settings that train/NAME was made with; the recipe may have changed since."""
    entry = (recipe.get("train") or {}).get(name)
    if not isinstance(entry, Mapping) or not spec.get("train"):
        return dict(recipe)
    online = dict(spec.get("online") or {})
    other = {"batch_size", "accumulation", "online", "steps", "guidance"} | (
        {"pairs", "validation"} if online else set()
    )
    stored = {"precision": "no"} | {key: value for key, value in spec["train"].items() if key not in other}
    made = _resolved(Train, stored, other)
    objective = made["objective"]
    made["objective"] = {"use": objective.get("use") or "dpo", **(objective.get("options") or {})}
    if online:
        rounds = {"rounds": result["rounds"]} if result.get("rounds") else {}
        made["online"] = {**(entry.get("online") or {}), **_resolved(Online, online, {"rounds"}), **rounds}
    elif result.get("steps"):
        made["steps"] = result["steps"]
    return {**recipe, "train": {**recipe["train"], name: {**entry, **facts.clean(made)}}}


def _resolved(kind: Any, stored: Mapping[str, Any], other: Collection[str]) -> dict[str, Any]:
    """Return all content settings except `other`. stored: the settings in spec.json, which differ from the defaults."""
    names = [f.name for f in fields(kind) if f.metadata.get("content", True) and f.name not in other]
    return {key: value for key, value in plain(kind()).items() if key in names} | dict(stored)


def _adapter_shape(path: Path) -> dict[str, Any]:
    """Return rank, alpha and targets from the metadata of an adapter file; {} if it has none."""
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:
            stored = json.loads((file.metadata() or {}).get("lora_adapter_metadata") or "{}")
    except (safetensors.SafetensorError, OSError, ValueError):
        return {}
    own = ((key, value) for key, value in stored.items() if not key.startswith("text_encoder"))  # the denoiser's
    values = {key.rpartition(".")[2]: value for key, value in own}
    names = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
    return {key: values[name] for key, name in names.items() if values.get(name)}


def source_of(name: str, recipe: Mapping[str, Any]) -> str:
    """Return the training that the control `name` belongs to, or `name` if it is not a control."""
    if name in (recipe.get("train") or {}):
        return name
    return next((name.removesuffix(f"-{kind}") for kind in CONTROLS if name.endswith(f"-{kind}")), name)


def evaluations(store: Store) -> dict[str, dict[str, Any]]:
    """Return {evaluation name: content of its result.json}."""
    paths = {name: store.eval(name) / "result.json" for name in store.names("eval")}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def _sets(result: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return result.get("sets") or {}


def _metadata(
    recipe: Mapping[str, Any], training: Mapping[str, Any], adapter: bool, licence: str | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"license": licence} if licence else {}
    base = str((recipe.get("model") or {}).get("base") or "")
    if facts.on_hub(base):
        metadata |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    pairs = str(training.get("pairs") or "").partition(":")[0]
    if facts.on_hub(pairs):
        metadata["datasets"] = [pairs]
    task = "text-to-image"
    if training.get("family") == "mesh":  # the Hub has no task for meshes of people, and only prefkit loads the model
        metadata, task = metadata | {"library_name": "prefkit"}, "human-mesh-recovery"
    else:
        metadata |= {"library_name": "diffusers", "pipeline_tag": task}
    return metadata | {"tags": ["prefkit", task, "preference", *(["lora"] if adapter else [])]}


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in spec.json (only changed ones), plus the default values of the other settings in STATED."""
    from prefkit import registry

    settings = {key: value for key, value in plain(Train()).items() if key in STATED}
    settings |= {"precision": "no"} | dict(spec.get("train") or {})
    objective = settings["objective"] or {}
    use = objective.get("use") or "dpo"
    try:
        defaults: Any = (getattr(registry.load_class("objective", use), "Options", None) or dict)()
    except PrefkitError:  # an objective that cannot be imported here
        defaults = {}
    beta = {key: value for key, value in plain(defaults).items() if key == "beta"}
    return settings | {"objective": {"use": use, "options": beta | dict(objective.get("options") or {})}}


def _training(
    spec: Mapping[str, Any], result: Mapping[str, Any], adapter: Path | None, base: str
) -> list[dict[str, Any]]:
    train = facts.clean(settings_of(spec))
    objective, lora = train.pop("objective"), train.pop("lora")
    model = spec.get("model") or {}
    rows: dict[str, Any] = {"base model": base, "base revision": model.get("base")}
    rows |= {"start adapters": facts.clean(model.get("adapters")) or None}
    rows |= {"objective": objective["use"], **objective["options"]}
    rows |= {"labels": "flipped at random (a control)" if spec.get("flipped") else None}
    rows |= {
        "steps": result.get("steps"),
        "pairs": result.get("pairs"),
        "held-out pairs": result.get("validation_pairs"),
    }
    rows |= {"pairs per step": spec.get("global_batch"), "trained parameters": result.get("trainable")}
    if online := facts.clean(dict(spec.get("online") or {})):
        rows |= {"rounds": result.get("rounds"), "requests": len(spec.get("requests") or ()) or None}
        rows |= {f"online, {key.replace('_', ' ')}": value for key, value in online.items()}
    if adapter and lora:
        rows |= {f"LoRA {key}": value for key, value in (lora | _adapter_shape(adapter)).items()}
    else:
        rows["LoRA"] = "none: full weights"
    rows["source of the pairs"] = train.pop("pairs", None)
    rows |= {key.replace("_", " "): value for key, value in train.items() if key != "steps"}
    rows |= {"call": facts.clean(dict(spec.get("call") or {})) or None}
    return [{"": key, "value": value} for key, value in rows.items() if value is not None]


def _evaluation(results: Mapping[str, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return a table row for each prompt set, model (`name` first, then its controls) and judge."""
    rows = []
    for evaluation, result in results.items():
        label = {"eval": evaluation} if len(results) > 1 else {}
        for set_name, models in _sets(result).items():
            for model in [name, *(m for m in models if m != name and _is_control(m, name))]:
                verdicts = (models.get(model) or {}).items()
                rows += [label | {"set": set_name, "model": model} | _verdict(judge, row) for judge, row in verdicts]
    return rows


def _verdict(judge: str, row: Mapping[str, Any]) -> dict[str, Any]:
    rate, low, high = ("-" if row.get(key) is None else f"{row[key]:.3f}" for key in ("win_rate", "ci_low", "ci_high"))
    encoded = row.get("encoder_diversity") or {}
    encoder = facts.clean_text(str(encoded.get("encoder")).removeprefix("local-dir:"))
    return {
        "judge": judge,
        "judge was": JUDGE[row.get("used_for_pairs")],
        "base": row.get("base"),
        "tuned": row.get("tuned"),
        "wins": rate if rate == "-" else f"{rate} ({low} to {high})",
        "requests": row.get("n_requests"),
        "worth best-of": row.get("best_of_n"),
        "diversity, base": row.get("diversity_base"),
        "diversity, tuned": row.get("diversity_tuned"),
        **{f"diversity by {encoder}, {key}": encoded[key] for key in ("base", "tuned") if encoded},
        "verdict": row.get("verdict"),
    }


def _real_distances(results: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return {rows, caveats} of the distances to real images, with a table row for each evaluation, set and measure."""
    rows: list[dict[str, Any]] = []
    caveats: dict[str, None] = {}
    for evaluation, result in results.items():
        for set_name, models in _sets(result).items():
            scorers: Mapping[str, Any] = models.get(name) or {}
            apart: Any = next((row.get("real_distance") for row in scorers.values()), None)
            for key, label in MEASURES.items() if apart else ():
                own, encoder = apart[key], facts.clean_text(str(apart["encoder"]).removeprefix("local-dir:"))
                low, high = ("-" if own[end] is None else f"{own[end]:.4g}" for end in ("ci_low", "ci_high"))
                row = {"eval": evaluation, "set": set_name, "distance": label, "encoder": encoder}
                row |= {"base": own["base"], "tuned": own["tuned"], "tuned - base": own["difference"]}
                rows.append(row | {"95 %": f"{low} to {high}", "images": apart["n"], "real images": apart["n_real"]})
                caveats |= dict.fromkeys(apart["caveats"])
    return {"rows": rows, "caveats": list(caveats)}


def _is_control(model: str, name: str) -> bool:
    return model in [f"{name}-{kind}" for kind in CONTROLS] or bool(re.fullmatch(r"base-[gs][\d.]+", model))


def _missing_controls(results: Mapping[str, Mapping[str, Any]], name: str, online: bool) -> list[str] | None:
    """Return the controls of model `name` that every evaluation lacks; None if no evaluation recorded its controls."""
    missing = [result["controls"].get("missing") or [] for result in results.values() if result.get("controls")]
    if not missing:
        return None
    controls = [] if online else [f"{name}-{kind}" for kind in CONTROLS]
    relevant = [text for text in missing[0] if text.startswith("base ") or text.partition(":")[0] in controls]
    return [text for text in relevant if all(text in others for others in missing)]
