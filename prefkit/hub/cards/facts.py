"""What both cards say about a run: generators, requests, scorers, licences, and the recipe without secrets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefkit.hub.cards import template as card

if TYPE_CHECKING:
    from prefkit.store import Store

#: keys whose values are hidden; max_tokens and tokenizer are none of them
SECRET = re.compile(r"(?i)(?<!max_)(?<!new_)tokens?$|secret|password|passwd|api[_-]?key|authorization|credential")
#: values in the query of an address that are hidden
QUERY = re.compile(r"(?i)([?&](?:[\w-]*(?:token|secret|passw|key|auth|credential)[\w-]*|sig|signature)=)[^&#\s]+")
PATH = re.compile(r"(~|/|file://|[A-Za-z]:\\)")
#: licences that bind whoever uses what was made with the part
RESTRICTED = re.compile(
    r"(?i)non[- ]?commercial|not? (for )?commercial|\bnc\b|-nc\b|smpl|research[- ](use[- ])?only|\ba?gpl|\bby-sa\b|s-lab|"
    r"open[- ]?rail|community licen[cs]e|flux.*dev"
)
#: licences that ask for no more than their notice; of any other it is not known here what it asks
FREE = re.compile(r"(?i)(apache|mit\b|bsd|isc\b|zlib|cc0|unlicense|public domain)")


def relevant(recipe: Mapping[str, Any], section: str, name: str) -> dict[str, Any]:
    """What a result follows from: of `section` (pair or train) the entry `name`, and what stands before it."""
    stages = ("generate", "score", "pair", "train")
    kept = ("run", "model", "requests", *stages[: stages.index(section)])
    found = {key: recipe[key] for key in kept if recipe.get(key)}
    own = (recipe.get(section) or {}).get(name)
    return found | ({section: {name: own}} if own else {}) if found else {}


def recipe_of(store: Store) -> dict[str, Any]:
    """recipe.yaml as a tree, without secrets and without the places where files lie on this machine."""
    path = store.folder / "recipe.yaml"
    if not path.exists():
        return {}
    found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return clean(found) if isinstance(found, dict) else {}


def clean(value: Any, key: str = "") -> Any:
    """Values of keys that sound like a secret are starred; of absolute paths and addresses only what names them stays."""
    if isinstance(value, Mapping):
        inside = key if SECRET.search(key) else ""  # what lies in `credentials` is secret, whatever it is called
        return {_shown(k): clean(v, inside or str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [clean(entry, key) for entry in value]
    if SECRET.search(key) and isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
        return "***"
    return _shown(value)


def _shown(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if PATH.match(value):
        return ".../" + re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    if value.startswith("exec:"):  # a command: program and arguments
        words = value.removeprefix("exec:").split(" ")
        return "exec:" + " ".join(str(_shown(word)) for word in words)
    return QUERY.sub(r"\1***", re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", value))


def generators(store: Store, recipe: Mapping[str, Any]) -> str:
    rows = []
    for name in store.names("candidates"):
        spec = store.candidates(name).spec() or {}
        settings = dict(spec.get("settings") or {})
        frame = store.candidates(name).frame(["id", "error"])
        rows.append(
            {
                "generator": name,
                "model": _maker(name, spec, recipe),
                "revision": spec.get("code") if spec.get("imported") else spec.get("model") or spec.get("code"),
                "adapters": ", ".join(f"{_shown(str(k))} ({v})" for k, v in dict(spec.get("adapters") or {}).items())
                or None,
                "settings": clean(settings) or None,
                "images": int(frame.error.isna().sum()),
                "failed": int(frame.error.notna().sum()),
            }
        )
    lead = "No generator ran here: the images were imported." if not rows else "The revision is the Hub's commit, or a hash of the weights."  # fmt: skip
    return f"{lead}\n\n{card.table(rows)}"


def _maker(name: str, spec: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What made the images of candidates/NAME, where that is known."""
    if spec.get("imported"):
        return f"none here: imported as {spec['imported']}"
    if spec.get("use", "diffusers") != "diffusers":
        return str(_shown(spec["use"]))
    own = (recipe.get("generate") or {}).get(name)
    if own is None:
        return "not stated: the recipe does not have this generator"
    return f"train/{own['model']} of {base_of(recipe)}" if own.get("model") else base_of(recipe)


def base_of(recipe: Mapping[str, Any]) -> str:
    model = recipe.get("model") or {}
    return f"{model.get('base') or 'not stated'}" + (f" at {model['revision']}" if model.get("revision") else "")


def requests(store: Store, recipe: Mapping[str, Any]) -> str:
    members = store.requests()
    counts = Counter(request.split for request in members)
    source = _shown((recipe.get("requests") or {}).get("source") or "") or "not stated (imported with the images)"
    splits = ", ".join(f"{n:,} in {split}" for split, n in sorted(counts.items())) or "none stored"
    return f"Source: {card.text(source)}. {len(members):,} requests: {splits}. A request is in one split only."


def scorer_rows(store: Store) -> list[dict[str, Any]]:
    rows = []
    for alias in store.names("scores"):
        spec = store.scores(alias).spec() or {}
        values = store.scores(alias).frame(["id", "value"]).value
        rows.append(
            {
                "column": f"score_{alias}",
                "scorer": f"{spec.get('name', '?')} {spec.get('version', '')}".strip(),
                "weights": _shown(spec.get("weights")),
                "revision": spec.get("revision"),
                "formula": spec.get("formula") or None,
                "better": "higher" if spec.get("higher_is_better", True) else "lower",
                "licence": spec.get("licence") or "not stated",
                "checked with published weights": bool(spec.get("verified")),
                "scored": int(values.notna().sum()),
                "failed": int(values.isna().sum()),
            }
        )
    return rows


def licence_rows(store: Store, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Part, licence, and whether it binds users of the result (None = nobody has said)."""
    rows = (
        [{"part": f"model {base_of(recipe)}", "licence": "see its page"}]
        if (recipe.get("model") or {}).get("base")
        else []
    )
    for name in store.names("candidates"):
        layout = (store.candidates(name).spec() or {}).get("imported")
        rows += (
            [{"part": f"images and verdicts imported as {layout}", "licence": "see where they come from"}]
            if layout
            else []
        )
    for alias in store.names("scores"):
        spec = store.scores(alias).spec() or {}
        if "imported" in spec:  # ratings that came with the images
            continue
        weights = f" ({_shown(spec['weights'])})" if spec.get("weights") else ""
        rows.append(
            {"part": f"scorer {spec.get('name', alias)}{weights}", "licence": spec.get("licence") or "not stated"}
        )
    rows = [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in rows)]
    for row in rows:
        row["binds users"] = _binds(f"{row['part']} {row['licence']}", row["licence"])
    return rows


def _binds(words: str, licence: str) -> str:
    if RESTRICTED.search(words):
        return "**yes: read its terms before any use**"
    return "no" if FREE.match(licence) else "not known here"


def restricted(rows: list[dict[str, Any]]) -> list[str]:
    return [row["part"] for row in rows if row["binds users"].startswith("**yes")]


def licences(rows: list[dict[str, Any]], stated: str | None) -> str:
    own = (
        f"Stated by whoever published this: {card.text(stated)}."
        if stated
        else "Whoever published this has not stated a licence for it."
    )
    lines = [f"| {card.text(row['part'])} | {card.text(row['licence'])} | {row['binds users']} |" for row in rows]
    parts = "\n".join(["| part | licence | binds users of the result |", "|---|---|---|", *lines]) if lines else ""
    return f"{own} What it was made with has licences of its own:\n\n{parts}" if parts else own


def rebuild(recipe: Mapping[str, Any], packages: Mapping[str, Any], stages: str) -> str:
    """The recipe itself, and the versions it ran with. Starred values were left out."""
    if not recipe:
        return "This run has no recipe: its tables were imported."
    if not (recipe.get("requests") or {}).get("source"):
        return (
            "A recipe alone cannot rebuild it: its requests and images were imported (see the licences for the kind of "
            "source). The settings of this part were:\n\n"
            + card.fence(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100), "yaml")
        )
    versions = ", ".join(card.text(f"{name} {version}") for name, version in packages.items()) or "versions not noted"
    text = yaml.safe_dump({**recipe, "run": "runs/rebuilt"}, sort_keys=False, allow_unicode=True, width=100)
    return (
        f"Save this as recipe.yaml and run `prefkit run -r recipe.yaml` ({stages}). It ran with {versions}. Paths that "
        f"begin with `.../` lay on the machine of whoever made it.\n\n{card.fence(text, 'yaml')}"
    )


def shown_name(path: str | Path) -> str:
    return str(_shown(str(path)))
