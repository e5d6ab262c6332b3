"""The card of a fitted scorer, filled from the spec.json of its folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import PrefkitError
from prefkit.hub.cards import facts
from prefkit.hub.cards.measures import measured_rows
from prefkit.hub.cards.template import Card, render
from prefkit.store import Store
from prefkit.store.files import read_json

#: fit -> (scorer that reads its folder, what its score measures)
SCORERS = {
    "vbpr": ("vbpr", "how well an image suits a user's taste (column user of the requests)"),
    "outfit_compat": ("outfit_compat", "how well an image goes with the other items of an outfit (column outfit)"),
    "clip_preference": ("pickscore", "which image of a prompt is preferred"),
    "mllm": ("mllm", "the rating of an image by a multimodal language model"),
    "mesh": ("mesh", "which mesh of a request is closest to the truth"),
}
SHAPES = ("unit", "factor", "width", "pool", "hidden")


def entry(spec: Mapping[str, Any], model: str, revision: str | None = None) -> dict[str, Any]:
    """Return the recipe entry of the scorer in folder or Hub id `model`. spec: the fit's spec.json."""
    settings = spec.get("settings") or {}
    fixed = {"revision": revision} if revision else {}
    fit = str(spec["fit"])
    if fit == "clip_preference":
        if settings.get("library") == "open_clip":
            return {"use": "clip", "model": f"{'hf-hub' if revision else 'local-dir'}:{model}", **fixed}
        return {"use": "pickscore", "model": model, "processor": model, **fixed}
    asked = {key: settings[key] for key in ("template", "scale") if fit == "mllm" and settings.get(key)}
    return {"use": SCORERS.get(fit, (fit, ""))[0], "model": model, **fixed, **asked}


def scorer_card(spec: Mapping[str, Any], sources: Mapping[str, Any], to: str, licence: str | None) -> Card:
    """Build the card for the repository `to`. spec: without private paths. sources: the paths given to the fit."""
    fit, encoder = str(spec["fit"]), spec.get("encoder") or {}
    settings = dict(spec.get("settings") or {})
    values = {
        "title": to.split("/")[-1],
        "repository": to,
        "fit": fit,
        "measures": SCORERS.get(fit, (fit, ""))[1],
        "entry": entry(spec, to, "main"),
        "encoder": encoder,
        "bundled": any(str(value).rpartition(":")[2].startswith("encoder/") for value in encoder.values()),
        "sources": facts.clean(dict(sources)),
        "choosers": _choosers(settings, sources),
        "counts": [{"": key.replace("_", " "), "number": n} for key, n in (spec.get("counts") or {}).items()],
        "settings": [{"setting": key, "value": value} for key, value in settings.items()],
        "data": [{"data": key, "hash": value} for key, value in (spec.get("data") or {}).items()],
        "measured": measured_rows({key: value for key, value in spec.items() if key != "counts"}),
        "training": [
            {"": key.replace("_", " "), "value": value}
            for key, value in (spec.get("training") or {}).items()
            if not isinstance(value, (list, dict))
        ],
        "users": fit == "vbpr",
        "command": _command(fit, settings | facts.clean(dict(sources))),
        "licence": licence,
        "parts": _parts(settings, encoder),
        "recipe": {},
        "packages": [],
        "functions": [],
    }
    return Card(_metadata(fit, settings, encoder, licence), render("scorer", values), {})


def _choosers(settings: Mapping[str, Any], sources: Mapping[str, Any]) -> list[str]:
    """Return who or what chose the winners of the pairs or votes; [] if the run is not here, or for other data."""
    try:
        if sources.get("run") and settings.get("votes"):
            return facts.choosers(Store(sources["run"]), {"comparisons": [settings["votes"]]})
        path = Path(sources.get("pairs") or "")
        if path.parent.name == "pairs" and (path / "spec.json").is_file():
            return facts.choosers(Store(path.parents[1]), read_json(path / "spec.json").get("spec") or {})
    except PrefkitError:  # the run has changed or is damaged
        pass
    return []


def _parts(settings: Mapping[str, Any], encoder: Mapping[str, Any]) -> list[dict[str, str]]:
    model = settings.get("model") or encoder.get("model")
    parts = [(f"model {model}", "see its page")] if model else []
    parts.append(("data of the fit", "see its source"))
    return [{"part": p, "licence": text, "binds": facts.binds_users(f"{p} {text}", text)} for p, text in parts]


def _command(fit: str, options: Mapping[str, Any]) -> str:
    """Return the command that fits the scorer again."""
    words = ["prefkit", "fit", fit]
    for key, value in options.items():
        shown = f"[{','.join(map(str, value))}]" if isinstance(value, (list, tuple)) else value
        words += [f"--{key}", str(shown).lower() if isinstance(shown, bool) else str(shown)]
    return shlex.join(words)


def _metadata(fit: str, settings: Mapping[str, Any], encoder: Mapping[str, Any], licence: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"license": licence} if licence else {}
    base = str(settings.get("model") or encoder.get("model") or "").removeprefix("hf-hub:")
    if facts.on_hub(base):
        metadata["base_model"] = base
    return metadata | {"library_name": "prefkit", "tags": ["prefkit", "preference", "scorer", fit]}
