"""push: pairs or a trained model of a run -> a repository on the Hub, private unless asked otherwise.

Every file is written locally first (RUN/push/...), then compared with what the repository holds; only a difference makes
a commit, on top of the commit that was compared with. prefkit.json in the repository lists the files that push wrote,
so that it removes what it once wrote and never what somebody else did.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefkit import output
from prefkit.errors import StoreError, UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards import template as card
from prefkit.hub.cards.contact_sheet import compared_sheet, pair_sheet
from prefkit.hub.cards.dataset_card import SHEET as PAIR_SHEET
from prefkit.hub.cards.dataset_card import dataset_card
from prefkit.hub.cards.model_card import SHEET as EVAL_SHEET
from prefkit.hub.cards.model_card import SHOWN, TRAINED_ON, evaluations, model_card, result_folder, source_of
from prefkit.hub.dataset_files import stage_dataset
from prefkit.hub.remote import TRIES, ChangedUnderUs, Remote, local_hashes, pause
from prefkit.hub.takedown import check_known, removed, write_removals
from prefkit.store import Store
from prefkit.store.checksums import MANIFEST as SUMS
from prefkit.store.checksums import check_folder
from prefkit.store.files import checked, dump_json, read_json, write_atomic
from prefkit.store.folders import whole_folder
from prefkit.store.own import refuse_strangers
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST, CARD = "prefkit.json", "README.md"


@dataclass(frozen=True)
class Staged:
    """A folder with everything but the card, and the card's parts. files: path -> (SHA-256, git blob SHA-1, bytes)."""

    folder: Path
    kind: str
    metadata: Mapping[str, Any]
    body: str
    files: Mapping[str, tuple[str, str, int]]
    fingerprint: str
    dropped: Mapping[str, int]


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
    private, files and bytes. dry_run: write the files locally, contact nothing, decide nothing.

    Raises UsageError, StoreError, and ChangedUnderUs where the repository keeps moving.
    """
    pairs, train = _what(store, to, pairs, train)
    if remove and train:
        raise UsageError("--remove takes images out of datasets; a model was trained on them or not. Push pairs, then train again without them.")  # fmt: skip
    with store.lock("push"):
        if remove:
            check_known(store, remove, store.pairs(pairs) if pairs else None)
            if not dry_run:
                write_removals(store, remove)
        folder = store.folder / "push" / f"{'pairs' if pairs else 'train'}-{checked(pairs or train or '')}"
        _check_folder(folder)
        with whole_folder(folder, manifest=False) as new:
            staged = (
                _stage_model(store, train, to, new, licence)
                if train
                else _stage_pairs(store, str(pairs), to, new, remove, licence)
            )
        staged = replace(staged, folder=folder)
        bound = facts.restricted(facts.licence_rows(store, facts.recipe_of(store)))
        if public and bound and not licence:
            raise UsageError(
                f"push --public: {', '.join(bound)} comes with terms that bind users of the result (see Licences in {folder / CARD}). "
                "State the terms under which you may publish with --license ID, or push privately."
            )
        found = _plan(staged, to)
        if dry_run:
            return found | {"dry_run": True, "private": not public}
        done = _send(Remote(to, staged.kind), staged, public, squash)
    if remove and not squash and done["changed"]:
        output.warn(
            f"{to}: the removed images are gone from main, but its earlier commits and tags still hold them. Push again with "
            "--squash to leave no history, and see the repository's storage settings for files that nothing names any more."
        )
    return found | done


def _what(store: Store, to: str, pairs: str | None, train: str | None) -> tuple[str | None, str | None]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", to):
        raise UsageError(f"--to {to!r}: give the repository as owner/name, for example --to you/wardrobe.")
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        raise UsageError(f"--to {to[:80]!r}: the Hub takes no such name: {str(error)[:200]}") from error
    if not store.exists():
        raise UsageError(
            f"{store.folder} is not a run folder: it has no run.json. Start one with `prefkit generate {output.shell_quoted(store.folder)}`."
        )
    if pairs and train:
        raise UsageError(
            "push takes --pairs NAME or --train NAME, not both: a dataset and a model are two repositories."
        )
    if pairs is None and train is None:
        names = store.names("pairs")
        if len(names) != 1:
            there = f"pairs {', '.join(names) or 'none'}; trainings {', '.join(store.names('train')) or 'none'}"
            raise UsageError(f"push: what of {store.folder}? Give --pairs NAME or --train NAME ({there}).")
        pairs = names[0]
    return pairs, train


def _stage_pairs(store: Store, name: str, to: str, folder: Path, remove: Sequence[str], licence: str | None) -> Staged:
    staged = stage_dataset(store, name, folder, removed(store, remove))
    if staged.shown:
        pair_sheet(staged.shown, folder / PAIR_SHEET)
    metadata, body = dataset_card(store, name, to, staged, licence)
    return _finish(folder, facts.relevant(facts.recipe_of(store), "pair", name), metadata, body, staged.dropped)


def _stage_model(store: Store, name: str, to: str, folder: Path, licence: str | None) -> Staged:
    final = result_folder(store, name)
    check_folder(final, f"Run `prefkit train --name {name}` again, which exports it again.")
    shutil.copytree(final, folder, ignore=shutil.ignore_patterns(".*", SUMS), dirs_exist_ok=True)
    if (store.train(name) / TRAINED_ON).is_file():
        shutil.copyfile(store.train(name) / TRAINED_ON, folder / TRAINED_ON)
    (folder / CARD).unlink(missing_ok=True)
    rows = _compared(store, name)
    if rows:
        compared_sheet(rows, folder / EVAL_SHEET)
    metadata, body = model_card(store, name, to, bool(rows), licence)
    recipe = facts.recipe_of(store)
    return _finish(folder, facts.relevant(recipe, "train", source_of(name, recipe)), metadata, body, None)


def _compared(store: Store, name: str) -> list[tuple[bytes, bytes]]:
    """(base, tuned) at equal request and index, of the first evaluation that holds both; chosen by hash."""
    gone = removed(store)
    for evaluation, result in evaluations(store).items():
        for set_name, models in (result.get("sets") or {}).items():
            folders = [store.eval(evaluation) / set_name / model for model in ("base", name)]
            if name not in models or not all((folder / "run.json").exists() for folder in folders):
                continue
            sides = [Store(folder) for folder in folders]
            generator = (result.get("settings") or {}).get("generator") or next(iter(sides[0].names("candidates")), "")
            frames = [
                side.candidates(generator).frame(["id", "request_id", "index", "error", "sha256"]) for side in sides
            ]
            frames = [f[f.error.isna() & ~f.id.isin(gone.ids) & ~f.sha256.isin(gone.files)] for f in frames]
            both = frames[0].merge(frames[1], on=["request_id", "index"], suffixes=("_base", "_tuned"))
            both["key"] = [digest("shown", r, i) for r, i in zip(both.request_id, both["index"].astype(int))]
            chosen = both.sort_values("key").drop_duplicates("request_id").head(SHOWN)
            readers = [CandidateReader(side, [generator]) for side in sides]
            return [(readers[0].image(a), readers[1].image(b)) for a, b in zip(chosen.id_base, chosen.id_tuned)]
    return []


def _check_folder(folder: Path) -> None:
    """Raises UsageError where the folder of an earlier push holds a file that push did not write."""
    files = read_json(folder / MANIFEST).get("files", []) if (folder / MANIFEST).exists() else []
    refuse_strangers(folder, {*files, MANIFEST, CARD}.__contains__, "Move it elsewhere, then push again.")


def _finish(
    folder: Path, recipe: Mapping[str, Any], metadata: Any, body: str, dropped: Mapping[str, int] | None
) -> Staged:
    """Recipe, manifest and card beside the data; the fingerprint covers every byte but the card. dropped: None = a model."""
    kind = "model" if dropped is None else "dataset"
    if recipe:
        (folder / "recipe.yaml").write_text(
            yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100), encoding="utf-8"
        )
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): (*local_hashes(path), path.stat().st_size) for path in paths}
    fingerprint = digest(kind, {path: sha for path, (sha, _, _) in files.items()}, length=40)
    said = {"fingerprint": fingerprint, "kind": kind, "files": sorted([*files, MANIFEST])}
    write_atomic(folder / MANIFEST, dump_json(said))
    files[MANIFEST] = (*local_hashes(folder / MANIFEST), (folder / MANIFEST).stat().st_size)
    (folder / CARD).write_text(card.assemble(metadata, body), encoding="utf-8")
    return Staged(folder, kind, metadata, body, files, fingerprint, dropped or {})


def _plan(staged: Staged, to: str) -> dict[str, Any]:
    sizes = {path: size for path, (_, _, size) in staged.files.items()} | {CARD: (staged.folder / CARD).stat().st_size}
    return {
        "repository": f"{'datasets/' if staged.kind == 'dataset' else ''}{to}",
        "fingerprint": staged.fingerprint,
        "tag": tag_of(staged),
        "bytes": sum(sizes.values()),
        "files": dict(sorted(sizes.items())),
        "left_out": dict(staged.dropped),
        "folder": str(staged.folder),
    }


def tag_of(staged: Staged) -> str:
    return f"prefkit-{staged.fingerprint[:12]}"


def _send(remote: Remote, staged: Staged, public: bool, squash: bool) -> dict[str, Any]:
    commit, private = remote.open(public)
    if not private and not public:
        output.warn(f"{remote.to} is public already, and stays so.")
    changed = False
    for attempt in range(TRIES):
        try:
            commit, changed = _commit(remote, staged, commit)
            break
        except ChangedUnderUs as error:
            if attempt + 1 == TRIES:
                raise ChangedUnderUs(
                    f"{error} That happened {TRIES} times in a row: push again when others are done; nothing of theirs was overwritten."
                ) from error
            output.note(f"{remote.to} changed meanwhile: reading it again.")
            pause(attempt)
            commit = remote.head()
    if squash:
        commit = remote.squash(f"prefkit push {staged.fingerprint}")
    if squash or tag_of(staged) not in remote.tags():
        remote.tag(tag_of(staged), commit, f"prefkit fingerprint {staged.fingerprint}")
    return {"commit": commit, "changed": changed, "private": private, "url": f"{remote.api.endpoint}/{'datasets/' if staged.kind == 'dataset' else ''}{remote.to}"}  # fmt: skip


def _commit(remote: Remote, staged: Staged, head: str) -> tuple[str, bool]:
    """Bring the repository to what is staged, on top of `head`. Returns (commit, whether there was anything to do)."""
    there = remote.files(head)
    existing = remote.read(CARD, head).decode("utf-8", "replace") if CARD in there else None
    merged = card.merge(existing, staged.metadata, staged.body)
    (staged.folder / CARD).write_text(merged, encoding="utf-8")
    wanted = dict(staged.files) | {CARD: (*local_hashes(staged.folder / CARD), 0)}
    gone = sorted(path for path in _written(remote, there, head) if path not in wanted and path in there)
    differ = [path for path, (sha256, blob, _) in wanted.items() if there.get(path) not in (sha256, blob)]
    if not differ and not gone:
        return head, False
    output.note(f"push: {len(differ)} files to upload, {len(gone)} to remove")
    return remote.upload(staged.folder, head, gone, f"prefkit push {staged.fingerprint}"), True


def _written(remote: Remote, there: Mapping[str, str], head: str) -> list[str]:
    """The files that earlier pushes wrote, by the manifest in the repository."""
    if MANIFEST not in there:
        return []
    try:
        return [path for path in json.loads(remote.read(MANIFEST, head))["files"] if isinstance(path, str)]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{MANIFEST} of {remote.to} could not be read ({error}): it lists the files that push wrote. Restore it from an "
            "earlier commit, or remove it and every data file there, then push again."
        ) from error
