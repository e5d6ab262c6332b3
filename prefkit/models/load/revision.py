"""Identify a model's weights: by the commit of a Hub repository, or by a hash of local files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.errors import UsageError
from prefkit.paths import open_regular
from prefkit.store.checksums import MANIFEST, check_folder
from prefkit.store.files import remedy_for
from prefkit.tiny import located
from prefkit.types import digest

#: files of which a repository has at least one: a pipeline, an adapter, a model, a fitted scorer, a model of open_clip
FIRST = (
    "model_index.json",
    "pytorch_lora_weights.safetensors",
    "config.json",
    "spec.json",
    "open_clip_config.json",
)
CONTENT = (".safetensors", ".bin", ".ckpt", ".pt", ".json", ".txt", ".model", ".py", ".jinja")


def weights_revision(base: str | Path, revision: str | None = None) -> str:
    """Return the commit SHA of a Hub repository, or a hash of a local model's or adapter's file names and contents.

    Raises DamagedError if a file in a folder that prefkit wrote is missing or has changed.
    """
    path = Path(located(base))
    if not path.is_file() and not path.is_dir():
        return _commit(str(base), revision)
    folder = path.parent if path.is_file() else path
    remedy = remedy_for(folder / "x") if folder.name == "final" else remedy_for(folder)
    check_folder(folder, remedy, file_hash)
    if path.is_file():
        return digest(file_hash(path))
    files = sorted(
        file for file in path.rglob("*") if file.suffix in CONTENT and file.is_file() and file.name != MANIFEST
    )
    if not files:
        raise UsageError(f"{base} contains no model files. Give a pipeline folder, a single weight file, or a Hub id.")
    return digest([(file.relative_to(path).as_posix(), file_hash(file)) for file in files])


def base_revision(model: Model) -> dict[str, Any]:
    """Return what identifies the base model: the revision of `base` and, if set, `config` and settings that change results."""
    config = {} if model.config is None else {"config": weights_revision(model.config)}
    bits = {} if model.quantize is None else {"quantize": model.quantize}
    tiles = {"vae_tiling": True} if model.vae_tiling else {}
    files = {} if model.variant is None else {"variant": model.variant}
    prompts = {} if model.long_prompts == "cut" else {"long_prompts": model.long_prompts}
    return {"base": weights_revision(model.base, model.revision), **config, **bits, **tiles, **files, **prompts}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; cached until the file changes."""
    status = path.stat()
    return _content_hash(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _content_hash(path: str, size: int, mtime: int) -> str:
    """Return a file's SHA-256. size and mtime are only part of the cache key, so that a changed file is read again."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=256)
def _commit(repository: str, revision: str | None) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        sha = huggingface_hub.HfApi().model_info(repository, revision=revision).sha
    except HFValidationError as error:
        raise UsageError(f"{repository} is neither an existing path nor a Hub id such as owner/name.") from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{repository} on the Hub has no revision {revision!r}. Give a branch, tag or commit."
        ) from error
    except Exception as error:  # the Hub's client also raises errors of its transport
        sha = _cached_commit(repository, revision)
        if sha is None:
            unknown = isinstance(error, RepositoryNotFoundError)
            state = "has no such model that this login may see" if unknown else "did not answer"
            raise UsageError(
                f"{repository} does not exist as a path or in the local Hub cache, and the Hub {state} "
                f"({type(error).__name__}). Check the name, the network, and your access to this repository."
            ) from error
    assert sha is not None
    return sha


def _cached_commit(repository: str, revision: str | None) -> str | None:
    import huggingface_hub

    for name in FIRST:
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parts[Path(path).parts.index("snapshots") + 1]
    return None
