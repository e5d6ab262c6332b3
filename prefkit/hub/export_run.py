"""The export core: pairs -> a folder in another trainer's layout, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import plugin_options
from prefkit.errors import StoreError, UsageError
from prefkit.hub.pair_reader import Pairs
from prefkit.output import note
from prefkit.store.files import read_json, write_json
from prefkit.store.folders import files_in, first_foreign_file, inventory, swap
from prefkit.store.litter import sweep_beside, temporary_beside
from prefkit.types import digest

MARK = ".prefkit-export.json"  # in every export: a hash of what it was made of, its counts and its files


def run_export(
    pairs: str, out: str | Path, *, layout: str, flags: Mapping[str, Any] | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write `pairs` to the folder `out` as `layout`. Returns counts. Raises UsageError; then `out` is as it was.

    overwrite: an earlier export in `out` is replaced, as long as nobody has added or changed a file. Without it, this very
    export is left as it is and its counts are returned.
    """
    plugin = registry.load_class("exporter", layout)
    options = plugin_options.options(plugin, dict(flags or {}), f"export --as {layout}")
    source = Pairs(pairs)
    out = Path(out).expanduser()
    made = digest(layout, asdict(options), str(source.folder.resolve()), source.state())  # the folder itself is private
    if not overwrite and (found := _present(out, made)) is not None:
        note(f"export: {out} holds this very export already; nothing was written.")
        return {"as": layout, "out": str(out), **found}
    _check(out, overwrite)
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"export: {out} holds the pairs themselves. Give another folder.")
    partial = temporary_beside(out)
    try:
        sweep_beside(out)
        partial.mkdir(parents=True)
        counts = plugin(options).write(source, partial)
        if not counts.get("pairs"):
            raise UsageError(f"export: {source.folder} holds no pair.")
        write_json(partial / MARK, {"made": made, "counts": counts, "files": inventory(partial)})
        _check(out, overwrite)  # again: writing takes long
        swap(partial, out)
    except OSError as error:
        raise UsageError(f"export: {out} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"as": layout, "out": str(out), **counts}


def _mark(out: Path) -> dict[str, Any]:
    try:
        found = read_json(out / MARK)
    except StoreError:
        return {}
    return found if isinstance(found.get("files"), dict) and isinstance(found.get("counts"), dict) else {}


def _foreign(out: Path, mark: Mapping[str, Any]) -> str | None:
    return first_foreign_file(out, mark.get("files", {}) | ({MARK: inventory(out).get(MARK)} if mark else {}))


def _present(out: Path, made: str) -> dict[str, Any] | None:
    """The counts of this very export where `out` holds it, whole and unchanged."""
    mark = _mark(out) if out.is_dir() else {}
    whole = bool(mark) and mark.get("made") == made and {*mark["files"], MARK} == set(files_in(out))
    return mark["counts"] if whole and _foreign(out, mark) is None else None


def _check(out: Path, overwrite: bool) -> None:
    """Raises UsageError where `out` may not be written."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"export: {out} is not a folder. Give another one.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"export: {out} already exists. Give another folder, or --overwrite to replace an earlier export."
        )
    mark = _mark(out)
    name = _foreign(out, mark)
    if name is not None:
        why = "was added or changed since the export" if mark else "was not written by prefkit export"
        raise UsageError(f"export: {out / name} {why}, so --overwrite does not remove {out}. Remove it yourself, or give another folder.")  # fmt: skip
