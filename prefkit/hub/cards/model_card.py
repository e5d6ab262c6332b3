"""The card of a trained adapter or pipeline, filled from train/NAME and from every evaluation of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import PrefkitError, UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards import template as card
from prefkit.hub.cards.dataset_card import _packages
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.store import Store

SHEET = "images/base-and-tuned.webp"
ADAPTER = "pytorch_lora_weights.safetensors"
TRAINED_ON = "trained_on.json"  # as prefkit.models.load.trained writes it; that module would load torch
SHOWN = 12
CONTROLS = ("sft", "flipped")  # NAME-sft and NAME-flipped are controls of NAME
SINGLE_FILES = (".safetensors", ".ckpt")
JUDGE = {True: "training signal", False: "held out", None: "not known"}
#: settings of a training that its card states even where they are the defaults
STATED = ("objective", "lora", "learning_rate", "warmup", "schedule", "optimizer", "precision", "max_grad_norm", "seed")
REPOSITORY = r"[\w.-]+/[\w.-]+"


def result_folder(store: Store, name: str) -> Path:
    """train/NAME/final. Raises UsageError where the training has no result."""
    final = store.train(name) / "final"
    if not final.is_dir():
        known = ", ".join(n for n in store.names("train") if (store.train(n) / "final").is_dir()) or "none"
        raise UsageError(f"train/{name} of {store.folder} has no result (results: {known}). Run `prefkit train` for it, or let it finish.")  # fmt: skip
    return final


def model_card(store: Store, name: str, to: str, sheet: bool, licence: str | None) -> tuple[dict[str, Any], str]:
    """Metadata and body."""
    recipe, folder = facts.recipe_of(store), store.train(name)
    spec = read_json(folder / "spec.json") if (folder / "spec.json").exists() else {}
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    results = {n: result for n, result in evaluations(store).items() if _measures(result, name)}
    adapter = (result_folder(store, name) / ADAPTER).is_file()
    base = facts.base_of(recipe)
    training = spec.get("train") or {}
    use = (training.get("objective") or {}).get("use") or "dpo"
    online = spec.get("online") or {}
    kind = "A LoRA adapter for" if adapter else "A pipeline fine-tuned from"
    how = f"by the rewards {_rewards(online)} of its own samples" if online else "on preferences"
    source = source_of(name, recipe)
    entry = f"its entry train.{source}" + (" with `controls: true`" if source != name else "")
    values = {
        "title": card.text(to.split("/")[-1]),
        "lead": f"{kind} {card.text(base)}, trained {how} with the objective {card.text(use)}, with prefkit.",
        "sheet": f"![Tuned (green) beside base]({SHEET})\n\nRequests of the evaluation chosen by hash, not picked; the tuned model has "
        "the green edge, the base beside it started from the same noise."
        if sheet
        else "",
        "load": _load(to, recipe.get("model") or {}, adapter),
        "training": card.table(_training(spec, result, adapter, base)),
        "evaluation": _evaluation(results, name),
        "controls": _controls(results, name, source, bool(online)),
        "trained_on": _trained_on(folder, training, bool(online)),
        "licences": facts.licences(facts.licence_rows(store, recipe), licence),
        "limits": _limits(results, name),
        "rebuild": facts.rebuild(facts.relevant(recipe, "train", source), _packages(store), entry),
    }
    return metadata(recipe, training, adapter, licence), card.fill(card.template("model"), values)


def source_of(name: str, recipe: Mapping[str, Any]) -> str:
    """The training that a control is one of; of any other its own name."""
    if name in (recipe.get("train") or {}):
        return name
    return next((name.removesuffix(f"-{kind}") for kind in CONTROLS if name.endswith(f"-{kind}")), name)


def metadata(
    recipe: Mapping[str, Any], training: Mapping[str, Any], adapter: bool, licence: str | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"license": licence} if licence else {}
    base = str((recipe.get("model") or {}).get("base") or "")
    if _on_hub(base):
        found |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    pairs = str(training.get("pairs") or "").partition(":")[0]
    if _on_hub(pairs):
        found["datasets"] = [pairs]
    found |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    return found | {"tags": ["prefkit", "text-to-image", "preference", *(["lora"] if adapter else [])]}


def evaluations(store: Store) -> dict[str, dict[str, Any]]:
    return {
        n: read_json(store.eval(n) / "result.json")
        for n in store.names("eval")
        if (store.eval(n) / "result.json").exists()
    }


def _on_hub(name: str) -> bool:
    """Whether it names a repository, and no folder here."""
    return bool(re.fullmatch(REPOSITORY, name)) and not name.startswith(".") and not Path(name).exists()


def _measures(result: Mapping[str, Any], name: str) -> bool:
    return any(name in models for models in (result.get("sets") or {}).values())


def _load(to: str, model: Mapping[str, Any], adapter: bool) -> str:
    source, revision = str(model.get("base") or "not stated"), model.get("revision")
    lines = ["from diffusers import DiffusionPipeline", ""]
    if not adapter:
        lines.append(f'pipe = DiffusionPipeline.from_pretrained("{to}")')
    elif source == "tiny":  # the small model that comes with prefkit
        lines = ["from pathlib import Path", "", "import prefkit.tiny", *lines]
        lines.append('pipe = DiffusionPipeline.from_pretrained(Path(prefkit.tiny.__file__).parent / "sd")')
    elif source.endswith(SINGLE_FILES):
        lines = ["from diffusers import StableDiffusionPipeline  # or whatever pipeline this base is", ""]
        lines.append(f"pipe = StableDiffusionPipeline.from_single_file({json.dumps(source, ensure_ascii=False)})")
    else:
        at = f", revision={json.dumps(str(revision))}" if revision else ""
        lines.append(f"pipe = DiffusionPipeline.from_pretrained({json.dumps(source, ensure_ascii=False)}{at})")
    lines += [f'pipe.load_lora_weights("{to}")'] if adapter else []
    return card.fence("\n".join(lines), "python")


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The training's settings: those in spec.json, which holds what differs from the defaults, and the STATED defaults."""
    from prefkit.config import Train, plain

    given = dict(spec.get("train") or {})
    found = {key: value for key, value in plain(Train()).items() if key in STATED} | given
    use = (found["objective"] or {}).get("use") or "dpo"
    options = _default_beta(use) | dict((found["objective"] or {}).get("options") or {})
    return found | {"objective": {"use": use, "options": options}}


def _default_beta(objective: str) -> dict[str, Any]:
    """The one option that a reader looks for, of an objective that has it and can be imported here."""
    from prefkit import registry
    from prefkit.config import plain

    try:
        options = getattr(registry.load_class("objective", objective), "Options", None)
    except PrefkitError:
        return {}
    found = plain(options()) if options is not None else {}
    return {key: value for key, value in found.items() if key == "beta"}


def _training(spec: Mapping[str, Any], result: Mapping[str, Any], adapter: bool, base: str) -> list[dict[str, Any]]:
    train = facts.clean(settings_of(spec))
    objective = train.pop("objective")
    revision = spec.get("model") or {}
    found: dict[str, Any] = {"base model": base, "base revision": revision.get("base")}
    if revision.get("adapters"):
        found["start adapters"] = facts.clean(revision["adapters"])
    found |= {"objective": objective["use"], **objective["options"]}
    if spec.get("flipped"):
        found["labels"] = "flipped at random (a control)"
    found |= {
        "steps": result.get("steps"),
        "pairs": result.get("pairs"),
        "held-out pairs": result.get("validation_pairs"),
    }
    found |= {"pairs per step": spec.get("global_batch"), "trained parameters": result.get("trainable")}
    if online := facts.clean(dict(spec.get("online") or {})):
        found |= {"rounds": result.get("rounds"), "requests": len(spec.get("requests") or ()) or None}
        found |= {f"online, {key.replace('_', ' ')}": value for key, value in online.items()}
    lora = train.pop("lora")
    found |= (
        {f"LoRA {key}": value for key, value in lora.items()} if adapter and lora else {"LoRA": "none: full weights"}
    )
    found |= {
        "source of the pairs" if key == "pairs" else key.replace("_", " "): value
        for key, value in train.items()
        if key != "steps"
    }
    found |= {"call": facts.clean(dict(spec.get("call") or {})) or None}
    return [{"": key, "value": value} for key, value in found.items() if value is not None]


def _evaluation(results: Mapping[str, Mapping[str, Any]], name: str) -> str:
    rows = []
    for evaluation, result in results.items():
        which = {"eval": evaluation} if len(results) > 1 else {}
        for set_name, models in (result.get("sets") or {}).items():
            for model in [name, *(m for m in models if m != name and _control_of(m, name))]:
                rows += [
                    which | _eval_row(set_name, model, judge, row) for judge, row in (models.get(model) or {}).items()
                ]
    if not rows:
        return "Nobody has measured it on held-out requests: `prefkit eval` does."
    seen = []
    for result in results.values():
        for set_name, count in ((result.get("settings") or {}).get("in_training") or {}).items():
            if count:
                seen.append(
                    f"{count:,} requests of {card.text(set_name)} were training prompts of a model in that evaluation, or of this run."
                )
    lead = "Against the base at equal seeds. Wins are means over requests, with 95 % bootstrap intervals over requests; 0.5 is no difference."  # fmt: skip
    return "\n\n".join([lead, card.table(rows), *seen])


def _eval_row(set_name: str, model: str, judge: str, row: Mapping[str, Any]) -> dict[str, Any]:
    wins = "-" if row.get("win_rate") is None else f"{row['win_rate']:.3f} ({_three(row.get('ci_low'))} to {_three(row.get('ci_high'))})"  # fmt: skip
    return {
        "set": set_name,
        "model": model,
        "judge": judge,
        "judge was": JUDGE[row.get("used_for_pairs")],
        "base": row.get("base"),
        "tuned": row.get("tuned"),
        "wins": wins,
        "requests": row.get("n_requests"),
        "worth best-of": row.get("best_of_n"),
        "diversity, base": row.get("diversity_base"),
        "diversity, tuned": row.get("diversity_tuned"),
        "verdict": row.get("verdict"),
    }


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _control_of(model: str, name: str) -> bool:
    return model in [f"{name}-{kind}" for kind in CONTROLS] or bool(re.fullmatch(r"base-[gs][\d.]+", model))


def _controls(results: Mapping[str, Mapping[str, Any]], name: str, source: str, online: bool) -> str:
    said = [result["controls"].get("missing") or [] for result in results.values() if result.get("controls")]
    if not said:
        return ""
    if source != name:
        return f"This model is itself a control, of {card.text(source)}."
    own = [] if online else [f"{name}-{kind}" for kind in CONTROLS]
    missing = [  # a control that stands in one of the evaluations is there
        text
        for text in said[0]
        if (text.startswith("base ") or text.partition(":")[0] in own) and all(text in other for other in said)
    ]
    if not missing:
        paired = "" if online else "SFT on the winners, DPO on randomly flipped pairs, and "
        text = f"{paired}the base at other settings stand in the table."
        return text[0].upper() + text[1:]
    return "Missing, so that the gain may have a cheaper explanation:\n\n" + "\n".join(f"- {card.text(text)}" for text in missing)  # fmt: skip


def _rewards(online: Mapping[str, Any]) -> str:
    return ", ".join(card.text(name) for name in online.get("rewards") or {}) or "not stated"


def _trained_on(folder: Path, training: Mapping[str, Any], online: bool) -> str:
    if not (folder / TRAINED_ON).is_file():
        return "The training left no record of its prompts."
    record = read_json(folder / TRAINED_ON)
    scorers, count = record.get("scorers"), len(record["captions"])
    prompts = f"{count:,} different prompts" if count != 1 else "one prompt"
    kept = "`trained_on.json` holds a hash of each prompt, so that an evaluation can see which of its requests were trained on."  # fmt: skip
    if online:
        return (
            f"Its own samples for {prompts} (earlier adapters' included where they say), rewarded by "
            f"{', '.join(map(card.text, scorers or ())) or 'what is not known'}: these are no judges of it. {kept}"
        )
    chosen = "It is not known what chose the pairs."
    if scorers:
        chosen = f"The pairs were chosen by {', '.join(map(card.text, scorers))}: {'their verdicts are' if len(scorers) > 1 else 'its verdict is'} no independent evidence."
    return (
        f"Pairs {card.text(facts.shown_name(str(training.get('pairs') or 'not stated')))}, {prompts} "
        f"(earlier adapters' included where they say). {chosen} {kept}"
    )


def _limits(results: Mapping[str, Mapping[str, Any]], name: str) -> str:
    rows = [
        row for r in results.values() for m in (r.get("sets") or {}).values() for row in (m.get(name) or {}).values()
    ]
    lines = []
    if not rows:
        lines.append("Unmeasured: treat every claim about it as unproven.")
    elif not any(row.get("used_for_pairs") is False for row in rows):
        lines.append("Every judge above was the training signal, or may have been: no verdict is independent evidence.")
    both = [(row["diversity_base"], row["diversity_tuned"]) for row in rows if row.get("diversity_base") and row.get("diversity_tuned") is not None]  # fmt: skip
    worse = any(tuned < 0.9 * base for base, tuned in both)
    if worse:
        lines.append("Images of one request are less diverse than the base's (see the table).")
    lines.append(
        "It follows the preference that it was trained on, wanted or not, and keeps the base's own limits and biases."
    )
    return "\n".join(f"- {line}" for line in lines)
