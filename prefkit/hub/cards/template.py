"""Cards: templates filled in, and merged into a card that already stands in the repository."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prefkit.errors import StoreError

BEGIN = "<!-- prefkit:begin (rewritten by every push; write before or after it, and what you write stays) -->"
END = "<!-- prefkit:end -->"
BLOCK = re.compile(r"<!-- prefkit:begin.*?-->.*?<!-- prefkit:end -->", re.S)
FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n?^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
PLACE = re.compile(r"\{\{(\w+)\}\}")
#: lists whose entries have a name, merged entry by entry
NAMED = {"configs": "config_name", "dataset_info": "config_name"}
#: what only this program knows; elsewhere, what stands in the card holds
OWN = ("base_model", "base_model_relation", "library_name", "size_categories")
HERE = Path(__file__).parents[2]
#: in an installed package, and in a checkout
FOLDERS = (HERE / "datasets_cards", HERE.parent / "datasets_cards")


def template(name: str) -> str:
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return (folder / f"{name}.md").read_text(encoding="utf-8")


def fill(text: str, values: Mapping[str, str]) -> str:
    """The template with its places filled. A heading under which nothing is left goes. Raises KeyError for a place
    without a value."""
    sections = re.split(r"(?m)^(?=#{1,6} )", text)
    kept: list[tuple[int, str]] = []
    for section in sections:
        filled = PLACE.sub(lambda match: values[match[1]].strip("\n"), section)
        head, _, body = filled.partition("\n")
        level = len(re.match("#*", section)[0])  # type: ignore[index]
        kept.append((level, head + "\n\n" + body.strip("\n") if body.strip() else head if level else ""))
    found = []
    for number, (level, section) in enumerate(kept):
        bare = level > 1 and "\n" not in section
        inside = number + 1 < len(kept) and kept[number + 1][0] > level and "\n" in kept[number + 1][1]
        if section and (not bare or inside):
            found.append(re.sub(r"\n{3,}", "\n\n", section))
    return "\n\n".join(found) + "\n"


def assemble(metadata: Mapping[str, Any], body: str) -> str:
    """A whole card: YAML, then the body between markers."""
    return f"---\n{_yaml(metadata)}---\n\n{_block(body)}\n"


def _block(body: str) -> str:
    """Between markers; a marker in it (a recipe may hold any text) would end it too early at the next push."""
    return f"{BEGIN}\n{body.strip().replace('<!-- prefkit:', '<!- prefkit:')}\n{END}"


def merge(existing: str | None, metadata: Mapping[str, Any], body: str) -> str:
    """`existing` with the block between the markers replaced (or added at the end), and its metadata completed.

    What the user wrote stays: text outside of the markers, further keys, further configs and tags, and their value
    of keys such as license. Merging twice changes nothing. Raises StoreError where the metadata is no YAML.
    """
    if existing is None or not existing.strip():
        return assemble(metadata, body)
    head, text = split(existing)
    block = _block(body)
    if BLOCK.search(text):
        text = BLOCK.sub(lambda _: block, text, count=1)
    else:
        text = f"{text.strip()}\n\n{block}\n".lstrip("\n")
        text = f"\n{text}"
    merged = merge_metadata(head, metadata)
    if merged == head and FRONT.match(existing):  # not even its comments or its order are touched
        return FRONT.match(existing)[0] + text  # type: ignore[index]
    return f"---\n{_yaml(merged)}---\n{text if text.startswith(chr(10)) else chr(10) + text}"


def split(card: str) -> tuple[dict[str, Any], str]:
    """Metadata and text. Raises StoreError."""
    match = FRONT.match(card)
    if not match:
        return {}, card
    try:
        head = yaml.safe_load(match[1]) or {}
        if not isinstance(head, dict):
            raise ValueError("it is no mapping")
    except (yaml.YAMLError, ValueError) as error:
        raise StoreError(
            f"the card in the repository (README.md) begins with metadata that is no YAML: {' '.join(str(error).split())[:200]}. "
            "Mend it on its page, then push again; nothing was changed."
        ) from error
    return head, card[match.end() :]


def merge_metadata(existing: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(existing)
    for key, value in ours.items():
        there = found.get(key)
        if there is None or key in OWN:
            found[key] = value
        elif key in NAMED:
            found[key] = _by_name(there, value, NAMED[key])
        elif isinstance(there, list) and isinstance(value, list):
            found[key] = there + [entry for entry in value if entry not in there]
    return found


def _by_name(there: Any, ours: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Entries of ours in place of those with the same name; the others stay where they are."""
    entries = there if isinstance(there, list) else [there]
    named = {entry[key]: entry for entry in ours}
    old = {entry.get(key) for entry in entries if isinstance(entry, dict)}
    kept = [named.get(entry.get(key), entry) if isinstance(entry, dict) else entry for entry in entries]
    return kept + [entry for name, entry in named.items() if name not in old]


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1000)


# -- Markdown ---------------------------------------------------------------------------------------------------------
def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; columns are those of all rows. Empty for no rows."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(text(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def text(value: Any, longest: int = 300) -> str:
    """A value inside Markdown: one line, nothing of it read as HTML, a table's edge or a marker."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (dict, list, tuple)):
        value = (
            yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip().removesuffix("...")
        )
    line = " ".join(str(value).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return re.sub(r"([\\|`*\[\]])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def fence(content: str, language: str = "") -> str:
    """A code block that no content can end."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{content.strip()}\n{ticks}"
