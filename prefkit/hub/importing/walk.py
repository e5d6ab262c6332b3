"""The files under a folder, with links to folders followed, and the words for those that an import leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prefkit.hub.importing.image_lookup import ARCHIVE, PART
from prefkit.hub.importing.records import Workplace
from prefkit.paths import is_image_name, shown
from prefkit.store.folders import LITTER

#: files that no data set means, and what prefkit writes beside its own
OWN = (
    *LITTER,
    ".prefkit-export.json",
    "simpletuner.json",
    "spec.json",
    "prefkit.json",
    "recipe.yaml",
    "audit.json",
)
TEXTS = ("readme", "license", "licence")
KINDS = 8
LeaveOut = Callable[[str, int], None]


def files_under(folder: Path, leave_out: LeaveOut, above: Iterable[Path] = ()) -> list[Path]:
    """Every file under `folder`, in order. Hidden files, links back to a folder above, and folders that cannot be read
    are counted by `leave_out`. above: folders that lead here."""
    found: list[Path] = []
    _enter(folder, {os.path.realpath(path) for path in (*above, folder)}, found, leave_out)
    return sorted(found)


def _enter(folder: Path, chain: set[str], found: list[Path], leave_out: LeaveOut) -> None:
    try:
        names = os.listdir(folder)
    except OSError:
        leave_out("folder that cannot be read", 1)
        return
    for name in names:
        path = folder / name
        if name in OWN or name.casefold().startswith(TEXTS):
            continue
        if name.startswith("."):
            leave_out("hidden folder" if path.is_dir() else "hidden file", 1)
        elif not os.path.isdir(path):
            found.append(path)
        elif (real := os.path.realpath(path)) in chain:
            leave_out("link to a folder above it", 1)
        else:
            _enter(path, chain | {real}, found, leave_out)


def leave_rest(source: Path, taken: Iterable[Path], work: Workplace) -> None:
    """Count the files of a source of tables that were not read; its images and archives belong to the rows."""
    if not source.is_dir():
        return
    read = {os.path.realpath(path) for path in taken}
    for path in files_under(source, work.leave_out):
        belongs = is_image_name(path.name) or ARCHIVE.search(path.name) or PART.fullmatch(path.name)
        if not belongs and os.path.realpath(path) not in read:
            work.leave_out(kind_of(path), 1)


def kind_of(path: Path) -> str:
    return shown(path.suffix.lower(), 20) or "without a suffix"


def told(left: Mapping[str, int]) -> str:
    """'3 files were skipped: 2 .heic (Pillow does not read it; ...), 1 .mov.'"""
    most = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {kind}{_reason(kind)}" for kind, count in most[:KINDS]]
    if len(most) > KINDS:
        parts.append(f"{sum(count for _, count in most[KINDS:])} of other kinds")
    total = sum(left.values())
    return f"{total} {'file was' if total == 1 else 'files were'} skipped: {', '.join(parts)}."


def _reason(kind: str) -> str:
    return " (an image format that is not read; convert it to PNG or JPEG)" if is_image_name(f"x{kind}") else ""
