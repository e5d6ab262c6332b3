"""The output folder of a fit: written atomically, and never over a fit made with different settings or data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import content
from prefkit.config.redo import OLD
from prefkit.errors import DamagedError, FingerprintError, UsageError
from prefkit.output import note, warn
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json, set_aside, write_json
from prefkit.store.folders import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

SPEC, WEIGHTS, DEFAULT_ROOT = "spec.json", "weights.safetensors", "fitted"
#: options left out of the fingerprint: paths (`data` holds digests of the files instead) and the device
PLACES = frozenset(
    {"out", "interactions", "images", "items", "features", "outfits", "pairs", "run", "ratings", "device"}
)


class FitFolder:
    """The output folder of a fit. Its fingerprint holds the settings, data and encoder that determine the result."""

    def __init__(self, name: str, out: str, options: Any, data: Mapping[str, Any], encoder: Any = None) -> None:
        self.folder = Path(out or f"{DEFAULT_ROOT}/{name}").expanduser()
        settings = {k: v for k, v in content(options).items() if k not in PLACES}
        self.sources = {k: v for k in sorted(PLACES - {"out", "device"}) if (v := getattr(options, k, None))}
        self.fingerprint = {
            "fit": name,
            "version": "1",
            "settings": settings,
            "data": dict(data),
            "encoder": encoder,
        }

    def present(self) -> dict[str, Any] | None:
        """Return the spec if the folder contains this fit; None if the folder is missing, empty or damaged.

        Raises FingerprintError if it contains a fit with another fingerprint, UsageError if no fit wrote the folder.
        """
        if not self.folder.exists():
            return None
        if not (self.folder / SPEC).is_file():
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                return None
            raise UsageError(f"{self.folder} exists, but no fit wrote it. Name another folder with --out.")
        spec = read_json(self.folder / SPEC)
        if "fit" not in spec:
            raise UsageError(f"{self.folder} exists, but no fit wrote it. Name another folder with --out.")
        keys = [key for key, value in self.fingerprint.items() if _plain(spec.get(key)) != _plain(value)]
        if keys:
            changes = "; ".join(_difference(key, _plain(spec.get(key)), _plain(self.fingerprint[key])) for key in keys)
            raise FingerprintError(
                f"{self.folder} was fitted with different settings or data ({changes}). Name another folder with "
                f"--out, or add --redo, which moves this one to {self.folder.parent / OLD} and fits again.",
                self.folder,
                keys,
            )
        try:
            check_folder(self.folder, "The fit runs again.")
        except DamagedError as error:
            warn(f"{self.folder} was renamed to {set_aside(self.folder).name}: {error}")
            return None
        note(f"{self.folder} already contains this fit; nothing to do.")
        return spec

    def write(self, results: Mapping[str, Any], save: Callable[[Path], Any]) -> dict[str, Any]:
        """Write the folder: the files that `save` writes, and spec.json (fingerprint and results). Returns the spec."""
        spec = {**self.fingerprint, "sources": self.sources, **results}
        with whole_folder(self.folder) as temporary:
            save(temporary)
            write_json(temporary / SPEC, spec)
        return _plain(spec)


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _difference(key: str, stored: Any, requested: Any) -> str:
    if isinstance(stored, dict) and isinstance(requested, dict):
        keys = sorted(k for k in stored.keys() | requested.keys() if stored.get(k) != requested.get(k))
        return ", ".join(f"{key}.{k}: stored {stored.get(k)!r}, requested {requested.get(k)!r}" for k in keys)
    return f"{key}: stored {stored!r}, requested {requested!r}"
