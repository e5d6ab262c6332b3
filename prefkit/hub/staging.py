"""The local files of a push, and the one commit that brings a repository to them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.errors import StoreError
from prefkit.hub.cards.template import Card, dump_yaml, merge
from prefkit.hub.remote import ChangedUnderUs, Remote, local_hashes
from prefkit.store.files import dump_json, read_json, write_atomic
from prefkit.store.folders import refuse_foreign_files, whole_folder
from prefkit.types import digest

MANIFEST, CARD = "prefkit.json", "README.md"
TRIES = 3


@dataclass(frozen=True)
class Staged:
    """A folder with all files to push. files: path -> (SHA-256, git blob SHA-1, bytes), without the card."""

    folder: Path
    kind: str
    card: Card
    files: Mapping[str, tuple[str, str, int]]
    fingerprint: str
    dropped: Mapping[str, int]

    @property
    def tag(self) -> str:
        return f"prefkit-{self.fingerprint[:12]}"


def staged(folder: Path, stage: Callable[[Path], Staged]) -> Staged:
    """Write the files of a push with `stage` into a new folder, which replaces those of an earlier push in `folder`."""
    files = read_json(folder / MANIFEST).get("files", []) if (folder / MANIFEST).exists() else []
    refuse_foreign_files(folder, {*files, MANIFEST, CARD}.__contains__, "Move it elsewhere, then push again.")
    with whole_folder(folder, manifest=False) as new:
        written = stage(new)
    return replace(written, folder=folder)


def finish(folder: Path, card: Card, dropped: Mapping[str, int] | None) -> Staged:
    """Add recipe, manifest and card to `folder`. The fingerprint covers data and recipe. dropped: None for a model."""
    kind = "model" if dropped is None else "dataset"
    if card.recipe:
        (folder / "recipe.yaml").write_text(dump_yaml(card.recipe), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): (*local_hashes(path), path.stat().st_size) for path in paths}
    fingerprint = digest(kind, {path: sha for path, (sha, _, _) in files.items()}, length=40)
    manifest = {"fingerprint": fingerprint, "kind": kind, "files": sorted([*files, MANIFEST])}
    write_atomic(folder / MANIFEST, dump_json(manifest))
    files[MANIFEST] = (*local_hashes(folder / MANIFEST), (folder / MANIFEST).stat().st_size)
    (folder / CARD).write_text(merge(None, card.metadata, card.body), encoding="utf-8")
    return Staged(folder, kind, card, files, fingerprint, dropped or {})


def plan(staged: Staged, to: str) -> dict[str, Any]:
    sizes = {path: size for path, (_, _, size) in staged.files.items()} | {CARD: (staged.folder / CARD).stat().st_size}
    return {
        "repository": _path(staged, to),
        "fingerprint": staged.fingerprint,
        "tag": staged.tag,
        "bytes": sum(sizes.values()),
        "files": dict(sorted(sizes.items())),
        "left_out": dict(staged.dropped),
        "folder": str(staged.folder),
    }


def send(remote: Remote, staged: Staged, public: bool, squash: bool) -> dict[str, Any]:
    commit, private = remote.open(public)
    if not private and not public:
        output.warn(f"{remote.to} is already public and stays public.")
    changed = False
    for attempt in range(TRIES):
        try:
            commit, changed = _commit(remote, staged, commit)
            break
        except ChangedUnderUs as error:
            if attempt + 1 == TRIES:
                raise ChangedUnderUs(
                    f"{error} This happened {TRIES} times in a row: push again later. Nothing was overwritten."
                ) from error
            output.note(f"{remote.to} was changed by another commit: reading it again.")
            time.sleep(0.5 * 2**attempt)
            commit = remote.head()
    if squash:
        commit = remote.squash(f"prefkit push {staged.fingerprint}")
    if squash or staged.tag not in remote.tags():
        remote.tag(staged.tag, commit, f"prefkit fingerprint {staged.fingerprint}")
    url = f"{remote.api.endpoint}/{_path(staged, remote.to)}"
    return {"commit": commit, "changed": changed, "private": private, "url": url}


def _path(staged: Staged, to: str) -> str:
    return f"datasets/{to}" if staged.kind == "dataset" else to


def _commit(remote: Remote, staged: Staged, head: str) -> tuple[str, bool]:
    """Commit the staged files on top of `head`. Returns (commit, True if anything differed)."""
    present = remote.files(head)
    existing = remote.read(CARD, head).decode("utf-8", "replace") if CARD in present else None
    merged = merge(existing, staged.card.metadata, staged.card.body)
    (staged.folder / CARD).write_text(merged, encoding="utf-8")
    wanted = dict(staged.files) | {CARD: (*local_hashes(staged.folder / CARD), 0)}
    written = _written(remote, head) if MANIFEST in present else []
    obsolete = sorted(path for path in written if path not in wanted and path in present)
    differ = [path for path, (sha256, blob, _) in wanted.items() if present.get(path) not in (sha256, blob)]
    if not differ and not obsolete:
        return head, False
    output.note(f"push: {len(differ)} files to upload, {len(obsolete)} to remove")
    return remote.upload(staged.folder, head, obsolete, f"prefkit push {staged.fingerprint}"), True


def _written(remote: Remote, head: str) -> list[str]:
    """Return the files that earlier pushes wrote, as listed in the manifest in the repository."""
    try:
        return [path for path in json.loads(remote.read(MANIFEST, head))["files"] if isinstance(path, str)]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{MANIFEST} in {remote.to}, the list of files that push wrote, could not be read ({error}). Restore it "
            "from an earlier commit, or remove it and all data files from the repository, then push again."
        ) from error
