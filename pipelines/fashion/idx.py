"""Read the four files of Fashion-MNIST (arXiv 1708.07747): gzip-compressed idx files of pictures and of their classes.

An idx file is a header of big-endian numbers, two zero bytes, the type (8 = uint8), the number of dimensions, each size
(uint32), and then the bytes. A file that has another header, states another size than it holds, or states more than LIMIT
bytes is refused, and no more than the stated size is decompressed.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from prefkit.errors import UsageError
from prefkit.paths import read_regular

LIMIT = 100 << 20  # bytes; the largest file of Fashion-MNIST holds 47 MB
SIDE = 28
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SPLITS = {"train": "train", "test": "t10k"}


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (pictures [N, 28, 28] uint8, classes [N] uint8) of train or test. Raises UsageError."""
    pictures = read_idx(folder / f"{SPLITS[split]}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{SPLITS[split]}-labels-idx1-ubyte.gz", 1)
    where = f"{folder}, {SPLITS[split]}"
    if pictures.shape[1:] != (SIDE, SIDE):
        raise UsageError(f"{where}: the pictures have {pictures.shape[1]} x {pictures.shape[2]} pixels, not 28 x 28.")
    if len(pictures) != len(labels):
        raise UsageError(f"{where}: there are {len(pictures):,} pictures and {len(labels):,} labels.")
    if labels.max(initial=0) >= len(CLASSES):
        raise UsageError(f"{where}: a label is {labels.max()}; Fashion-MNIST has the classes 0 to 9.")
    return pictures, labels


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the array of an idx file (.gz) of uint8 with this number of dimensions. Raises UsageError for any other content."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_regular(path, LIMIT))) as file:
            head = file.read(4 + 4 * dimensions)
            if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) < 4 + 4 * dimensions:
                raise UsageError(f"{path} does not start as an idx file of uint8 in {dimensions} dimensions.")
            shape = tuple(int(size) for size in np.frombuffer(head, ">u4", offset=4))
            stated = math.prod(shape)
            if stated > LIMIT:
                raise UsageError(f"{path} states {stated:,} bytes; at most {LIMIT:,} are read.")
            data = file.read(stated + 1)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist. Give the folder with the four files of Fashion-MNIST.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    if len(data) != stated:
        found = "more" if len(data) > stated else f"{len(data):,}"
        raise UsageError(f"{path} is damaged: its header states {stated:,} bytes, and it holds {found}.")
    return np.frombuffer(data, np.uint8).reshape(shape)
