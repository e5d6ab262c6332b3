"""Check of scorers' licences: the user must accept a licence that forbids commercial use or forces copyleft.

The licence of a scorer is the licence of its weights. If the spec says "that of the weights", the user chooses the
weights, and prefkit looks up their licence in `WEIGHTS` and in the header of the model folder's README.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.score.contract import spec_of
from prefkit.types import ScorerSpec

OF_WEIGHTS = "that of the weights"
COMMERCIAL, COPYLEFT = "forbids commercial use", "forces copyleft"
#: licence in lower case -> restriction
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
#: restriction -> pattern that detects it in the names of licences that RESTRICTED does not list
WORDS = {
    COMMERCIAL: re.compile(r"non[- ]?commercial|(^|[-_ ])nc($|[-_ ])|research[- ]only", re.IGNORECASE),
    COPYLEFT: re.compile(r"(^|\W)a?gpl", re.IGNORECASE),
}
#: prefix of the Hub id or open_clip tag of weights that the user may choose -> licence of these weights
WEIGHTS = {
    "q-future/one-align": "S-Lab-1.0",
    "facebook/metaclip-": "CC-BY-NC-4.0",
    "metaclip_": "CC-BY-NC-4.0",
    "jinaai/jina-clip-v2": "CC-BY-NC-4.0",
}


def with_licence_of(spec: ScorerSpec, given: str, default: str) -> ScorerSpec:
    """Return `spec`, whose licence is that of the published weights `default`, with OF_WEIGHTS if others are `given`."""
    return spec if given == default else dataclasses.replace(spec, licence=OF_WEIGHTS)


def restriction(licence: str) -> str | None:
    """Return COMMERCIAL or COPYLEFT for a licence that the user must accept, else None."""
    short = licence.strip().casefold()
    for suffix in ("-only", "-or-later"):
        short = short.removesuffix(suffix)
    if short in RESTRICTED:
        return RESTRICTED[short]
    if short.startswith("lgpl"):  # its copyleft covers the library's own source only
        return None
    return next((kind for kind, words in WORDS.items() if words.search(licence)), None)


def licences(scorer: Any) -> dict[str, str]:
    """Return {name: licence}: for "the scorer", the licence in its spec; for weights in its options, their licence."""
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
    """Return the licence in the header of a model folder's README.md, or None."""
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
    """Raise UsageError if a restricted licence of the scorer is not in `accepted`."""
    known = {name.casefold() for name in accepted}
    for weights, licence in licences(scorer).items():
        kind = restriction(licence)
        if kind is not None and licence.casefold() not in known:
            raise UsageError(
                f"{where}: the licence of {weights}, {licence}, {kind}. If it allows your use, accept it with "
                f'--accept-license "{licence}" (in a recipe: `accept_license: ["{licence}"]` next to `use`).'
            )
