"""Read vertices and faces of meshes from untrusted .obj and .ply files; everything else in a file is ignored.

PLY: ascii, binary_little_endian and binary_big_endian. OBJ: `v` and `f` lines.
A polygon is split into a fan of triangles around its first corner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.mesh.payload import MAX_ROWS
from prefkit.paths import MAX_FILE, open_regular, shown

HEAD = 1 << 16  # bytes within which a PLY header must end
TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
}
TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"}
TYPES |= {"float64": "f8"}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
CORNERS = ("vertex_indices", "vertex_index")
TRUNCATED = "the file is truncated: it ends before the {} that its header states"
Surface = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Property:
    """A property of a PLY element. kind: dtype of the values. length: dtype of a list's length; None for a scalar."""

    name: str
    kind: str
    length: str | None = None


@dataclass(frozen=True)
class Element:
    name: str
    count: int
    properties: tuple[Property, ...]

    def lists(self) -> list[Property]:
        return [p for p in self.properties if p.length is not None]


def read_surface(path: Path) -> Surface:
    """Return (vertices [V, 3] float32, faces [F, 3] int or None) of an .obj or .ply file. Face indices are not checked.

    Raises ValueError if the file is not a mesh, is truncated, or has more than 2 million vertices or faces; a PLY file
    with too many is rejected from its header alone. Raises OSError if the file cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(HEAD)
        header = _header(data) if path.suffix.lower() == ".ply" else None
        data += file.read(MAX_FILE + 1 - len(data))
    if len(data) > MAX_FILE:
        raise ValueError(f"the file is larger than {MAX_FILE >> 20} MB")
    vertices, polygons = _obj(data) if header is None else _ply(data, *header)
    faces = triangles(polygons)
    return vertices, faces if len(faces) else None


def triangles(polygons: np.ndarray | Sequence[Any]) -> np.ndarray:
    """Split polygons, each a sequence of vertex indices, into triangles [F, 3]."""
    if not isinstance(polygons, np.ndarray):
        polygons = np.array([(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]).reshape(-1, 3)
    elif polygons.shape[1] != 3:
        fans = [polygons[:, [0, i, i + 1]] for i in range(1, polygons.shape[1] - 1)]
        polygons = np.stack(fans, 1).reshape(-1, 3) if fans else np.empty((0, 3))
    return polygons


def _obj(data: bytes) -> tuple[np.ndarray, list[list[int]]]:
    for kind, name in ((b"\nv ", "vertices"), (b"\nf ", "faces")):
        _check_count(name, data.count(kind))
    points: list[list[float]] = []
    polygons: list[list[int]] = []
    for number, line in enumerate(data.splitlines(), 1):
        words = line.split()
        try:
            if words[:1] == [b"v"]:
                x, y, z = map(float, words[1:4])
                points.append([x, y, z])
            elif words[:1] == [b"f"]:
                corners = [int(word.split(b"/")[0]) for word in words[1:]]
                polygons.append([c - 1 if c > 0 else len(points) + c for c in corners])
        except ValueError as error:
            raise ValueError(
                f"line {number} is not a valid OBJ line: {shown(line.decode(errors='replace'))}"
            ) from error
    if not points:
        raise ValueError("the file is not an OBJ mesh: it has no line that starts with v")
    return np.array(points, np.float32), polygons


def _check_count(name: str, count: int) -> None:
    if count > MAX_ROWS:
        raise ValueError(f"the file has {count:,} {name}; at most {MAX_ROWS:,} are allowed")


def _header(data: bytes) -> tuple[str, list[Element], int]:
    """Parse a PLY header: (byte order, or "" for text; elements; bytes in the header). Raises ValueError."""
    if data[:4] not in (b"ply\n", b"ply\r"):
        raise ValueError("the file is not a PLY mesh: it does not start with the line `ply`")
    end = data.find(b"end_header")
    stop = data.find(b"\n", end) + 1
    if end < 0 or stop == 0:
        raise ValueError(f"the file is truncated, or not a PLY mesh: no end_header in its first {HEAD >> 10} KB")
    order, elements = None, []
    for line in data[:end].decode("latin-1").splitlines()[1:]:
        words = line.split()
        try:
            if words[:1] == ["format"]:
                order = ORDERS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(Element(words[1], int(words[2]), ()))
            elif words[:1] == ["property"]:
                last = elements.pop()
                elements.append(Element(last.name, last.count, (*last.properties, _property(words))))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"the PLY header has an invalid line: {shown(line)}") from error
    if order is None or not any(e.name == "vertex" for e in elements) or any(e.count < 0 for e in elements):
        raise ValueError("the PLY header has no format line or no valid element `vertex`")
    for element in elements:
        _check_count({"vertex": "vertices", "face": "faces"}.get(element.name, shown(element.name)), element.count)
    return order, elements, stop


def _property(words: list[str]) -> Property:
    if words[1] == "list":
        return Property(words[4], TYPES[words[3]], TYPES[words[2]])
    return Property(words[2], TYPES[words[1]])


def _ply(data: bytes, order: str, elements: list[Element], start: int) -> tuple[np.ndarray, Any]:
    read = _binary(data, start, order) if order else _text(data[start:])
    vertices, polygons = None, np.empty((0, 3))
    for element in elements:
        try:
            scalars, lists = read(element)
        except EOFError as error:
            raise ValueError(TRUNCATED.format(f"{element.count:,} rows of {shown(element.name)}")) from error
        if element.name == "vertex":
            if not {"x", "y", "z"} <= scalars.keys():
                raise ValueError("the element `vertex` in the PLY header lacks a property x, y or z")
            vertices = np.stack([scalars[axis] for axis in "xyz"], 1).astype(np.float32)
        elif element.name == "face":
            polygons = next((lists[name] for name in CORNERS if name in lists), polygons)
    if vertices is None or not len(vertices):
        raise ValueError("the file has no vertices")
    return vertices, polygons


#: values of an element: {scalar property: [N]}, {list property: [N, K] or a list of rows}
Values = tuple[dict[str, np.ndarray], dict[str, Any]]


def _binary(data: bytes, start: int, order: str) -> Callable[[Element], Values]:
    """Return a function that reads the next element. It raises EOFError if the data end too early."""
    position = start

    def read(element: Element) -> Values:
        nonlocal position
        for length in (None,) if not element.lists() else (3, 4):
            table = _table(element, data, position, order, length)
            if table is not None:
                position += table.nbytes
                lists = {p.name: table[p.name] for p in element.lists()}
                return {p.name: table[p.name] for p in element.properties if p.length is None}, lists
        if not element.lists():
            raise EOFError
        rows = _Rows(data, position, order)
        values: dict[str, list[Any]] = {p.name: [] for p in element.properties}
        for _ in range(element.count):
            for p in element.properties:
                values[p.name].append(rows.take(p))
        position = rows.position
        return _split(element, values)

    return read


def _table(element: Element, data: bytes, position: int, order: str, length: int | None) -> np.ndarray | None:
    """Return the element's rows as a structured array; None if the data end early or a list has not `length` values."""
    fields: list[Any] = []
    for p in element.properties:
        if p.length is None:
            fields.append((p.name, order + p.kind))
        else:
            fields += [(f"{p.name} length", order + p.length), (p.name, order + p.kind, (length,))]
    kind = np.dtype(fields)
    if position + element.count * kind.itemsize > len(data):
        return None
    table = np.frombuffer(data, kind, element.count, position)
    return table if all((table[f"{p.name} length"] == length).all() for p in element.lists()) else None


class _Rows:
    """Reads a binary PLY file value by value, for lists of different lengths."""

    def __init__(self, data: bytes, position: int, order: str) -> None:
        self.data, self.position, self.order = data, position, order

    def take(self, p: Property) -> Any:
        if p.length is None:
            return self._next(p.kind, 1)[0]
        return self._next(p.kind, int(self._next(p.length, 1)[0]))

    def _next(self, kind: str, count: int) -> list[Any]:
        size = np.dtype(kind).itemsize * count
        if count < 0 or self.position + size > len(self.data):
            raise EOFError
        values = np.frombuffer(self.data, self.order + kind, count, self.position).tolist()
        self.position += size
        return values


def _split(element: Element, values: dict[str, list[Any]]) -> Values:
    lists = {p.name: values.pop(p.name) for p in element.lists()}
    return {name: np.array(column) for name, column in values.items()}, lists


def _text(body: bytes) -> Callable[[Element], Values]:
    """Return a function that reads the next element of a text PLY file, one row per line."""
    lines = (line.split() for line in body.splitlines() if line.strip())

    def read(element: Element) -> Values:
        values: dict[str, list[Any]] = {p.name: [] for p in element.properties}
        for _ in range(element.count):
            words = next(lines, None)
            if words is None:
                raise EOFError
            _fill(values, element, iter(words))
        return _split(element, values)

    return read


def _fill(values: dict[str, list[Any]], element: Element, words: Iterator[bytes]) -> None:
    """Append one row. Raises EOFError if words are missing, ValueError if one is not a number."""
    for p in element.properties:
        try:
            if p.length is None:
                values[p.name].append(float(next(words)))
            else:
                values[p.name].append([int(next(words)) for _ in range(int(next(words)))])
        except StopIteration as error:
            raise EOFError from error
        except ValueError as error:
            raise ValueError(f"a row of the element {shown(element.name)} has a value that is not a number") from error
