"""Images (and numbers) that a request brings for the pipeline's call: `model: {inputs: {image: extra.person}}`.

In a source of requests such a field is a path (absolute, or below the source's folder), an image as bytes, as a data
URI or as base64, or a list of them. Their bytes go to the run's inputs/ table and the field becomes their SHA-256, so that the same image is the
same request wherever it lay. What is neither is handed over as it is.
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
from prefkit.store.table import read_part
from prefkit.types import Request, digest

if TYPE_CHECKING:
    from PIL.Image import Image

INPUT_ID = re.compile("[0-9a-f]{64}")
PART_ROWS = 64
DECODED = 32  # images kept in memory
PARTS_IN_MEMORY = 2


def fields_of(mapping: Mapping[str, str]) -> dict[str, str]:
    """Argument of the pipeline's call -> key of a request's extra. Raises UsageError."""
    for argument, field in mapping.items():
        if not re.fullmatch(r"extra\..+", str(field)):
            raise UsageError(
                f"model.inputs.{argument}: {field!r} is no field of a request; write extra.NAME, NAME being a column of the "
                "source of requests."
            )
    return {argument: field.removeprefix("extra.") for argument, field in mapping.items()}


class Taken:
    """Reads the images that requests name, and keeps their bytes for the inputs/ table.

    folder: where relative paths start. store: where bytes go; None (a dry run) leaves them where they are.
    """

    def __init__(self, mapping: Mapping[str, str], folder: Path, store: Store | None) -> None:
        self.keys, self.folder, self.store = set(map(nfc, fields_of(mapping).values())), folder, store
        self.there = store.inputs().ids() if store is not None and self.keys else set()
        self.waiting: dict[str, bytes] = {}

    def take(self, extra: dict[str, Any]) -> dict[str, Any]:
        """The same extra with ids in the place of images.

        Raises UsageError for a column or file that is missing, and for a file that is no image.
        """
        if not self.keys:
            return extra
        for key in sorted(self.keys - extra.keys()):
            raise UsageError(
                f"model.inputs: extra.{key} is missing in a request of the source, which has {', '.join(extra) or 'no column'}"
                f" beside the prompt.{nearest(key, list(extra))}"
            )
        return {key: self._value(value, key) if key in self.keys else value for key, value in extra.items()}

    def _value(self, value: Any, key: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._value(item, key) for item in value]
        found = self._bytes(value, key)
        if found is None:
            return value
        _decoded(found, f"extra.{key}: {shown(value) if isinstance(value, str) else 'the image'}")
        name = hashlib.sha256(found).hexdigest()
        if self.store is not None and name not in self.there:
            self.there.add(name)
            self.waiting[name] = found
            if len(self.waiting) >= PART_ROWS:
                self.write()
        return name

    def _bytes(self, value: Any, key: str) -> bytes | None:
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # an Image column of a dataset
            return bytes(value["bytes"])
        if hasattr(value, "save") and hasattr(value, "convert"):  # the same, decoded
            buffer = io.BytesIO()
            value.save(buffer, "PNG")
            return buffer.getvalue()
        if not isinstance(value, str):
            return None
        try:
            found = embedded(value)
            if found is not None or not is_image_name(value):
                return found
            return read_regular(named(self.folder, value))
        except FileNotFoundError as error:
            raise UsageError(f"extra.{key}: the image {named(self.folder, value)} is not there.") from error
        except OSError as error:
            raise UsageError(f"extra.{key}: the image {shown(value)} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise UsageError(f"extra.{key}: {error}.") from error

    def write(self) -> None:
        """Give what is waiting to the table."""
        if self.store is not None:
            self.store.inputs().append([{"id": name, "bytes": found} for name, found in self.waiting.items()])
        self.waiting = {}


class Inputs:
    """A request's arguments for the pipeline's call, images decoded. Without a mapping, nothing."""

    def __init__(self, mapping: Mapping[str, str], store: Store | None) -> None:
        self.fields = {argument: nfc(key) for argument, key in fields_of(mapping).items()}
        self.where: dict[str, tuple[Path, int]] = {}
        for path in store.inputs().parts() if store is not None and self.fields else ():
            part = read_part(path, ["id"])
            ids = part.column("id").to_pylist() if part is not None else []
            self.where |= {name: (path, row) for row, name in enumerate(ids)}
        self._part = functools.lru_cache(PARTS_IN_MEMORY)(read_part)
        self._image = functools.lru_cache(DECODED)(self._read)

    def of(self, request: Request) -> dict[str, Any]:
        """Raises UsageError for a request without the field, and for an image that the run does not hold."""
        missing = [key for key in self.fields.values() if key not in request.extra]
        if missing:
            raise UsageError(
                f"the request {request.prompt!r} has no {missing[0]}, which model.inputs asks for. Give the source of "
                "requests that column; pairs from elsewhere need the run's own requests (request_id)."
            )
        return {argument: self._value(request.extra[key]) for argument, key in self.fields.items()}

    def key(self, request: Request) -> str:
        """Equal for requests with equal inputs: those may share a call of the pipeline."""
        return digest([request.extra.get(key) for key in self.fields.values()])

    def groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Positions of requests with equal inputs, in order of their first one.

        Pipelines do not agree on what a list of images is: one per prompt, or several for every prompt. So no call
        ever holds images of two requests.
        """
        found: dict[str, list[int]] = {}
        for position, request in enumerate(requests):
            found.setdefault(self.key(request), []).append(position)
        return list(found.values())

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return self._image(value) if isinstance(value, str) and INPUT_ID.fullmatch(value) else value

    def _read(self, name: str) -> Image:
        part = self._part(self.where[name][0]) if name in self.where else None
        if part is None:
            raise UsageError(
                f"the run's inputs/ holds no image {name}. Run `prefkit generate` with the source of requests that names it."
            )
        return _decoded(part.column("bytes")[self.where[name][1]].as_py(), f"input {name}")


def _decoded(content: bytes, what: str) -> Image:
    """As RGB, turned as its EXIF data says."""
    from PIL import Image

    try:
        return rgb(content)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{what} is no image that can be read: {' '.join(str(error).split())[:160]}.") from error
