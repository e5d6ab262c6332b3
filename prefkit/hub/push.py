"""Pushes a run's pairs or trained model to a repository on the Hub, private by default.

All files are first written locally (RUN/push/...) and compared with the head commit of the repository. If any of them
differ, one commit is made on top of that head. prefkit.json in the repository lists the files that push wrote; a later
push removes only files on this list.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit import output
from prefkit.errors import StoreError, UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards.contact_sheet import pair_sheet
from prefkit.hub.cards.dataset_card import SHEET as PAIR_SHEET
from prefkit.hub.cards.dataset_card import dataset_card
from prefkit.hub.cards.model_card import SHEET as EVAL_SHEET
from prefkit.hub.cards.model_card import TRAINED_ON, evaluations, model_card, result_folder
from prefkit.hub.cards.template import Card, dump_yaml, merge
from prefkit.hub.dataset_files import stage_dataset
from prefkit.hub.remote import ChangedUnderUs, Remote, local_hashes
from prefkit.hub.takedown import check_known, removed, write_removals
from prefkit.store import Store
from prefkit.store.checksums import MANIFEST as SUMS
from prefkit.store.checksums import check_folder
from prefkit.store.files import checked, dump_json, read_json, write_atomic
from prefkit.store.folders import refuse_foreign_files, whole_folder
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST, CARD = "prefkit.json", "README.md"
SHOWN = 12  # (tuned, base) image pairs on a model card


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


def push(
    store: Store,
    to: str,
    *,
    pairs: str | None = None,
    train: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    remove: Sequence[str] = (),
    squash: bool = False,
    licence: str | None = None,
) -> dict[str, Any]:
    """Push pairs/<pairs>, or train/<train>/final, to owner/name. Returns repository, fingerprint, tag, commit, changed,
    private, files and bytes. dry_run: only write the files locally, without contacting the Hub or recording removals.

    Raises UsageError, StoreError, and ChangedUnderUs if others keep changing the repository.
    """
    pairs, train = _choose(store, to, pairs, train)
    if remove and train:
        raise UsageError("--remove applies to pairs, not to a trained model. Push the pairs, then train again.")
    with store.lock("push"):
        if remove:
            check_known(store, remove, store.pairs(pairs) if pairs else None)
            if not dry_run:
                write_removals(store, remove)
        folder = store.folder / "push" / f"{'pairs' if pairs else 'train'}-{checked(pairs or train or '')}"
        files = read_json(folder / MANIFEST).get("files", []) if (folder / MANIFEST).exists() else []
        refuse_foreign_files(folder, {*files, MANIFEST, CARD}.__contains__, "Move it elsewhere, then push again.")
        with whole_folder(folder, manifest=False) as new:
            if train:
                stage = _stage_model(store, train, to, new, licence)
            else:
                stage = _stage_pairs(store, str(pairs), to, new, remove, licence)
        staged = replace(stage, folder=folder)
        bound = facts.restricted(facts.licence_rows(store, facts.recipe_of(store)))
        if public and bound and not licence:
            raise UsageError(
                f"push --public: the terms of {', '.join(bound)} bind users of the result (see Licences in "
                f"{folder / CARD}). State your terms for publishing with --license ID, or push privately."
            )
        plan = _plan(staged, to)
        if dry_run:
            return plan | {"dry_run": True, "private": not public}
        sent = _send(Remote(to, staged.kind), staged, public, squash)
    if remove and not squash and sent["changed"]:
        output.warn(
            f"{to}: the removed images are gone from main, but its earlier commits and tags still hold them. Push "
            "again with --squash to remove the history, and delete unreferenced files in the repository's settings."
        )
    return plan | sent


def _choose(store: Store, to: str, pairs: str | None, train: str | None) -> tuple[str | None, str | None]:
    """Return (pairs, train), one of them None; by default the run's only pair set. Raises UsageError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", to):
        raise UsageError(f"--to {to!r}: give the repository as owner/name, for example --to you/wardrobe.")
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        raise UsageError(f"--to {to[:80]!r}: the Hub does not accept this name: {str(error)[:200]}") from error
    if not store.exists():
        start = f"Start one with `prefkit generate {output.shell_quoted(store.folder)}`."
        raise UsageError(f"{store.folder} is not a run folder: it has no run.json. {start}")
    store.check_single()
    if pairs and train:
        raise UsageError(
            "push takes either --pairs NAME or --train NAME: a dataset and a model need separate repositories."
        )
    names = store.names("pairs")
    if pairs is not None or train is not None:
        return pairs, train
    if len(names) != 1:
        choices = f"pairs {', '.join(names) or 'none'}; trainings {', '.join(store.names('train')) or 'none'}"
        raise UsageError(f"push: choose a part of {store.folder} with --pairs NAME or --train NAME ({choices}).")
    return names[0], None


def _stage_pairs(store: Store, name: str, to: str, folder: Path, remove: Sequence[str], licence: str | None) -> Staged:
    staged = stage_dataset(store, name, folder, removed(store, remove))
    if staged.shown:
        pair_sheet(staged.shown, folder / PAIR_SHEET)
    return _finish(folder, dataset_card(store, name, to, staged, licence), staged.dropped)


def _stage_model(store: Store, name: str, to: str, folder: Path, licence: str | None) -> Staged:
    final = result_folder(store, name)
    check_folder(final, f"Run `prefkit train --name {name}` again to export it again.")
    shutil.copytree(final, folder, ignore=shutil.ignore_patterns(".*", SUMS), dirs_exist_ok=True)
    if (store.train(name) / TRAINED_ON).is_file():
        shutil.copyfile(store.train(name) / TRAINED_ON, folder / TRAINED_ON)
    (folder / CARD).unlink(missing_ok=True)
    sheet = _compared(store, name)
    if sheet:
        pair_sheet(sheet, folder / EVAL_SHEET)
    return _finish(folder, model_card(store, name, to, bool(sheet), licence), None)


def _compared(store: Store, name: str) -> list[tuple[bytes, bytes]]:
    """Return (tuned, base) images of equal request and index, by hash, from the first evaluation that has any."""
    out = removed(store)
    for evaluation, result in evaluations(store).items():
        for set_name, models in (result.get("sets") or {}).items():
            folders = [store.eval(evaluation) / set_name / model for model in ("base", name)]
            if name not in models or not all((folder / "run.json").exists() for folder in folders):
                continue
            sides = [Store(folder) for folder in folders]
            generator = (result.get("settings") or {}).get("generator") or next(iter(sides[0].names("candidates")), "")
            columns = ["id", "request_id", "index", "error", "sha256"]
            frames = [side.candidates(generator).frame(columns) for side in sides]
            frames = [f[f.error.isna() & ~f.id.isin(out.ids) & ~f.sha256.isin(out.files)] for f in frames]
            both = frames[0].merge(frames[1], on=["request_id", "index"], suffixes=("_base", "_tuned"))
            both["key"] = [digest("shown", r, i) for r, i in zip(both.request_id, both["index"].astype(int))]
            chosen = both.sort_values("key").drop_duplicates("request_id").head(SHOWN)
            readers = [CandidateReader(side, [generator]) for side in sides]
            shown = [(readers[1].image(a), readers[0].image(b)) for a, b in zip(chosen.id_tuned, chosen.id_base)]
            return [(tuned, base) for tuned, base in shown if tuned is not None and base is not None]
    return []


def _finish(folder: Path, card: Card, dropped: Mapping[str, int] | None) -> Staged:
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


def _plan(staged: Staged, to: str) -> dict[str, Any]:
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


def _send(remote: Remote, staged: Staged, public: bool, squash: bool) -> dict[str, Any]:
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
