"""Cards: jinja2 templates from datasets_cards/, rendered and merged into the card that a repository already has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from markupsafe import Markup

from prefkit.errors import StoreError

BEGIN = "<!-- prefkit:begin (rewritten by every push; write before or after it, and what you write stays) -->"
END = "<!-- prefkit:end -->"
BLOCK = re.compile(r"<!-- prefkit:begin.*?-->.*?<!-- prefkit:end -->", re.S)
#: the metadata at the start of a card; it may be empty (then RepoCard of huggingface_hub would read to a later ---)
FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
#: metadata that every push replaces; for other keys the value in the repository wins
REPLACED = ("base_model", "base_model_relation", "library_name", "size_categories")
PACKAGE = Path(__file__).parents[2]
FOLDERS = (PACKAGE / "datasets_cards", PACKAGE.parent / "datasets_cards")  # in a wheel, in a checkout


class Card(NamedTuple):
    """The metadata (YAML) and body of a card, and the recipe that reproduces the described pairs or model."""

    metadata: Mapping[str, Any]
    body: str
    recipe: Mapping[str, Any]


def render(name: str, facts: Mapping[str, Any]) -> str:
    """Fill the template datasets_cards/NAME.md.j2. Raises jinja2.UndefinedError for a variable that `facts` lacks.

    Every value is escaped for Markdown: `finalize` calls `markdown`, which leaves Markup unchanged; autoescape marks
    the output of filters, macros and blocks as Markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDERS),
        autoescape=True,
        finalize=markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fence": fence, "markdown": markdown, "table": table, "yaml": dump_yaml}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(f"{name}.md.j2").render(facts)


def merge(existing: str | None, metadata: Mapping[str, Any], body: str) -> str:
    """Return the card `existing` with prefkit's marked block replaced by `body` (or appended), and its metadata merged.

    What users wrote is kept: text outside the markers; metadata keys, configs and tags that prefkit does not write;
    values such as license. Merging again changes nothing. Raises StoreError if the metadata of `existing` is not YAML.
    """
    existing = existing or ""
    # a marker inside the body (a recipe may hold any text) would end the block too early at the next push
    block = f"{BEGIN}\n{body.strip().replace('<!-- prefkit:', '<!- prefkit:')}\n{END}"
    old, text = split(existing)
    new = _merge_metadata(old, metadata)
    front = existing.removesuffix(text)  # unchanged, with comments and key order, unless a value changes
    if BLOCK.search(text):
        text = BLOCK.sub(lambda _: block, text, count=1)
    else:
        text = f"\n{text.strip()}\n\n{block}\n" if text.strip() else f"\n{block}\n"
    if new != old:
        front = f"---\n{dump_yaml(new, width=1000)}---\n" + ("" if text.startswith("\n") else "\n")
    return front + text


def split(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into metadata and text. Raises StoreError if the metadata is not a YAML mapping."""
    match = FRONT.match(card)
    if match is None:
        return {}, card
    try:
        metadata = yaml.safe_load(match[1]) or {}
        if not isinstance(metadata, dict):
            raise ValueError("it is not a mapping")
    except (yaml.YAMLError, ValueError) as error:
        raise StoreError(
            "the metadata of the card in the repository (README.md) is not valid YAML: "
            f"{' '.join(str(error).split())[:200]}. Fix it on the Hub, then push again; nothing was changed."
        ) from error
    return metadata, card[match.end() :]


def _merge_metadata(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(theirs)
    for key, value in ours.items():
        old = theirs.get(key)
        if old is None or key in REPLACED:
            merged[key] = value
        elif key in ("configs", "dataset_info"):  # entry by entry
            named = {entry["config_name"]: entry for entry in value}
            entries = old if isinstance(old, list) else [old]
            kept = [named.pop(e.get("config_name"), e) if isinstance(e, dict) else e for e in entries]
            merged[key] = [*kept, *named.values()]
        elif isinstance(old, list) and isinstance(value, list):
            merged[key] = old + [entry for entry in value if entry not in old]
    return merged


def dump_yaml(value: Mapping[str, Any], width: int = 100) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=width)


def table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Format rows as a Markdown table with every column that any row has; return "" without rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    body = ["| " + " | ".join(markdown(row.get(name)) for name in columns) + " |" for row in rows]
    header = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return Markup("\n".join(header + body) if rows else "")


def markdown(value: Any, longest: int = 300) -> Markup:
    """Escape a value for Markdown, on one line of at most `longest` characters. Markup is returned unchanged."""
    if isinstance(value, Markup):
        return value
    if value is None or isinstance(value, bool):
        return Markup({None: "-", True: "yes", False: "no"}[value])
    if isinstance(value, (int, float)):
        return Markup(f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    if isinstance(value, (dict, list, tuple)):
        value = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    line = " ".join(str(value).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return Markup(re.sub(r"([\\|`*\[\]])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;")))


def fence(content: str, language: str = "") -> Markup:
    """Return a code block, with a fence longer than any run of backticks in `content`."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}{language}\n{str(content).strip()}\n{ticks}")
