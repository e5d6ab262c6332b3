"""Folders of images: w/ and l/ (or two that you name), paired by file name, NAME_w and NAME_l, or one folder per prompt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import IGNORE, LeaveOut, files_under, kind_of
from prefkit.output import note
from prefkit.paths import image_suffixes, nfc, read_regular, shown
from prefkit.types import Comparison

CAPTIONS = (".txt", ".caption")
MAX_CAPTION = 1 << 20  # bytes
USUAL = (("w", "l"), ("win", "lose"), ("winner", "loser"), ("chosen", "rejected"))
#: the end of a file's name that makes it the better or the worse image, as in hat_w.png and hat_l.png
SIDE = re.compile(
    rf"(.*[^_.\s-])[_.\s-]+({'|'.join(word for pair in USUAL for word in pair)})", re.IGNORECASE | re.DOTALL
)
#: the number of a copy, at the end of a file's name
COPY = re.compile(r"[\s_-]*\(?\d+\)?$")
#: folders that are splits: chosen/val in OneTrainer's pairs, val/w in those of `export --as folders`
SPLITS = ("train", "val", "validation", "test")
REPEATS = re.compile(r"^\d+_(?=.)")  # kohya's 10_sks dress
NO_CAPTION = "the image has no caption: write one to a .txt of its name, or give --prompt or --file-names true"
SHOWN = 5


@dataclass(frozen=True)
class FoldersOptions:
    #: folder of the better images, under the source; null: w, win or chosen, if it exists
    win: str | None = None
    #: folder of the worse images, under the source; null: l, lose or rejected, if it exists
    lose: str | None = None
    #: one prompt for all images that have no caption file (NAME.txt or NAME.caption) and no prompt.txt in their folder
    prompt: str | None = None
    #: true: the file name is the prompt of an image without a caption: "a_red hat_2.png" becomes "a red hat"
    file_names: bool = False


class Folder:
    """The images under a folder, in order, and the caption files by `key`. Counts all other files as left out."""

    def __init__(self, folder: Path, files: list[Path], leave_out: LeaveOut) -> None:
        self.folder, self.leave_out = folder, leave_out
        self.images = [path for path in files if path.suffix.lower() in image_suffixes()]
        self.captions: dict[str, Path] = {}
        for suffix in CAPTIONS:  # the first caption of an image is used
            for path in (path for path in files if path.suffix.lower() == suffix):
                if self.captions.setdefault(self.key(path), path) != path:
                    leave_out("second caption of an image", 1)
        for path in files:
            if path.suffix.lower() not in image_suffixes() | {*CAPTIONS}:
                leave_out(kind_of(path), 1)

    def key(self, path: Path) -> str:
        """Return the part of a path that an image has in common with its caption and its paired image."""
        return nfc(path.relative_to(self.folder).with_suffix("").as_posix())

    def by_key(self) -> tuple[dict[str, Path], list[Item]]:
        """Return {key: image}, and an Item with an error for each further image whose key is already taken."""
        images: dict[str, Path] = {}
        errors = []
        for path in self.images:
            other = images.setdefault(self.key(path), path)
            if other != path:
                errors.append(Item(str(path), error=f"{other} has the same name, so the pair is ambiguous"))
        return images, errors

    def leave_unused(self, keys: set[str]) -> None:
        """Count the captions without an image as left out. keys: the keys of the used images and captions."""
        if unused := len(self.captions.keys() - keys):
            self.leave_out("caption without an image", unused)

    def caption(self, key: str) -> str | None:
        """Return the caption of an image, or None if it is missing or empty. Raises ValueError if it cannot be read."""
        return (_text(self.captions[key]) or None) if key in self.captions else None

    def common(self) -> Path | None:
        """Return the folder's prompt.txt, or None."""
        return next((self.captions[key] for key in self.captions if key.casefold() == "prompt"), None)


@dataclass(frozen=True)
class Folders:
    options: FoldersOptions
    Options = FoldersOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        if not source.is_dir():
            return None
        pair = _usual(source)
        if pair:
            return f"it has {pair[0]}/ and {pair[1]}/"
        if splits := _splits(source):
            return f"it has pairs in {' and '.join(f'{folder.name}/' for folder in splits)}"
        inner = [p for p in source.iterdir() if p.is_dir()]
        if inner and all((p / "prompt.txt").is_file() for p in inner):
            return "each of its folders has a prompt.txt"
        images = [] if inner else [p for p in source.iterdir() if p.suffix.lower() in image_suffixes()]
        if images and _by_side(images):
            return "its images are named NAME_w and NAME_l"
        captioned = all(any(p.with_suffix(suffix).is_file() for suffix in CAPTIONS) for p in images)
        return "its images have captions of the same name" if images and captioned else None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        if not path.is_dir():
            raise UsageError(f"import: {source} is not a folder; --as folders reads a folder.")
        if bool(self.options.win) != bool(self.options.lose):
            raise UsageError("import: --win and --lose must be given together.")
        pair = (self.options.win, self.options.lose) if self.options.win and self.options.lose else _usual(path)
        if pair is not None:
            yield from self._sides(path, pair, work.leave_out)
        elif splits := _splits(path):
            for folder in splits:
                yield from self._sides(folder, splits[folder], work.leave_out, folder.name)
            _leave_others(path, list(splits), work.leave_out)
        else:
            yield from self._by_prompt(path, work.leave_out)

    def _sides(
        self, path: Path, pair: tuple[str, str], leave_out: LeaveOut, split: str | None = None
    ) -> Iterator[Item]:
        sides = [path / pair[0], path / pair[1]]
        for folder in sides:
            if not folder.is_dir():
                raise UsageError(f"import: the folder {folder} was not found.")
        win, lose = (Folder(f, files_under(f, leave_out, [path]), leave_out) for f in sides)
        yield from self._paired(win, lose, split)
        _leave_others(path, sides, leave_out)

    def _paired(self, win: Folder, lose: Folder, split: str | None) -> Iterator[Item]:
        (winners, ambiguous), (losers, others) = win.by_key(), lose.by_key()
        yield from (*others, *ambiguous)
        for key, path in winners.items():
            if key in losers:
                inner = next((name for name in SPLITS if key.startswith(f"{name}/")), None)
                yield _item(path, partial(self._prompt, key, win, lose), [path, losers[key]], split or inner)
            else:
                yield Item(str(path), error=f"{lose.folder} has no image of this name")
        for key, path in losers.items():
            if key not in winners:
                yield Item(str(path), error=f"{win.folder} has no image of this name")
        for folder in (win, lose):
            folder.leave_unused({*winners, *losers})

    def _prompt(self, key: str, win: Folder, lose: Folder) -> str | None:
        first, second = win.caption(key), lose.caption(key)
        if first and second and first != second:
            lose.leave_out("caption of a worse image that differs from the better image's", 1)
        return first or second or self._fallback(key, None)

    def _by_prompt(self, path: Path, leave_out: LeaveOut) -> Iterator[Item]:
        visible = sorted(p for p in path.iterdir() if p.name[0] != ".")
        bare = Folder(path, [p for p in visible if not p.is_dir()], leave_out)
        inner = [p for p in visible if p.is_dir()]
        if not inner and not bare.images:
            raise UsageError(f"import: {path} has neither w/ and l/ nor one folder per prompt. Give --win and --lose.")
        if sides := _by_side(bare.images):
            yield from self._by_suffix(bare, sides)
        else:
            yield from self._images(bare, bare.common(), None)
        prompts: dict[str, str] = {}  # folder name -> prompt
        for subfolder in inner:
            folder = Folder(subfolder, files_under(subfolder, leave_out, [path]), leave_out)
            yield from self._images(folder, folder.common(), prompts)
        lines = [f"{shown(name)!r} -> {shown(prompt)!r}" for name, prompt in list(prompts.items())[:SHOWN]]
        if lines:
            more = f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else ""
            dropped = " (kohya's number of repeats is dropped)" if any(map(REPEATS.match, prompts)) else ""
            note(f"folder names became prompts: {', '.join(lines)}{more}{dropped}")

    def _by_suffix(self, folder: Folder, sides: dict[str, dict[int, Path]]) -> Iterator[Item]:
        """Yield a row per pair NAME_w, NAME_l. Captions are NAME.txt or those of either image, or the folder's prompt.txt."""
        common = folder.common()
        for name, images in sides.items():
            if len(images) == 2:
                keys = [name, *(folder.key(images[side]) for side in (0, 1))]
                yield _item(images[0], partial(self._prompt_by_suffix, keys, folder, common), [images[0], images[1]])
            else:
                yield Item(str(next(iter(images.values()))), error="the other image of the pair is missing")
        names = {folder.key(path) for path in folder.images} | sides.keys()
        folder.leave_unused(names | ({folder.key(common)} if common else set()))

    def _prompt_by_suffix(self, keys: list[str], folder: Folder, common: Path | None) -> str | None:
        captions = list(dict.fromkeys(filter(None, map(folder.caption, keys))))
        if len(captions) > 1:
            folder.leave_out("caption of an image that differs from the pair's", len(captions) - 1)
        return captions[0] if captions else self._fallback(keys[0], common)

    def _fallback(self, key: str, common: Path | None) -> str | None:
        """Return the first of: the folder's prompt.txt, --prompt, and with --file-names the name in `key`."""
        text = _text(common) if common else self.options.prompt
        return text or (prompt_of_name(key) if self.options.file_names else None)

    def _images(self, folder: Folder, common: Path | None, prompts: dict[str, str] | None) -> Iterator[Item]:
        """Yield an Item per image. common: the folder's prompt.txt. prompts: collects folder names used as prompts."""
        for image in folder.images:
            yield _item(image, partial(self._prompt_of, image, folder, common, prompts), [image])
        folder.leave_unused({folder.key(path) for path in (*folder.images, *([common] if common else []))})

    def _prompt_of(
        self, image: Path, folder: Folder, common: Path | None, prompts: dict[str, str] | None
    ) -> str | None:
        """Return the first of: caption, `_fallback`, and the folder's name, which is added to `prompts`."""
        caption = folder.caption(folder.key(image))
        caption = caption or self._fallback(folder.key(image), common)
        if caption or common or prompts is None:
            return caption
        name = folder.folder.name
        return prompts.setdefault(name, REPEATS.sub("", name).replace("_", " "))


def prompt_of_name(key: str) -> str:
    """Return the prompt in a file's name: the last part of `key` without the number of a copy, with spaces for _."""
    name = key.rpartition("/")[2]
    return " ".join((COPY.sub("", name) or name).replace("_", " ").split())


def _by_side(images: list[Path]) -> dict[str, dict[int, Path]]:
    """Return {NAME: {0: better image, 1: worse image}} of files NAME_w, NAME_l; {} unless all names are so and one pair is whole."""
    sides: dict[str, dict[int, Path]] = {}
    for path in images:
        match = SIDE.fullmatch(nfc(path.stem))
        if match is None:
            return {}
        pair = next(pair for pair in USUAL if match[2].casefold() in pair)
        if sides.setdefault(match[1], {}).setdefault(pair.index(match[2].casefold()), path) != path:
            return {}  # two better images of one name: the pairs are ambiguous
    return sides if any(len(images) == 2 for images in sides.values()) else {}


def _item(where: Path, prompt: Callable[[], str | None], images: list[Path], split: str | None = None) -> Item:
    """Return the Item of one image or of a (better, worse) pair; its `error` is set if the caption cannot be used."""
    try:
        text = prompt()
    except ValueError as error:
        return Item(str(where), error=str(error))
    if not text:
        return Item(str(where), error=NO_CAPTION)
    if len(images) == 1:
        return Item(str(where), Asked(text), (Picture("image", path=images[0]),))
    pictures = (Picture("w", path=images[0]), Picture("l", path=images[1]))
    return Item(str(where), Asked(text, split), pictures, (Comparison("w", "l", "a", "people"),))


def _leave_others(source: Path, sides: list[Path], leave_out: LeaveOut) -> None:
    """Count as left out the files under `source` that are outside `sides`."""
    for path in source.iterdir():
        if any(side.is_relative_to(path) or os.path.samefile(side, path) for side in sides if path.exists()):
            continue
        if path.name in IGNORE:
            continue
        files = files_under(path, leave_out, [source]) if path.is_dir() and path.name[0] != "." else [path]
        leave_out(f"outside of {' and '.join(f'{side.name}/' for side in sides)}", len(files))


def _usual(source: Path) -> tuple[str, str] | None:
    names = {path.name.casefold(): path.name for path in sorted(source.iterdir()) if path.is_dir()}
    return next(((names[a], names[b]) for a, b in USUAL if a in names and b in names), None)


def _splits(source: Path) -> dict[Path, tuple[str, str]]:
    """Return {folder: its `_usual` pair} of the folders named after splits, such as train/w and train/l."""
    pairs = {folder: _usual(folder) for folder in sorted(source.iterdir()) if folder.name in SPLITS and folder.is_dir()}
    return {folder: pair for folder, pair in pairs.items() if pair is not None}


def _text(path: Path) -> str:
    """Return the text of a caption file. Raises ValueError if it cannot be read or is not UTF-8."""
    try:
        return read_regular(path, MAX_CAPTION).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise ValueError(f"the caption {path.name} is not UTF-8 text ({where}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"the caption {path.name} cannot be read: {error.strerror or error}") from error


plugin = Folders
