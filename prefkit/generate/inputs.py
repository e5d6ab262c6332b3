"""Images in requests, and how the pipeline's call gets them: `model: {inputs: {image: extra.person}}`.

Scorers get them by the column's name (`Candidate.value`); `requests.images` lists columns that only scorers need.

In the source of requests, an image is a path (absolute, or relative to the source's folder), bytes, a data URI or
base64; a list of images is allowed too. The image bytes are stored in the run's inputs/ table, and the request holds
their SHA-256 instead, so that it does not change if the file moves. Other values are passed unchanged.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.paths import embedded, is_image_name, named, nfc, read_regular, shown
from prefkit.registry import nearest
from prefkit.store import Store
from prefkit.types import INPUT_ID, Request, digest

if TYPE_CHECKING:
    from PIL.Image import Image

PART_ROWS = 64
CACHED_IMAGES = 32


def fields_of(mapping: Mapping[str, str]) -> dict[str, str]:
    """Return {call argument: key in a request's extra} for `model.inputs`. Raises UsageError for an invalid value."""
    for argument, field in mapping.items():
        if not re.fullmatch(r"extra\..+", str(field)):
            raise UsageError(
                f"model.inputs.{argument}: {field!r} is not a field of a request; write extra.NAME, where NAME is a "
                "column of the source of requests."
            )
    return {argument: field.removeprefix("extra.") for argument, field in mapping.items()}


class InputReader:
    """Reads the images in requests (relative paths start in `folder`), and stores them unless `store` is None.

    mapping: `model.inputs`, whose columns every request must have. optional: further columns that may hold images.
    """

    def __init__(
        self, mapping: Mapping[str, str], folder: Path, store: Store | None, optional: Sequence[str] = ()
    ) -> None:
        self.required, self.folder, self.store = set(map(nfc, fields_of(mapping).values())), folder, store
        self.keys = self.required | set(map(nfc, optional))
        self.found: set[str] = set()
        self.stored = store.inputs().ids() if store is not None and self.keys else set()
        self.waiting: dict[str, bytes] = {}

    def replace_images(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return `extra` with images replaced by ids. Raises UsageError for a missing column or an unusable image."""
        self.found |= self.keys & extra.keys()
        for key in sorted(self.required - extra.keys()):
            raise UsageError(
                f"model.inputs: extra.{key} is missing in this request, whose columns besides the prompt are "
                f"{', '.join(extra) or '(none)'}.{nearest(key, list(extra))}"
            )
        return {key: self._value(value, key) if key in self.keys else value for key, value in extra.items()}

    def _value(self, value: Any, key: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._value(item, key) for item in value]
        data = self._bytes(value, key)
        if data is None and key not in self.required:
            raise UsageError(
                f"requests.images: extra.{key} is {shown(repr(value))}, which is not an image or its path."
            )
        if data is None:
            return value
        _decoded(data, f"extra.{key}: {shown(value) if isinstance(value, str) else 'the image'}")
        name = hashlib.sha256(data).hexdigest()
        if self.store is not None and name not in self.stored:
            self.stored.add(name)
            self.waiting[name] = data
            if len(self.waiting) >= PART_ROWS:
                self.write()
        return name

    def _bytes(self, value: Any, key: str) -> bytes | None:
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # an Image column of a dataset
            return bytes(value["bytes"])
        if hasattr(value, "save") and hasattr(value, "convert"):  # a decoded Image column
            buffer = io.BytesIO()
            value.save(buffer, "PNG")
            return buffer.getvalue()
        if not isinstance(value, str):
            return None
        try:
            data = embedded(value)
            return read_regular(named(self.folder, value)) if data is None and is_image_name(value) else data
        except FileNotFoundError as error:
            raise UsageError(f"extra.{key}: the image {named(self.folder, value)} does not exist.") from error
        except OSError as error:
            raise UsageError(f"extra.{key}: the image {shown(value)} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise UsageError(f"extra.{key}: {error}.") from error

    def write(self) -> None:
        """Append the waiting images to the inputs/ table."""
        if self.store is not None:
            self.store.inputs().append([{"id": name, "bytes": data} for name, data in self.waiting.items()])
        self.waiting = {}


class Inputs:
    """Provides the arguments that the pipeline's call takes from each request, with images decoded."""

    def __init__(self, mapping: Mapping[str, str], store: Store | None) -> None:
        self.fields = {argument: nfc(key) for argument, key in fields_of(mapping).items()}
        self.images = store.input_images() if store is not None else None
        self._image = functools.lru_cache(CACHED_IMAGES)(self._read)

    def of(self, request: Request) -> dict[str, Any]:
        """Return {call argument: value} for a request. Raises UsageError if a column or a stored image is missing."""
        missing = [key for key in self.fields.values() if key not in request.extra]
        if missing:
            raise UsageError(
                f"the request {request.prompt!r} has no column {missing[0]}, which model.inputs names. Add the column "
                "to the source of requests. Pairs made outside the run need the request_id of a request in the run."
            )
        return {argument: self._value(request.extra[key]) for argument, key in self.fields.items()}

    def key(self, request: Request) -> str:
        """Return a hash of a request's inputs. Requests with equal inputs may share a call of the pipeline."""
        return digest([request.extra.get(key) for key in self.fields.values()])

    def groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Group requests with equal inputs: return lists of request indices, ordered by each list's first request.

        Each group needs its own call, because some pipelines take a list of images as one per prompt, and others use
        all of them for every prompt.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self.key(request), []).append(index)
        return list(groups.values())

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return self._image(value) if isinstance(value, str) and INPUT_ID.fullmatch(value) else value

    def _read(self, name: str) -> Image:
        if self.images is None:
            raise UsageError(f"the input image {name} is in no run. Run `prefkit generate` first.")
        return _decoded(self.images(name), f"input {name}")


def _decoded(data: bytes, name: str) -> Image:
    """Decode an image to RGB, rotated according to its EXIF data. Raises UsageError if it is damaged."""
    from PIL import Image

    try:
        return rgb(data)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{name} is not a readable image: {' '.join(str(error).split())[:160]}.") from error
