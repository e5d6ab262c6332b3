"""The files under a folder, including linked folders, and the summary of files that an import skips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prefkit.hub.importing.archives import ARCHIVE, PART
from prefkit.hub.importing.records import Workplace
from prefkit.paths import is_image_name, shown
from prefkit.store.folders import LITTER

#: files written by file managers, by prefkit next to its tables, or with settings of a trainer; they are not data
IGNORE = {*LITTER, "spec.json", "audit.json", "recipe.yaml", "prefkit.json", ".prefkit-export.json", "simpletuner.json",
          "concepts.json"}  # fmt: skip
TEXTS = ("readme", "license", "licence")
KINDS = 8
LeaveOut = Callable[[str, int], None]


def files_under(folder: Path, leave_out: LeaveOut, above: Iterable[Path] = ()) -> list[Path]:
    """Return every file under `folder`, sorted. above: parents of `folder`, to detect links back to them.

    Calls `leave_out` for hidden files, for links to a parent folder, and for folders that cannot be read.
    """
    return sorted(_walk(folder, {os.path.realpath(path) for path in (*above, folder)}, leave_out))


def _walk(folder: Path, chain: set[str], leave_out: LeaveOut) -> Iterator[Path]:
    try:
        names = os.listdir(folder)
    except OSError:
        leave_out("folder that cannot be read", 1)
        return
    for name in names:
        path = folder / name
        if name in IGNORE or name.casefold().startswith(TEXTS):
            continue
        if name.startswith("."):
            leave_out("hidden folder" if path.is_dir() else "hidden file", 1)
        elif not os.path.isdir(path):
            yield path
        elif (real := os.path.realpath(path)) in chain:
            leave_out("link to a folder above it", 1)
        else:
            yield from _walk(path, chain | {real}, leave_out)


def leave_rest(source: Path, taken: Iterable[Path], work: Workplace) -> None:
    """Count files under `source` as left out, except `taken` and except images and archives, which rows may name."""
    if not source.is_dir():
        return
    read = {os.path.realpath(path) for path in taken}
    for path in files_under(source, work.leave_out):
        belongs = is_image_name(path.name) or ARCHIVE.search(path.name) or PART.fullmatch(path.name)
        if not belongs and os.path.realpath(path) not in read:
            work.leave_out(kind_of(path), 1)


def kind_of(path: Path) -> str:
    return shown(path.suffix.lower(), 20) or "without a suffix"


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return a sentence such as "3 files were skipped: 2 .heic (an image format that is not read; ...), 1 .mov."."""
    most = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {kind}{_reason(kind)}" for kind, count in most[:KINDS]]
    if len(most) > KINDS:
        parts.append(f"{sum(count for _, count in most[KINDS:])} of other kinds")
    total = sum(skipped.values())
    return f"{total} {'file was' if total == 1 else 'files were'} skipped: {', '.join(parts)}."


def _reason(kind: str) -> str:
    return " (an image format that is not read; convert it to PNG or JPEG)" if is_image_name(f"x{kind}") else ""
