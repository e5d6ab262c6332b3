"""Convert a pickle file that you trust into plain arrays, which `prefkit import --as mesh` reads.

    python pipelines/mesh/unpickle.py dataset.npz plain.npz

Unpickling can run any code that the file's author chose, so prefkit itself never does it. The input is an .npz that
needs pickle (such as HumanData) or a .pkl (such as 3DPW's). Dictionaries are flattened with dots
(smpl.body_pose), lists of equal shape become one array, and what is neither numbers nor text is left out and listed.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def load(path: Path) -> Any:
    """Unpickle a file."""
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=True) as file:
            return dict(file)
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")  # latin1: files that Python 2 wrote


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for each value in nested dictionaries."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject and value.shape == ():
        value = value.item()
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def plain(value: Any) -> np.ndarray | None:
    """Return a value as an array that needs no pickle, or None if it has no such form."""
    try:
        array = np.asarray(value.tolist() if isinstance(value, np.ndarray) and value.dtype.hasobject else value)
    except ValueError:  # rows of different shapes
        return None
    return array if array.dtype.kind in "fiubU" else None


def main(source: Path, target: Path) -> int:
    try:
        loaded = load(source)
    except Exception as error:  # an import of the library that wrote the file, or any error of unpickling
        return fail(
            f"{source} cannot be unpickled ({type(error).__name__}: {error}). Install the library that wrote it."
        )
    if not isinstance(loaded, dict):
        return fail(f"{source} holds a {type(loaded).__name__}, not a dictionary of arrays.")
    arrays = {name: plain(value) for name, value in flat(loaded)}
    kept = {name: array for name, array in arrays.items() if array is not None}
    left = sorted(arrays.keys() - kept.keys())
    if left:
        print(f"left out, because they are neither numbers nor text of one shape: {', '.join(left)}", file=sys.stderr)
    if not kept:
        return fail(f"{source} holds no arrays of numbers or text.")
    np.savez_compressed(target, **kept)
    print(f"{target}: {', '.join(f'{name} {list(array.shape)}' for name, array in kept.items())}")
    return 0


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="an .npz or .pkl file that you trust")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .npz file to write")
    given = parser.parse_args()
    sys.exit(main(given.source, given.target))
