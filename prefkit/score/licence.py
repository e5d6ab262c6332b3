"""Which licences a scorer may have without a word from the user: those that allow commercial use and force no copyleft.

A scorer's licence is that of its weights. It stands in its spec; where the weights are the user's choice ("that of the
weights"), the tables below know some, and a model folder's README.md says its own in its first lines.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.score.contract import spec_of

COMMERCIAL, COPYLEFT = "forbids commercial use", "forces copyleft"
#: licence, in lower case -> what it forbids or forces
RESTRICTED = {
    "agpl-3.0": COPYLEFT,
    "gpl-2.0": COPYLEFT,
    "gpl-3.0": COPYLEFT,
    "cc-by-sa-3.0": COPYLEFT,
    "cc-by-sa-4.0": COPYLEFT,
    "cc-by-nc-2.0": COMMERCIAL,
    "cc-by-nc-3.0": COMMERCIAL,
    "cc-by-nc-4.0": COMMERCIAL,
    "cc-by-nc-nd-4.0": COMMERCIAL,
    "cc-by-nc-sa-4.0": COMMERCIAL,
    "polyform-noncommercial-1.0.0": COMMERCIAL,
    "s-lab-1.0": COMMERCIAL,
    "smpl": COMMERCIAL,
    "smpl-x": COMMERCIAL,
}
#: words by which licences without a short name say the same
WORDS = {
    COMMERCIAL: re.compile(r"non[- ]?commercial|(^|[-_ ])nc($|[-_ ])|research[- ]only", re.IGNORECASE),
    COPYLEFT: re.compile(r"(^|\W)a?gpl", re.IGNORECASE),
}
#: how the names of weights (Hub id, open_clip tag) begin that a general scorer can be given, and their licence
WEIGHTS = {
    "q-future/one-align": "S-Lab-1.0",
    "facebook/metaclip-": "CC-BY-NC-4.0",
    "metaclip_": "CC-BY-NC-4.0",
    "jinaai/jina-clip-v2": "CC-BY-NC-4.0",
}


def restriction(licence: str) -> str | None:
    """What a licence forbids or forces that has to be accepted; None where there is nothing."""
    short = licence.strip().casefold()
    for suffix in ("-only", "-or-later"):
        short = short.removesuffix(suffix)
    if short in RESTRICTED:
        return RESTRICTED[short]
    if short.startswith("lgpl"):  # asks for the library's own source only
        return None
    return next((what for what, words in WORDS.items() if words.search(licence)), None)


def licences(scorer: Any) -> dict[str, str]:
    """What -> licence: of the scorer's spec, and of weights that its options name."""
    found = {"the scorer": spec_of(scorer).licence}
    options = getattr(scorer, "options", None)
    for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
        value = getattr(options, field.name)
        if isinstance(value, str) and value:
            known = of_folder(value) or next(
                (licence for start, licence in WEIGHTS.items() if value.removeprefix("hf-hub:").startswith(start)), None
            )
            found |= {value: known} if known else {}
    return found


def of_folder(value: str) -> str | None:
    """`license:` in the first lines of README.md in a model folder."""
    try:
        folder = Path(value.removeprefix("local-dir:")).expanduser()
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace") if folder.is_dir() else ""
    except OSError:
        return None
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    lines = dict(_keys(head.group(1))) if head else {}
    named = lines.get("license", "")
    return (lines.get("license_name", named) if named == "other" else named) or None


def _keys(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and not key.startswith((" ", "-")):
            yield key.strip(), value.strip().strip("'\"")


def check_licence(scorer: Any, accepted: Sequence[str], where: str) -> None:
    """Raises UsageError, naming it, for a licence that is restricted and not accepted."""
    known = {name.casefold() for name in accepted}
    for what, licence in licences(scorer).items():
        why = restriction(licence)
        if why is not None and licence.casefold() not in known:
            raise UsageError(
                f"{where}: the licence of {what}, {licence}, {why}. If your use is one that it allows, say so with "
                f'--accept-license "{licence}" (in a recipe `accept_license: ["{licence}"]` beside `use`).'
            )
