"""Facts about a run that dataset and model cards state: generators, scorers, licences, the recipe without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefkit.errors import StoreError
from prefkit.registry import PASSED
from prefkit.store.files import read_json
from prefkit.verified import shown

if TYPE_CHECKING:
    from prefkit.store import Store

#: recipe keys whose values are hidden; max_tokens and tokenizer do not match
SECRET = re.compile(r"(?i)(?<!max_)(?<!new_)tokens?$|secret|password|passwd|api[_-]?key|authorization|credential")
#: URL query parameters whose values are hidden
QUERY = re.compile(r"(?i)([?&](?:[\w-]*(?:token|secret|passw|key|auth|credential)[\w-]*|sig|signature)=)[^&#\s]+")
REPOSITORY = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
PATH = re.compile(r"(~|/|file://|[A-Za-z]:\\)")
FOLDER = "local-dir:"  # open_clip's prefix of a folder; inside a text, such as the name of weights, up to a space
INSIDE = re.compile(r"local-dir:((?:~|/|[A-Za-z]:\\)\S*)")
#: licences of models, scorers or data that also bind users of images or models made with them
RESTRICTED = re.compile(
    r"(?i)non[- ]?commercial|not? (for )?commercial|\bnc\b|-nc\b|smpl|research[- ](use[- ])?only|\ba?gpl|"
    r"\bby-sa\b|s-lab|open[- ]?rail|community licen[cs]e|flux.*dev"
)
#: layouts of imports whose verdicts people gave
BY_PEOPLE = ("votes", "pickapic", "hpdv2", "hpdv3", "imagerewarddb", "open_image_preferences", "rapidata")
#: licences that only require keeping their notice; a licence that matches neither RESTRICTED nor FREE is unknown
FREE = re.compile(r"(?i)(apache|mit\b|bsd|isc\b|zlib|cc0|unlicense|public domain)")


def shared(store: Store, recipe: Mapping[str, Any], section: str, name: str, licence: str | None) -> dict[str, Any]:
    """Return the values that card.md.j2 needs for pairs/NAME or train/NAME, except the title."""
    try:
        packages = read_json(store.folder / "run.json").get("packages") or {}
    except StoreError:
        packages = {}
    return {
        "licence": licence,
        "parts": licence_rows(store, recipe),
        "recipe": relevant(recipe, section, name),
        "functions": sorted(_functions(relevant(recipe, section, name))),
        "packages": [f"{package} {version}" for package, version in packages.items()],
    }


def relevant(recipe: Mapping[str, Any], section: str, name: str) -> dict[str, Any]:
    """Return the parts of a recipe behind a result: earlier stages, and entry `name` of `section` (pair or train)."""
    stages = ("generate", "score", "pair", "train")
    keys = ("run", "model", "requests", *stages[: stages.index(section)])
    parts = {key: recipe[key] for key in keys if recipe.get(key)}
    entry = (recipe.get(section) or {}).get(name)
    return parts | ({section: {name: entry}} if entry else {}) if parts else {}


def _functions(value: Any) -> set[str]:
    """Return the names of plug-ins that were functions or classes in Python code."""
    if isinstance(value, (Mapping, list)):
        return {
            name for inner in (value.values() if isinstance(value, Mapping) else value) for name in _functions(inner)
        }
    return {value} if isinstance(value, str) and value.startswith(f"{PASSED}:") else set()


def recipe_of(store: Store) -> dict[str, Any]:
    """Read recipe.yaml, with secrets hidden and absolute paths shortened (see `clean`); {} if there is none."""
    path = store.folder / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return clean(recipe) if isinstance(recipe, dict) else {}


def clean(value: Any, key: str = "") -> Any:
    """Replace secrets (values of keys that match SECRET, parts of URLs) by ***, and /PATH/TO/NAME by .../NAME."""
    if isinstance(value, Mapping):
        inside = key if SECRET.search(key) else ""  # everything nested under a key like `credentials` is secret
        return {clean_text(k): clean(v, inside or str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [clean(entry, key) for entry in value]
    if SECRET.search(key) and isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
        return "***"
    return clean_text(value)


def clean_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = re.sub(r"^(\.\./)+", "", value)  # a path in recipe.yaml starts at the run folder
    if value.startswith(FOLDER):
        return FOLDER + clean_text(value.removeprefix(FOLDER))
    value = INSIDE.sub(lambda match: FOLDER + clean_text(match[1]), value)
    if PATH.match(value):
        return ".../" + re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    if value.startswith("exec:"):  # a command: program and arguments
        return "exec:" + " ".join(map(clean_text, value.removeprefix("exec:").split(" ")))
    return QUERY.sub(r"\1***", re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", value))


def generators(store: Store, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a table row for each generator."""
    rows = []
    for name in store.names("candidates"):
        spec = store.candidates(name).spec() or {}
        failed = store.candidates(name).frame(["id", "error"]).error.notna()
        adapters = [f"{clean_text(str(k))} ({v})" for k, v in dict(spec.get("adapters") or {}).items()]
        rows.append(
            {
                "generator": name,
                "model": _model(name, spec, recipe),
                "revision": spec.get("code") if spec.get("imported") else spec.get("model") or spec.get("code"),
                "adapters": ", ".join(adapters) or None,
                "settings": clean(dict(spec.get("settings") or {})) or None,
                "images": int((~failed).sum()),
                "failed": int(failed.sum()),
            }
        )
    return rows


def _model(name: str, spec: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Return the model that made the images of candidates/NAME, or the reason why it is unknown."""
    if spec.get("imported"):
        return f"none in this run: imported as {spec['imported']}"
    if spec.get("use", "diffusers") != "diffusers":
        return str(clean_text(spec["use"]))
    settings = (recipe.get("generate") or {}).get(name)
    if settings is None:
        return "unknown: the recipe does not list this generator"
    return f"train/{settings['model']} of {base_of(recipe)}" if settings.get("model") else base_of(recipe)


def on_hub(name: str) -> bool:
    """True if the name is a repository on the Hub and not a local path."""
    return bool(REPOSITORY.fullmatch(name)) and not Path(name).exists()


def base_of(recipe: Mapping[str, Any]) -> str:
    """Return the base model, with its revision if the recipe names one."""
    model = recipe.get("model") or {}
    return f"{model.get('base') or 'unknown'}" + (f" at {model['revision']}" if model.get("revision") else "")


def scorers(store: Store, used: Mapping[str, Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return a table row for each score. used: score name -> spec of the scorer at the time of its use.

    A scorer that has changed since its use is described as it was then, without the counts of its current scores.
    """
    rows = []
    for alias in store.names("scores"):
        current = store.scores(alias).spec() or {}
        spec = dict((used or {}).get(alias) or current)
        same = all(spec.get(key) == current.get(key) for key in ("name", "version", "weights", "revision"))
        values = store.scores(alias).frame(["id", "value"]).value
        rows.append(
            {
                "column": f"score_{alias}",
                "scorer": f"{spec.get('name', '?')} {spec.get('version', '')}".strip(),
                "weights": clean_text(spec.get("weights")),
                "revision": spec.get("revision"),
                "formula": spec.get("formula") or None,
                "better": "higher" if spec.get("higher_is_better", True) else "lower",
                "licence": spec.get("licence") or "unknown",
                "checked with published weights": shown(spec.get("verified", "")),
                "scored": int(values.notna().sum()) if same else "by a later version",
                "failed": int(values.isna().sum()) if same else None,
            }
        )
    return rows


def choosers(store: Store, spec: Mapping[str, Any]) -> list[str]:
    """Return who or what chose the winners of a pair set: people, a model or a program. spec: of its spec.json."""
    texts = [f"{_judge_of(store.comparisons(table).spec() or {})} ({table})" for table in tables_of(spec)]
    for alias in spec.get("weights") or {}:
        scorer = (spec.get("scorers") or {}).get(alias) or {}
        name = str(scorer.get("name", alias))
        kind = "an external program" if re.match(r"exec:|https?:", name) else "a program"
        texts.append(f"the scorer {alias} ({'a model' if scorer.get('weights') else kind})")
    return texts


def tables_of(spec: Mapping[str, Any]) -> list[str]:
    """Return the names of the tables under comparisons/ whose verdicts chose the winners."""
    tables = spec.get("comparisons") or []
    return [tables] if isinstance(tables, str) else list(tables)


def _judge_of(spec: Mapping[str, Any]) -> str:
    layout = spec.get("imported")
    if layout in BY_PEOPLE:
        return "people" if layout == "votes" else f"people, imported as {layout}"
    if layout:
        return f"an unknown judge, imported as {layout}"
    return f"the model {clean_text(str(spec['name']))}" if spec.get("name") else "an unknown judge"


def licence_rows(store: Store, recipe: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return {part, licence, binds} for each model, import and scorer of a run; for binds see `binds_users`."""
    parts = [(f"model {base_of(recipe)}", "see its page")] if (recipe.get("model") or {}).get("base") else []
    for name in store.names("candidates"):
        if layout := (store.candidates(name).spec() or {}).get("imported"):
            parts.append((f"images and verdicts imported as {layout}", "see their source"))
    for alias in store.names("scores"):
        spec = store.scores(alias).spec() or {}
        if "imported" not in spec:  # else they are ratings that came with the images
            weights = f" ({clean_text(spec['weights'])})" if spec.get("weights") else ""
            parts.append((f"scorer {spec.get('name', alias)}{weights}", spec.get("licence") or "unknown"))
    return [
        {"part": part, "licence": licence, "binds": binds_users(f"{part} {licence}", licence)}
        for part, licence in dict.fromkeys(parts)
    ]


def binds_users(words: str, licence: str) -> str:
    """Return "yes", "no" or "unknown": does the licence also bind users of the result? words: part name and licence."""
    return "yes" if RESTRICTED.search(words) else "no" if FREE.match(licence) else "unknown"


def restricted(rows: list[dict[str, str]]) -> list[str]:
    return [row["part"] for row in rows if row["binds"] == "yes"]
