"""Message schema between prefkit and a scorer in another process (`exec:`) or on another machine (`http:`): JSON, no pickle.

First, the scorer sends a *hello* that describes it:

    {"protocol": 1, "spec": {"name": "mine", "version": "3"}, "requires": ["image", "prompt"], "scope": "absolute"}

`spec` has fields of prefkit.types.ScorerSpec, at least name and version; `requires` and `scope` are optional. Then each
batch is one request and one answer, with one score per item, in the same order:

    {"items": [{"id": "c1", "request_id": "r1", "prompt": "a red hat", "extra": {...}, "image": "<base64>"}]}
    {"scores": [{"value": 0.7, "aspects": {"colour": 1.0}, "text": "..."}]}

A score may also be a bare number. A failed score is null, or {"value": null, "error": "why"}; a failed request is answered
with {"error": "why"}. `extra` has the other columns of the request, such as keypoints2d and camera.

If a column in `requires` holds input images, `extra` has their ids, and `inputs` has {id: the image's file in base64}.

`requires` lists what the scorer needs in each item, besides id, request_id, prompt and extra:

    image     the candidate's image in base64: an encoded file as stored (PNG, JPEG or WebP)
    payload   the candidate's payload in base64: a safetensors file with a mesh, or with the final latents of an image
    arrays    the same payload as JSON: `arrays` has each tensor as nested lists of numbers (null for NaN), such as
              {"joints3d": [[x, y, z], ...], "pose": [...]}; `metadata` has the rest, such as {"joint_names": [...]}

prefkit/mesh/payload.py lists the tensors of a mesh. If the scorer requires a payload and a candidate has none, prefkit
stops with an error and sends nothing. Any other name in `requires` is a column that every request must have.

exec:  the process writes the hello as the first line of its standard output, before it reads anything. Requests are lines on
       its standard input, answers are lines on its standard output; both have "request": N. The process must flush each line
       (prefkit sets PYTHONUNBUFFERED, so Python does). With `images: path`, items have "path" instead of "image".
http:  GET /hello, and POST /score.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from prefkit.errors import PluginError
from prefkit.images import shown as shown_pixels
from prefkit.mesh.payload import MARK
from prefkit.paths import read_regular
from prefkit.score.contract import SCOPES, checked, read_number, shown
from prefkit.types import Candidate, Score, ScorerSpec

VERSION = 1
FLAGS = ("higher_is_better", "evaluation_only")  # boolean fields of a spec; all others except `range` are text


@dataclasses.dataclass(frozen=True)
class Hello:
    spec: ScorerSpec
    requires: frozenset[str]
    scope: str


class RemoteScorer:
    """A scorer that a hello describes. Transports (process.py, web.py) define `connect` and `score`, and
    prefkit.registry makes a subclass with the `address` of each `use`."""

    address = ""
    alone = True

    def connect(self) -> Hello:
        """Fetch the hello. Raises PluginError if it is missing or invalid."""
        raise NotImplementedError  # each transport (process.py, web.py) defines it

    @cached_property
    def hello(self) -> Hello:
        return self.connect()

    @property
    def requires(self) -> frozenset[str]:
        """Names in the hello's `requires`, with `payload` in place of `arrays`, which are made from the payload."""
        asked = self.hello.requires
        return asked - {"arrays"} | {"payload"} if "arrays" in asked else asked

    @property
    def scope(self) -> str:
        return self.hello.scope

    def spec(self) -> ScorerSpec:
        return self.hello.spec

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: the remote side loads its weights, on its own device."""


def encode_hello(scorer: Any) -> dict[str, Any]:
    spec = {k: v for k, v in dataclasses.asdict(scorer.spec()).items() if v is not None}
    return {"protocol": VERSION, "spec": spec, "requires": sorted(scorer.requires), "scope": scorer.scope}


def decode_hello(message: Any, who: str) -> Hello:
    """Parse a hello. Raises PluginError that names the missing or invalid part."""
    if not isinstance(message, Mapping) or not isinstance(message.get("spec"), Mapping):
        raise PluginError(f"{who} sent no valid hello; prefkit/score/remote/protocol.py documents it.")
    if message.get("protocol") != VERSION:
        raise PluginError(f"{who} speaks protocol {message.get('protocol')!r}; this prefkit needs protocol {VERSION}.")
    spec = dict(message["spec"])
    known = {f.name for f in dataclasses.fields(ScorerSpec)}
    if {"name", "version"} - set(spec) or set(spec) - known:
        raise PluginError(
            f"{who}: its spec must have name and version, and no other fields than {', '.join(sorted(known))}; it has "
            f"{', '.join(sorted(spec)) or 'none'}."
        )
    spec["version"] = str(spec["version"])
    if "range" in spec:
        spec["range"] = _range(spec["range"], who)
    for name, value in spec.items():
        kind = bool if name in FLAGS else str
        if name != "range" and value is not None and not isinstance(value, kind):
            raise PluginError(f"{who}: {name} of its spec is {shown(value)}; it must be a {kind.__name__}.")
    scope, requires = message.get("scope", "absolute"), message.get("requires", ["image", "prompt"])
    if scope not in SCOPES:
        raise PluginError(f"{who}: its scope is {shown(scope)}; it must be one of {', '.join(SCOPES)}.")
    if not isinstance(requires, list) or not all(isinstance(name, str) for name in requires):
        raise PluginError(f"{who}: its requires is {shown(requires)}; it must be a list of names.")
    return Hello(ScorerSpec(**spec), frozenset(requires), scope)


def _range(value: Any, who: str) -> tuple[float | None, float | None]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        low, high = (None if bound is None else read_number(bound)[0] for bound in value)
        if (low is None, high is None) == (value[0] is None, value[1] is None):
            return low, high
    raise PluginError(f"{who}: its range is {shown(value)}; it must be [lowest, highest], with null for no bound.")


def encode_item(candidate: Candidate, requires: frozenset[str], path: Path | None = None) -> dict[str, Any]:
    """Return a candidate as an item of a request. path: the image file to name in it, instead of the image."""
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
    inputs = {image.id: file_bytes(image) for name in requires for image in candidate.input_images(name)}
    if inputs:
        item["inputs"] = {name: base64.b64encode(data).decode() for name, data in inputs.items()}
    if "payload" in requires and candidate.payload is not None:
        item["payload"] = base64.b64encode(candidate.payload).decode()
    if "arrays" in requires and candidate.payload is not None:
        item["arrays"], item["metadata"] = arrays_of(candidate.payload)
    return item


def arrays_of(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a payload's (tensors as nested lists, metadata), with None for NaN and infinities. Raises ValueError."""
    import safetensors.torch

    try:
        arrays = {name: _finite(tensor.tolist()) for name, tensor in safetensors.torch.load(payload).items()}
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        texts = header.get("__metadata__", {})
        facts = json.loads(texts[MARK]) if MARK in texts else texts
    except Exception as error:  # safetensors and json raise their own types
        raise ValueError(f"the payload is not a safetensors file: {error}") from error
    return arrays, facts


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def decode_item(item: Mapping[str, Any], paths: bool) -> Candidate:
    """Parse an item. paths: True allows the key "path". Raises ValueError, KeyError, TypeError or AttributeError."""
    image, payload, extra = item.get("image"), item.get("payload"), item.get("extra") or {}
    inputs = item.get("inputs") or {}
    if not isinstance(extra, Mapping) or not isinstance(inputs, Mapping):
        raise ValueError("extra or inputs is not an object")
    inputs = {name: base64.b64decode(data, validate=True) for name, data in inputs.items()}
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
        inputs=inputs.__getitem__ if inputs else None,
    )


def file_bytes(candidate: Candidate) -> bytes:
    """Return the image as a file: the stored bytes if all decoders would show the same pixels, else a PNG."""
    if candidate.image is not None:
        return shown_pixels(candidate.image)
    if candidate.path is not None:
        return shown_pixels(read_regular(candidate.path))
    buffer = io.BytesIO()
    candidate.pil().save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_answer(scores: Sequence[Score]) -> dict[str, Any]:
    rows = [dataclasses.asdict(score) for score in scores]
    return {"scores": [{k: v for k, v in row.items() if v is not None or k == "value"} for row in rows]}


def decode_answer(message: Any, count: int, who: str) -> list[Score]:
    """Return `count` scores. An invalid message fails all of them; an entry that is not a finite number fails alone."""
    fields = message if isinstance(message, Mapping) else {}
    rows = fields.get("scores")
    if fields.get("error"):
        error = f"{who}: {str(fields['error'])[:500]}"
    elif isinstance(rows, list) and len(rows) == count:
        return [_score(row if isinstance(row, Mapping) else {"value": row}, who) for row in rows]
    else:
        number = f"{len(rows)} scores" if isinstance(rows, list) else "no list of scores"
        error = f"{who} answered {number} for {count} candidates"
    return [Score(None, error=error)] * count


def _score(row: Mapping[str, Any], who: str) -> Score:
    return checked(Score(row.get("value"), row.get("aspects") or None, row.get("text"), row.get("error")), who)
