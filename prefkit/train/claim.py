"""The folder of a training: what it was begun with, and whether it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import FingerprintError
from prefkit.store.files import read_json
from prefkit.store.table import check_fingerprint
from prefkit.train.checkpoint import last_step
from prefkit.train.data.cache_keys import libraries


def untrained(folder: Path) -> bool:
    return not (folder / "final").exists() and last_step(folder / "checkpoints") == 0


def claim(
    folder: Path, own: Mapping[str, Any], finished: Callable[[], bool], remedy: str, *, write: bool = True
) -> bool:
    """Record what the training in `folder` is made with, own, in its spec.json. Returns whether it is done.

    A training that is not done also needs the libraries that it began with: others may encode images and prompts
    otherwise, and its steps would be trained on two encodings. Raises FingerprintError. write: as in check_fingerprint.
    """
    path, now, fresh = folder / "spec.json", libraries(), untrained(folder)
    began = now if fresh or not path.exists() else read_json(path).get("libraries")
    check_fingerprint(path, {**own, "libraries": began}, remedy, fresh=fresh, write=write)
    done = finished()
    if not done and began != now:
        raise FingerprintError(
            f"{folder} was begun with {_named(began or {})}, and this is {_named(now)}. The steps that are left would be "
            "trained on images and prompts that are encoded otherwise. Install the earlier version again, or train under "
            "another name."
        )
    return done


def _named(versions: Mapping[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items()) or "unknown libraries"
