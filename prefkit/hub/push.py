"""Pushes a run's pairs or trained model to a repository on the Hub, private by default.

All files are first written locally (RUN/push/...) and compared with the head commit of the repository. If any of them
differ, one commit is made on top of that head. prefkit.json in the repository lists the files that push wrote; a later
push removes only files on this list.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.errors import UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards.contact_sheet import pair_sheet
from prefkit.hub.cards.dataset_card import SHEET as PAIR_SHEET
from prefkit.hub.cards.dataset_card import dataset_card
from prefkit.hub.cards.model_card import SHEET as EVAL_SHEET
from prefkit.hub.cards.model_card import TRAINED_ON, evaluations, model_card, result_folder
from prefkit.hub.dataset_files import stage_dataset
from prefkit.hub.push_fit import SPEC, is_fit, push_fit
from prefkit.hub.remote import Remote, check_name
from prefkit.hub.staging import CARD, Staged, finish, plan, send, staged
from prefkit.hub.takedown import check_known, removed, write_removals
from prefkit.store import Store
from prefkit.store.checksums import MANIFEST as SUMS
from prefkit.store.checksums import check_folder
from prefkit.store.files import checked
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

__all__ = ["is_fit", "push", "push_fit"]
SHOWN = 12  # (tuned, base) image pairs on a model card


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
        if train:
            stage = partial(_stage_model, store, train, to, licence=licence)
        else:
            stage = partial(_stage_pairs, store, str(pairs), to, remove=remove, licence=licence)
        files = staged(folder, stage)
        bound = facts.restricted(facts.licence_rows(store, facts.recipe_of(store)))
        if public and bound and not licence:
            raise UsageError(
                f"push --public: the terms of {', '.join(bound)} bind users of the result (see Licences in "
                f"{folder / CARD}). State your terms for publishing with --license ID, or push privately."
            )
        planned = plan(files, to)
        if dry_run:
            return planned | {"dry_run": True, "private": not public}
        sent = send(Remote(to, files.kind), files, public, squash)
    if remove and not squash and sent["changed"]:
        output.warn(
            f"{to}: the removed images are gone from main, but its earlier commits and tags still hold them. Push "
            "again with --squash to remove the history, and delete unreferenced files in the repository's settings."
        )
    return planned | sent


def _choose(store: Store, to: str, pairs: str | None, train: str | None) -> tuple[str | None, str | None]:
    """Return (pairs, train), one of them None; by default the run's only pair set. Raises UsageError."""
    check_name(to)
    if not store.exists():
        start = f"Start one with `prefkit generate {output.shell_quoted(store.folder)}`."
        raise UsageError(
            f"{store.folder} is neither a run folder (it has no run.json) nor a scorer that `prefkit fit` wrote (it has no "
            f"{SPEC} of a fit). {start}"
        )
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
        fits = [
            output.shell_quoted(path.parent) for path in sorted(store.folder.glob(f"*/*/{SPEC}")) if is_fit(path.parent)
        ]
        also = f" To push a fitted scorer, name its folder: prefkit push {fits[0]} --to {to}" if fits else ""
        raise UsageError(f"push: choose a part of {store.folder} with --pairs NAME or --train NAME ({choices}).{also}")
    return names[0], None


def _stage_pairs(
    store: Store, name: str, to: str, folder: Path, *, remove: Sequence[str], licence: str | None
) -> Staged:
    data = stage_dataset(store, name, folder, removed(store, remove))
    if data.shown:
        pair_sheet(data.shown, folder / PAIR_SHEET)
    return finish(folder, dataset_card(store, name, to, data, licence), data.dropped)


def _stage_model(store: Store, name: str, to: str, folder: Path, *, licence: str | None) -> Staged:
    final = result_folder(store, name)
    check_folder(final, f"Run `prefkit train --name {name}` again to export it again.")
    shutil.copytree(final, folder, ignore=shutil.ignore_patterns(".*", SUMS), dirs_exist_ok=True)
    if (store.train(name) / TRAINED_ON).is_file():
        shutil.copyfile(store.train(name) / TRAINED_ON, folder / TRAINED_ON)
    (folder / CARD).unlink(missing_ok=True)
    sheet = _compared(store, name)
    if sheet:
        pair_sheet(sheet, folder / EVAL_SHEET)
    return finish(folder, model_card(store, name, to, bool(sheet), licence), None)


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
