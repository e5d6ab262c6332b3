"""The folder that a fit writes: all of it at once, and never over one that means something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import content
from prefkit.errors import DamagedError, FingerprintError, UsageError
from prefkit.output import note, warn
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json, set_aside, write_json
from prefkit.store.folders import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

SPEC, WEIGHTS, STARTED = "spec.json", "weights.safetensors", "fitted"
#: options that say where things lie (what lies there is part of `data`) or how the work is done
PLACES = frozenset(
    {"out", "interactions", "images", "items", "features", "outfits", "pairs", "run", "ratings", "device"}
)


class FitFolder:
    """`out` of a fit called `name`; `settings` and `data` are what decides the outcome."""

    def __init__(self, name: str, out: str, options: Any, data: Mapping[str, Any], encoder: Any = None) -> None:
        self.folder = Path(out or f"{STARTED}/{name}").expanduser()
        self.made_of = {
            "fit": name,
            "version": "1",
            "settings": {k: v for k, v in content(options).items() if k not in PLACES},
            "data": dict(data),
        }
        self.encoder = encoder

    def present(self) -> dict[str, Any] | None:
        """The spec where this very fit has been done. Raises FingerprintError where another one lies there, and
        UsageError where something else does."""
        if not self.folder.exists():
            return None
        if not (self.folder / SPEC).is_file():
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                return None
            raise UsageError(f"{self.folder} is there and was not written by fit. Name another folder with --out.")
        found = read_json(self.folder / SPEC)
        wanted = {**self.made_of, "encoder": self.encoder}
        keys = [key for key in wanted if _plain(found.get(key)) != _plain(wanted[key])]
        if keys:
            raise FingerprintError(
                f"{self.folder} was fitted otherwise ({'; '.join(_differs(k, found, wanted) for k in keys)}). Name another "
                "folder with --out, or remove this one to fit it anew."
            )
        try:
            check_folder(self.folder, "It is fitted again.")
        except DamagedError as error:
            warn(f"{self.folder} is set aside as {set_aside(self.folder).name}: {error}")
            return None
        note(f"{self.folder} holds this very fit; nothing to do.")
        return found

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A hidden folder beside it, flushed to disk and renamed at the end; gone if anything fails."""
        with whole_folder(self.folder) as hidden:
            yield hidden

    def write(self, found: Mapping[str, Any], save: Callable[[Path], Any]) -> dict[str, Any]:
        """Everything at once: `save(folder)`, and spec.json with what was found. Returns the spec."""
        spec = {**self.made_of, "encoder": self.encoder, **found}
        with self.writing() as hidden:
            save(hidden)
            write_json(hidden / SPEC, spec)
        return _plain(spec)


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def _plain(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value, default=str))


def _differs(key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    there, asked = _plain(found.get(key)), _plain(wanted[key])
    if isinstance(there, dict) and isinstance(asked, dict):
        inner = sorted(k for k in there.keys() | asked.keys() if there.get(k) != asked.get(k))
        return ", ".join(f"{key}.{k}: there {there.get(k)!r}, asked for {asked.get(k)!r}" for k in inner)
    return f"{key}: there {there!r}, asked for {asked!r}"
