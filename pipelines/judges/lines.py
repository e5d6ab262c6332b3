"""The scorer's side of prefkit's `exec:` protocol (prefkit/score/remote/protocol.py), without prefkit itself."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import IO, Any

from PIL import Image, ImageOps

Item = dict[str, Any]
VERSION = 1


def take_output() -> IO[str]:
    """Return standard output for the protocol alone. Whatever else is printed from now on goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def serve(
    hello: Item, score: Callable[[list[Item]], list[Item]], out: IO[str], lines: Iterable[str] | None = None
) -> None:
    """Write the hello, then answer requests until the input ends.

    lines: requests, by default those on standard input
    score: returns one score per item, in order; an item that cannot be scored has {"value": None, "error": reason}.
    """
    _write(out, {"protocol": VERSION, **hello})
    for line in sys.stdin if lines is None else lines:
        number = None
        try:
            request = json.loads(line)
            number = request["request"]
            items = list(request["items"])
        except (ValueError, TypeError, KeyError) as error:
            _write(out, {"request": number, "error": f"this is not a request of the protocol ({error!r})"})
            continue
        try:
            answer: Item = {"scores": score(items)}
        except Exception as error:  # the next request may be fine, for example after running out of memory
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(out, {"request": number, **answer})


def _write(out: IO[str], message: Item) -> None:
    print(json.dumps(message), file=out, flush=True)


def picture(data: Any) -> Image.Image:
    """Return an upright RGB image from a file in base64. Raises ValueError if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image could not be decoded: {error}") from error


def result(item: Item) -> Image.Image:
    """Return the image to judge. Raises ValueError."""
    if "image" not in item:
        raise ValueError("the item has no image; this program needs `images: base64`, the default")
    return picture(item["image"])


def source(item: Item, column: str) -> Image.Image:
    """Return the image in a column of the request. Raises ValueError if there is none, or more than one."""
    value = (item.get("extra") or {}).get(column)
    names = value if isinstance(value, list) else [value]
    files = [(item.get("inputs") or {}).get(name) for name in names]
    if len(files) != 1 or files[0] is None:
        raise ValueError(f"the column {column} must hold one image; list {column} under requests.images")
    return picture(files[0])
