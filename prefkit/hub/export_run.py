"""The export core: atomically writes pairs to a folder, in the layout of another training tool."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import plugin_options
from prefkit.errors import StoreError, UsageError
from prefkit.hub.pair_reader import Pairs
from prefkit.output import note, warn
from prefkit.store.files import read_json, write_json
from prefkit.store.folders import files_in, first_foreign_file, inventory, swap
from prefkit.store.litter import sweep_beside, temporary_beside
from prefkit.types import digest

MARK = ".prefkit-export.json"  # a file in every export: the hash of its inputs, its counts and its files


def run_export(
    pairs: str, out: str | Path, *, layout: str, flags: Mapping[str, Any] | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write `pairs` to the folder `out` in `layout` and return the counts. If it raises UsageError, `out` is unchanged.

    overwrite: replace an earlier export in `out`, unless files in `out` were added or changed since. Without
    `overwrite`, an existing identical export is kept and its counts are returned.
    """
    plugin = registry.load_class("exporter", layout)
    options = plugin_options.options(plugin, dict(flags or {}), f"export --as {layout}")
    source = Pairs(pairs)
    out = Path(out).expanduser()
    if getattr(options, "root", None) == "":
        options = replace(options, root=str(out.resolve()))
    made = digest(
        layout, asdict(options), str(source.folder.resolve()), source.state()
    )  # stores a hash, not the private folder name
    if not overwrite and (counts := _counts_of(out, made)) is not None:
        note(f"export: {out} already holds this export; nothing was written.")
        return {"as": layout, "out": str(out), **counts}
    _check(out, overwrite)
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"export: {out} contains the pairs to export. Give another folder.")
    partial = temporary_beside(out)
    try:
        sweep_beside(out)
        partial.mkdir(parents=True)
        counts = plugin(options).write(source, partial)
        if not counts.get("pairs"):
            raise UsageError(f"export: the files in {source.folder} hold no pairs. Make pairs with `prefkit pair`.")
        counts |= _left_out(source, layout, getattr(plugin, "keeps", ()))
        write_json(partial / MARK, {"made": made, "counts": counts, "files": inventory(partial)})
        _check(out, overwrite)  # again, because writing takes long
        swap(partial, out)
    except OSError as error:
        raise UsageError(f"export: {out} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"as": layout, "out": str(out), **counts}


def _left_out(source: Pairs, layout: str, keeps: Collection[str]) -> dict[str, int]:
    """Report what the layout does not hold, and return the counts that are not 0."""
    counts = {
        "soft": 0 if "p" in keeps else source.soft,
        "edits": 0 if "inputs" in keeps else source.edits,
        "ties": source.count_ties(),
    }
    if counts["soft"]:
        note(
            f"export: pairs with a probability (p) below 1: {counts['soft']}. Trainers that read {layout} treat every "
            "winner as certain."
        )
    if counts["edits"]:
        warn(
            f"export: pairs made with input images: {counts['edits']}. {layout} does not hold these images, so a model "
            "that is trained on this export does not see them."
        )
    if counts["ties"]:
        note(f"export: ties left out: {counts['ties']}.")
    return {f"{name}_left_out": count for name, count in counts.items() if count}


def _mark(out: Path) -> dict[str, Any]:
    try:
        mark = read_json(out / MARK)
    except StoreError:
        return {}
    return mark if isinstance(mark.get("files"), dict) and isinstance(mark.get("counts"), dict) else {}


def _foreign(out: Path, mark: Mapping[str, Any]) -> str | None:
    return first_foreign_file(out, mark.get("files", {}) | ({MARK: inventory(out).get(MARK)} if mark else {}))


def _counts_of(out: Path, made: str) -> dict[str, Any] | None:
    """Return the counts stored in `out` if it holds a complete, unchanged export with the input hash `made`."""
    mark = _mark(out) if out.is_dir() else {}
    complete = bool(mark) and mark.get("made") == made and {*mark["files"], MARK} == set(files_in(out))
    return mark["counts"] if complete and _foreign(out, mark) is None else None


def _check(out: Path, overwrite: bool) -> None:
    """Raise UsageError if `out` is not a folder, or holds files that must not be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"export: {out} exists but is not a folder. Give another path.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"export: {out} already exists. Give another folder, or replace an export with --overwrite.")
    mark = _mark(out)
    name = _foreign(out, mark)
    if name is not None:
        why = "was added or changed since the export" if mark else "was not written by prefkit export"
        raise UsageError(f"export: {out / name} {why}, so nothing was replaced. Remove it, or give another folder.")
