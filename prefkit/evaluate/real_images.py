"""The real images that an evaluation compares with, and their embeddings, which are computed once and cached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit import images
from prefkit.config import Eval
from prefkit.distributed import device_of
from prefkit.errors import DamagedError, UsageError
from prefkit.hub.importing.walk import describe_skipped, files_under, kind_of
from prefkit.models.load.revision import file_hash
from prefkit.output import Progress, note, warn
from prefkit.paths import image_suffixes, read_regular
from prefkit.store.files import set_aside
from prefkit.store.tensors import load_tensors, save_tensors
from prefkit.tables import user_path
from prefkit.types import digest

if TYPE_CHECKING:
    from PIL.Image import Image

    from prefkit.score.embed.encoder import Encoder

SCHEME = 1  # version of the cached content
#: packages whose version can change an embedding
LIBRARIES = ("open_clip_torch", "pillow", "timm", "torchvision")


def real_files(name: str, cfg: Eval) -> list[Path]:
    """Return the image files in the folder eval.NAME.real, sorted. Raises UsageError if there are fewer than two."""
    where = f"eval.{name}.real"
    folder = user_path(cfg.real or "", where)
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} is not a folder. Give a folder of images; its subfolders are read too.")
    skipped: Counter[str] = Counter()
    files = files_under(folder, lambda kind, count: skipped.update({kind: count}))
    found = [path for path in files if path.suffix.lower() in image_suffixes()]
    skipped.update(map(kind_of, sorted(set(files) - set(found))))
    if len(found) < 2:
        number = "holds one image" if found else "holds no images"
        also = f" {describe_skipped(skipped)}" if skipped else ""
        raise UsageError(f"{where}: {folder} {number}, and a distance between sets needs at least two.{also}")
    if skipped:
        warn(f"{where}: {describe_skipped(skipped)}")
    return found


def real_embeddings(name: str, cfg: Eval, encoder: Encoder, cache: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the real images' embeddings [m, D] float32, not normalised, and a record of the images and the encoder.

    cache: folder for computed embeddings. Raises UsageError if there are fewer than two images or one is unreadable.
    """
    import torch

    files = real_files(name, cfg)
    content = digest(sorted(_hashes(name, files)), length=40)
    device = device_of(cfg.device)
    record = {"images": len(files), "content": content, "encoder": encoder.weights()}
    record |= {"revision": encoder.revision(), "preprocessing": encoder.preprocessing()}
    versions = {library: version(library) for library in LIBRARIES}
    key = digest("real", SCHEME, content, list(map(str, encoder.key(device, "float32"))), versions)
    path = cache / f"real-{key}.safetensors"
    stored = _stored(path)
    if stored is None:
        note(f"eval {name}: encoding {len(files)} real images with {encoder.shown}")
        encoder.load(device, "float32")
        stored = np.concatenate(list(_encoded(name, files, encoder, cfg.batch_size)))
        save_tensors(path, {"embeddings": torch.from_numpy(stored)})
    return stored, record


def _hashes(name: str, files: list[Path]) -> Iterator[str]:
    for path in files:
        try:
            yield file_hash(path)
        except OSError as error:
            raise _unreadable(name, path, error) from error


def _stored(path: Path) -> np.ndarray | None:
    """Return the cached embeddings, or None if there are none. A damaged file is renamed, with a warning."""
    if not path.exists():
        return None
    try:
        return load_tensors(path, "")[0]["embeddings"].numpy()
    except (DamagedError, KeyError):
        warn(f"{path} is damaged. It was renamed to {set_aside(path).name}; the real images are encoded again.")
        return None


def _encoded(name: str, files: list[Path], encoder: Encoder, size: int) -> Iterator[np.ndarray]:
    with Progress(f"eval {name}: real images", len(files)) as progress:
        for start in range(0, len(files), size):
            batch = files[start : start + size]
            yield encoder.images([_opened(name, path) for path in batch], normalize=False).cpu().numpy()
            progress.update(len(batch))


def _opened(name: str, path: Path) -> Image:
    try:
        return images.rgb(read_regular(path))
    except (OSError, ValueError) as error:
        raise _unreadable(name, path, error) from error


def _unreadable(name: str, path: Path, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(f"eval.{name}.real: {path} could not be read ({reason}). Replace or remove this file.")
