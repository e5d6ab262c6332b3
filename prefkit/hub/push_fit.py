"""Pushes a scorer that `prefkit fit` wrote. The repository is a folder that the scorer's option `model` accepts as its Hub id.

An encoder that is on this machine only is copied into the repository, so that the scorer works elsewhere.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from prefkit import output, tiny
from prefkit.errors import UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards.scorer_card import scorer_card
from prefkit.hub.remote import Remote, check_name
from prefkit.hub.staging import Staged, finish, plan, send, staged
from prefkit.models.load.revision import weights_revision
from prefkit.store.checksums import MANIFEST as SUMS
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json, write_json

SPEC, WEIGHTS = "spec.json", "weights.safetensors"
ENCODER = "encoder"  # also in prefkit.score.fitted, which reads it


def is_fit(folder: Path) -> bool:
    """True if `prefkit fit` wrote the folder."""
    return (folder / SPEC).is_file() and "fit" in read_json(folder / SPEC)


def push_fit(
    folder: Path,
    to: str,
    *,
    public: bool = False,
    dry_run: bool = False,
    squash: bool = False,
    licence: str | None = None,
) -> dict[str, Any]:
    """Push a fitted scorer to owner/name, as `prefkit.hub.push.push` pushes a model. Its local files are in push/ beside it.

    Raises UsageError if the scorer cannot score images, or if its encoder is missing; StoreError; ChangedUnderUs.
    """
    check_name(to)
    if not is_fit(folder):
        raise UsageError(f"push: {folder} is not the folder of a fitted scorer. Run `prefkit fit` first.")
    spec = read_json(folder / SPEC)
    again = f"Run `prefkit fit {spec['fit']}` again."
    check_folder(folder, again)
    local = (folder / WEIGHTS).is_file()  # only a part of the scorer: the other part is its encoder
    if local and "encoder" in spec and spec["encoder"] is None and spec["fit"] == "vbpr":
        raise UsageError(
            f"push: {folder} was fitted on features of an unknown encoder, so nobody can score images with it. Run "
            "`prefkit fit vbpr` again, with --encoder and the images."
        )
    files = staged(folder.parent / "push" / folder.name, partial(_stage, folder, to, spec, local, licence))
    planned = plan(files, to)
    if (folder / "users.json").is_file() and public:
        output.warn(f"{to} is public, and its users.json contains the ids of the users whose interactions were fitted.")
    if dry_run:
        return planned | {"dry_run": True, "private": not public}
    return planned | send(Remote(to, files.kind), files, public, squash)


def _stage(folder: Path, to: str, spec: dict[str, Any], local: bool, licence: str | None, new: Path) -> Staged:
    """Write the files of the scorer, its encoder if it is local, and the card into `new`."""
    shutil.copytree(folder, new, ignore=shutil.ignore_patterns(".*", SUMS, "README.md"), dirs_exist_ok=True)
    clean = facts.clean({key: value for key, value in spec.items() if key != "checksum"})
    if local and spec.get("encoder"):
        clean["encoder"] = _with_encoder(spec["encoder"], folder, new)
    write_json(new / SPEC, clean)
    return finish(new, scorer_card(clean, spec.get("sources") or {}, to, licence), None)


def _with_encoder(encoder: dict[str, Any], folder: Path, new: Path) -> dict[str, Any]:
    """Copy the encoder's local files to NEW/encoder. Returns its settings with their paths in the repository."""
    changed = dict(encoder)
    for key in ("model", "pretrained", "processor"):
        prefix, path = _local(encoder, key)
        if path is None:
            continue
        if not path.exists():
            raise UsageError(
                f"push: {path}, from the encoder of {folder}, does not exist. Restore it, or fit again with its Hub id."
            )
        target = Path(ENCODER, key) if path.is_dir() else Path(ENCODER, key, path.name)
        (new / target).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, new / target, ignore=shutil.ignore_patterns(".*", SUMS))
        else:
            shutil.copyfile(path, new / target)
        if weights_revision(new / target) not in str(encoder["revision"]).split():
            raise UsageError(f"push: {path} has changed since {folder} was fitted on it. Restore it, or fit again.")
        changed[key] = prefix + target.as_posix()
    return changed


def _local(encoder: dict[str, Any], key: str) -> tuple[str, Path | None]:
    """Return (prefix, path) of the encoder's setting `key`; path is None if it is not a path on this machine."""
    value = encoder.get(key)
    if not value or value == tiny.NAME:
        return "", None
    if value.startswith("local-dir:"):
        return "local-dir:", Path(value.removeprefix("local-dir:")).expanduser()
    if key == "model" and encoder["library"] != "transformers":  # an architecture
        return "", None
    path = Path(value).expanduser()
    return "", path if path.exists() or path.is_absolute() else None
