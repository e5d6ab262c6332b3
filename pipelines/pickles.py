"""Read pickled .npy and .npz files that hold plain data, without running any code that a file's author chose.

Unpickling calls functions that the file names. Here the file can name only numpy's arrays, scalars and dtypes, and each
name stands for a class of this file: the bytes become numbers after their size was checked against the shape. Dictionaries,
lists, tuples, text, numbers and None need no name. Any other name, a damaged file, a file that states more than it
holds, and more than MAX_VALUES values are refused with ValueError. The readers of .npy files also refuse links.

The class is Python's own `pickle._Unpickler`, because the faster one reserves as much memory as a file asks for.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from prefkit.paths import read_regular, shown

MAX_FILE = 1 << 30  # bytes
MAX_VALUES = 20_000_000  # in a whole file; a pickle can repeat one list many times in a few bytes
MAX_DEPTH = 50
DTYPE = re.compile(r"[?biuf][1248]|b|[SU]\d{1,6}|O8?")
NOT_PLAIN = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    RecursionError,
    UnicodeError,
    NotImplementedError,
    ImportError,
)


class DType:
    """A pickled dtype: its name, and the byte order from its state."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = text(name), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = text(state[1])
        if any(part is not None for part in state[2:5]):
            raise ValueError("a dtype with fields or of arrays")

    def __call__(self) -> np.dtype[Any]:
        name = self.name.lstrip("<>|=")
        if not DTYPE.fullmatch(name):
            raise ValueError(f"the dtype {shown(self.name)}")
        return np.dtype(name).newbyteorder(self.order if self.order in "<>=" else "|")


class Array:
    """A pickled array, or a scalar if shape is ()."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state[-4:]  # shape, dtype, Fortran order, data

    @classmethod
    def scalar(cls, dtype: Any, data: Any) -> Array:
        array = cls()
        array.state = ((), dtype, False, data)
        return array

    @classmethod
    def buffer(cls, data: Any, dtype: Any, shape: Any, order: Any) -> Array:
        array = cls()
        array.state = (shape, dtype, text(order) == "F", data)
        return array

    def __call__(self, reader: Reader, depth: int) -> Any:
        if self.state is None:
            raise ValueError("an array without content")
        shape, kind, fortran, data = self.state
        dtype, count = kind(), math.prod(shape)
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("an array of invalid shape")
        if dtype.hasobject:
            if type(data) is not list or len(data) != count or fortran:
                raise ValueError("an array of objects whose shape differs from its content")
            array = np.empty(count, object)
            for i, value in enumerate(data):
                array[i] = reader.plain(value, depth + 1)
            return array.reshape(shape)
        data = data.encode("latin1") if type(data) is str else data
        if not isinstance(data, (bytes, bytearray)) or len(data) != count * dtype.itemsize:
            raise ValueError("an array whose shape differs from its content")
        reader.values += len(data) // 8
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return array if array.shape else array.item()


def encoded(value: Any, encoding: Any) -> bytes:
    """Encode text as latin1, as old pickles store bytes."""
    if encoding != "latin1":
        raise ValueError(f"text in the encoding {shown(encoding)}")
    return text(value).encode("latin1")


def text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if type(value) is not str:
        raise ValueError("a name that is not text")
    return value


KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): DType,
    ("numpy", "ndarray"): None,
    ("_codecs", "encode"): encoded,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Array.scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Array.buffer for core in ("core", "_core")},
}


class Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """Unpickles plain data. values: number of values that were converted."""

    values = 0
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise ValueError(f"it asks for {shown(f'{module}.{name}')}")
        return KNOWN[module, name]

    def load_build(self) -> None:
        """Set the state of a stand-in, and of nothing else."""
        if type(self.stack[-2]) not in (Array, DType):
            raise ValueError("it sets the state of an object")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Return a value with arrays and numbers instead of stand-ins."""
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES:,} values, or more than {MAX_DEPTH} levels")
        kind = type(value)
        if kind is dict:
            return {self.plain(k, depth + 1): self.plain(v, depth + 1) for k, v in value.items()}
        if kind is list or kind is tuple:
            return kind(self.plain(v, depth + 1) for v in value)
        if kind is Array:
            return value(self, depth)
        if value is None or kind in (str, int, float, bool, bytes):
            return value
        raise ValueError(f"a value of the type {kind.__name__}")


def unpickle(data: bytes) -> Any:
    """Return the content of a pickle. Raises ValueError, with the reason, for anything but plain data."""
    try:
        reader = Reader(io.BytesIO(data), encoding="latin1")
        return reader.plain(reader.load())
    except NOT_PLAIN as error:
        reason = shown(error) or type(error).__name__
        raise ValueError(f"it is damaged, or holds more than numbers, text and lists: {reason}") from error


def read_npy(path: Path) -> Any:
    """Return the content of a .npy file: an array, or the object in it. Raises ValueError for what is refused."""
    if path.is_symlink():
        raise ValueError("it is a link; copy the file itself")
    try:
        data = read_regular(path, MAX_FILE)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if data[:2] == b"PK":
        raise ValueError("it is a compressed .npz file, not a .npy file")
    stream = io.BytesIO(data)
    try:
        return member(stream, len(data))
    except (EOFError, OSError) as error:
        raise ValueError(f"it is damaged: {shown(error)}") from error


def member(stream: IO[bytes], size: int) -> Any:
    """Return the array, or the object in it, of a .npy stream of `size` bytes. Raises ValueError."""
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        value = unpickle(stream.read(size))
        if not isinstance(value, np.ndarray) or value.shape != shape:
            raise ValueError("it is damaged: its header states another shape than its content")
        return value.item() if shape == () else value
    stated = math.prod(shape) * dtype.itemsize
    if stream.tell() + stated != size or min(shape, default=0) < 0:
        raise ValueError(
            f"it is damaged: its header states {stated:,} bytes, and the file has {size - stream.tell():,}"
        )
    array = np.frombuffer(stream.read(stated), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a .npy stream: shape, Fortran order, dtype."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(stream)
    except (ValueError, SyntaxError, TypeError, EOFError) as error:
        raise ValueError(f"it is not a .npy file: {shown(error)}") from error
