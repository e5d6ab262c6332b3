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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import PluginError
from prefkit.images import shown as shown_pixels
from prefkit.paths import read_regular
from prefkit.score.contract import SCOPES, checked
from prefkit.score.numbers import read_number, shown
from prefkit.types import Candidate, Score, ScorerSpec

VERSION = 1
FLAGS = ("higher_is_better", "verified", "evaluation_only")  # of a spec; the rest is text


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
        spec["range"] = _range(spec["range"], who)
    for name, value in spec.items():
        kind = bool if name in FLAGS else str
        if name != "range" and value is not None and not isinstance(value, kind):
            raise PluginError(f"{who}: {name} of its spec is {shown(value)}; it must be a {kind.__name__}.")
    scope, requires = found.get("scope", "absolute"), found.get("requires", ["image", "prompt"])
    if scope not in SCOPES:
        raise PluginError(f"{who}: its scope is {shown(scope)}; it must be one of {', '.join(SCOPES)}.")
    if not isinstance(requires, list) or not all(isinstance(name, str) for name in requires):
        raise PluginError(f"{who}: its requires is {shown(requires)}; it must be a list of names.")
    return Hello(ScorerSpec(**spec), frozenset(requires), scope)


def _range(given: Any, who: str) -> tuple[float | None, float | None]:
    bounds = (
        [None if bound is None else read_number(bound)[0] for bound in given]
        if isinstance(given, (list, tuple))
        else []
    )
    if len(bounds) != 2 or [bound is None for bound in bounds] != [bound is None for bound in given]:
        raise PluginError(
            f"{who}: its range is {shown(given)}; [lowest, highest] is needed, null where there is no bound."
        )
    return bounds[0], bounds[1]


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
    image, payload, extra = item.get("image"), item.get("payload"), item.get("extra") or {}
    if not isinstance(extra, Mapping):
        raise ValueError("extra is no object")
    return Candidate(
        str(item["id"]),
        str(item.get("request_id", "")),
        0,
        0,
        prompt=str(item.get("prompt", "")),
        image=base64.b64decode(image, validate=True) if image is not None else None,
        path=item.get("path") if paths else None,
        payload=base64.b64decode(payload, validate=True) if payload is not None else None,
        extra=extra,
    )


def file_bytes(candidate: Candidate) -> bytes:
    """The image as an encoded file: the stored bytes where every decoder shows them alike, else PNG of the pixels."""
    if candidate.image is not None:
        return shown_pixels(candidate.image)
    if candidate.path is not None:
        return shown_pixels(read_regular(candidate.path))
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
    return checked(
        Score(fields.get("value"), fields.get("aspects") or None, fields.get("text"), fields.get("error")), who
    )
