"""Convert a pickle file into plain arrays, which `prefkit import --as mesh` reads.

    python pipelines/mesh/unpickle.py dataset.npz plain.npz

Unpickling can run any code that the file's author chose, so prefkit itself never does it, and this script reads only
dictionaries, lists, text, numbers and arrays (pipelines/pickles.py). The input is an .npz that needs pickle (such as
HumanData) or a .pkl (such as 3DPW's). Dictionaries are flattened with dots (smpl.body_pose), lists of equal shape become one
array, and the rest is left out and listed.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.hub.importing.arrays import DAMAGE, Arrays
from prefkit.paths import read_regular

sys.path.insert(0, str(Path(__file__).parents[1]))
from pickles import MAX_FILE, member, unpickle


def load(path: Path) -> Any:
    """Unpickle a file. Raises ValueError for anything but plain data, and OSError."""
    if path.suffix.lower() != ".npz":
        return unpickle(read_regular(path, MAX_FILE))
    with Arrays(path) as arrays:
        pickled = set(arrays.pickled())
        return {name: _pickled(arrays, name) if name in pickled else arrays.whole(name) for name in arrays.columns}


def _pickled(arrays: Arrays, name: str) -> Any:
    try:
        data = arrays.zip.read(arrays.columns[name].member)
    except DAMAGE as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    return member(io.BytesIO(data), len(data))


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
    except (ValueError, OSError) as error:
        return fail(
            f"{source} cannot be converted: {error}. Load it with the library that wrote it, and save its arrays with "
            "numpy.savez."
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
    parser.add_argument("source", type=Path, metavar="IN", help="an .npz or .pkl file")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .npz file to write")
    given = parser.parse_args()
    sys.exit(main(given.source, given.target))
