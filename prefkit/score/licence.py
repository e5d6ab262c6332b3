"""Check of scorers' licences: one that forbids commercial use or forces copyleft must be accepted by the user.

A scorer's licence is that of its weights. Scorers whose spec says "that of the weights" take any weights: the table below
lists the licences of some, and a model folder states its own in the header of its README.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
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
#: words for the same restrictions in licences without a short name
WORDS = {
    COMMERCIAL: re.compile(r"non[- ]?commercial|(^|[-_ ])nc($|[-_ ])|research[- ]only", re.IGNORECASE),
    COPYLEFT: re.compile(r"(^|\W)a?gpl", re.IGNORECASE),
}
#: prefix of the name of weights (Hub id, open_clip tag) that a scorer with a free choice of weights may use -> licence
WEIGHTS = {
    "q-future/one-align": "S-Lab-1.0",
    "facebook/metaclip-": "CC-BY-NC-4.0",
    "metaclip_": "CC-BY-NC-4.0",
    "jinaai/jina-clip-v2": "CC-BY-NC-4.0",
}


def restriction(licence: str) -> str | None:
    """COMMERCIAL or COPYLEFT for a licence that must be accepted, else None."""
    short = licence.strip().casefold()
    for suffix in ("-only", "-or-later"):
        short = short.removesuffix(suffix)
    if short in RESTRICTED:
        return RESTRICTED[short]
    if short.startswith("lgpl"):  # its copyleft covers the library's own source only
        return None
    return next((kind for kind, words in WORDS.items() if words.search(licence)), None)


def licences(scorer: Any) -> dict[str, str]:
    """Licences of the scorer's spec ("the scorer" -> licence) and of weights in its options (weights -> licence)."""
    result = {"the scorer": spec_of(scorer).licence}
    options = getattr(scorer, "options", None)
    for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
        value = getattr(options, field.name)
        if isinstance(value, str) and value:
            name = value.removeprefix("hf-hub:")
            licence = of_folder(value) or next(
                (known for start, known in WEIGHTS.items() if name.startswith(start)), None
            )
            result |= {value: licence} if licence else {}
    return result


def of_folder(value: str) -> str | None:
    """The `license:` in the header of README.md in a model folder."""
    try:
        folder = Path(value.removeprefix("local-dir:")).expanduser()
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace") if folder.is_dir() else ""
    except OSError:
        return None
    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    keys = dict(re.findall(r"^([^ :-][^:\n]*):(.*)$", header[1], re.MULTILINE)) if header else {}
    values = {key.strip(): value.strip().strip("'\"") for key, value in keys.items()}
    licence = values.get("license", "")
    return (values.get("license_name", licence) if licence == "other" else licence) or None


def check_licence(scorer: Any, accepted: Sequence[str], where: str) -> None:
    """Raises UsageError for a restricted licence that is not accepted."""
    known = {name.casefold() for name in accepted}
    for weights, licence in licences(scorer).items():
        kind = restriction(licence)
        if kind is not None and licence.casefold() not in known:
            raise UsageError(
                f"{where}: the licence of {weights}, {licence}, {kind}. If it allows your use, accept it with "
                f'--accept-license "{licence}" (in a recipe: `accept_license: ["{licence}"]` next to `use`).'
            )
