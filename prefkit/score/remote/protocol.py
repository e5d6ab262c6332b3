"""What prefkit and a scorer in another process (`exec:`) or machine (`http:`) say to each other. JSON, never pickle.

First the scorer says what it is, its *hello*:

    {"protocol": 1, "spec": {"name": "mine", "version": "3"}, "requires": ["image", "prompt"], "scope": "absolute"}

`spec` holds fields of prefkit.types.ScorerSpec (name and version at least); requires and scope may be left out. Then each
batch is one request and one answer of the same length and order:

    {"items": [{"id": "c1", "request_id": "r1", "prompt": "a red hat", "extra": {...}, "image": "<base64>"}]}
    {"scores": [{"value": 0.7, "aspects": {"colour": 1.0}, "text": "..."}]}

A score may also be a bare number; a failure is null, or {"value": null, "error": "why"}; a request that fails as a whole
is answered with {"error": "why"}. `image` is an encoded file as stored (PNG, JPEG or WebP); `payload`, a safetensors file
in base64, is there where `requires` names it.

exec:  the hello is the first line of the process's standard output; requests are lines on its standard input, answers
       lines on its standard output. Each request carries "request": N, and its answer the same. Standard error is passed
       on. With `images: path` an item has "path" instead of "image".
http:  GET /hello, and POST /score.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import PluginError
from prefkit.images import shown
from prefkit.paths import read_regular
from prefkit.types import Candidate, Score, ScorerSpec

VERSION = 1
SCOPES = ("absolute", "within_request")


@dataclasses.dataclass(frozen=True)
class Hello:
    spec: ScorerSpec
    requires: frozenset[str]
    scope: str


def hello_of(scorer: Any) -> dict[str, Any]:
    spec = {k: v for k, v in dataclasses.asdict(scorer.spec()).items() if v is not None}
    return {"protocol": VERSION, "spec": spec, "requires": sorted(scorer.requires), "scope": scorer.scope}


def read_hello(found: Any, who: str) -> Hello:
    """Raises PluginError, naming what is missing or wrong."""
    if not isinstance(found, Mapping) or not isinstance(found.get("spec"), Mapping):
        raise PluginError(f"{who} does not say what it is; see prefkit/score/remote/protocol.py for its first words.")
    if found.get("protocol") != VERSION:
        raise PluginError(f"{who} speaks protocol {found.get('protocol')!r}; this prefkit speaks {VERSION}.")
    spec = dict(found["spec"])
    known = {f.name for f in dataclasses.fields(ScorerSpec)}
    if {"name", "version"} - set(spec) or set(spec) - known:
        raise PluginError(
            f"{who}: its spec must have name and version, and nothing but {', '.join(sorted(known))}; it has "
            f"{', '.join(sorted(spec)) or 'nothing'}."
        )
    spec["version"] = str(spec["version"])
    if "range" in spec:
        spec["range"] = tuple(spec["range"])
    scope = found.get("scope", "absolute")
    if scope not in SCOPES:
        raise PluginError(f"{who}: its scope is {scope!r}; it must be one of {', '.join(SCOPES)}.")
    return Hello(ScorerSpec(**spec), frozenset(found.get("requires", ["image", "prompt"])), scope)


def item_of(candidate: Candidate, requires: frozenset[str], path: Path | None = None) -> dict[str, Any]:
    """path: where the image lies, to be named instead of being sent."""
    item: dict[str, Any] = {
        "id": candidate.id,
        "request_id": candidate.request_id,
        "prompt": candidate.prompt,
        "extra": dict(candidate.extra),
    }
    if path is not None:
        item["path"] = str(path)
    elif "image" in requires:
        item["image"] = base64.b64encode(file_bytes(candidate)).decode()
    if "payload" in requires and candidate.payload is not None:
        item["payload"] = base64.b64encode(candidate.payload).decode()
    return item


def candidate_of(item: Mapping[str, Any], paths: bool) -> Candidate:
    """The other way; a path counts only where `paths` says so. Raises ValueError or KeyError for what is no item."""
    image, payload = item.get("image"), item.get("payload")
    return Candidate(
        str(item["id"]),
        str(item.get("request_id", "")),
        0,
        0,
        prompt=str(item.get("prompt", "")),
        image=base64.b64decode(image, validate=True) if image is not None else None,
        path=item.get("path") if paths else None,
        payload=base64.b64decode(payload, validate=True) if payload is not None else None,
        extra=item.get("extra") or {},
    )


def file_bytes(candidate: Candidate) -> bytes:
    """The image as an encoded file: the stored bytes where every decoder shows them alike, else PNG of the pixels."""
    if candidate.image is not None:
        return shown(candidate.image)
    if candidate.path is not None:
        return shown(read_regular(candidate.path))
    buffer = io.BytesIO()
    candidate.pil().save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def score_row(score: Score) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(score).items() if v is not None or k == "value"}


def read_scores(found: Any, count: int, who: str) -> list[Score]:
    """`count` scores. An answer of another shape is a failure of all; what is no finite number is a failure of its own."""
    if isinstance(found, Mapping) and found.get("error"):
        return [Score(None, error=f"{who}: {str(found['error'])[:500]}")] * count
    scores = found.get("scores") if isinstance(found, Mapping) else None
    if not isinstance(scores, list) or len(scores) != count:
        had = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
        return [Score(None, error=f"{who} answered {had} for {count} images")] * count
    return [_score(row, who) for row in scores]


def _score(row: Any, who: str) -> Score:
    fields = row if isinstance(row, Mapping) else {"value": row}
    value, error = fields.get("value"), fields.get("error")
    if value is not None and not _is_number(value):
        value, error = None, f"{who} answered {str(value)[:50]!r}, which is no finite number"
    aspects = fields.get("aspects") or {}
    if not isinstance(aspects, Mapping) or not all(_is_number(v) for v in aspects.values()):
        return Score(None, error=f"{who} answered aspects that are no numbers")
    if value is None or error:
        return Score(None, aspects or None, error=str(error or f"{who} gave no value and no reason"))
    text = fields.get("text")
    return Score(float(value), aspects or None, None if text is None else str(text))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
