"""Folders of images: w/ and l/ (or two folders of your naming) with equal file names, or a folder for each prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.hub.items import Asked, Item, Picture, Workplace
from prefkit.types import Comparison

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
USUAL = (("w", "l"), ("win", "lose"), ("chosen", "rejected"))


@dataclass(frozen=True)
class FoldersOptions:
    #: folder of the better images, under the source; null: w, win or chosen
    win: str | None = None
    #: folder of the worse images, under the source; null: l, lose or rejected
    lose: str | None = None
    #: one prompt for all images that have no caption file (NAME.txt or NAME.caption) and no prompt.txt in their folder
    prompt: str | None = None


class Folders:
    Options = FoldersOptions

    def __init__(self, options: FoldersOptions) -> None:
        self.options = options

    @staticmethod
    def sniff(source: Path) -> str | None:
        if not source.is_dir():
            return None
        pair = _usual(source)
        if pair:
            return f"it has {pair[0]}/ and {pair[1]}/"
        inner = [p for p in source.iterdir() if p.is_dir()]
        if inner and all((p / "prompt.txt").is_file() for p in inner):
            return "each of its folders has a prompt.txt"
        return None

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        path = Path(source).expanduser()
        if not path.is_dir():
            raise UsageError(f"import: {source} is no folder, which --as folders wants.")
        if bool(self.options.win) != bool(self.options.lose):
            raise UsageError("import: --win and --lose belong together: give both folders.")
        pair = (self.options.win, self.options.lose) if self.options.win and self.options.lose else _usual(path)
        yield from self._paired(path / pair[0], path / pair[1]) if pair else self._by_prompt(path)

    def _paired(self, win: Path, lose: Path) -> Iterator[Item]:
        for folder in (win, lose):
            if not folder.is_dir():
                raise UsageError(f"import: the folder {folder} is not there.")
        others: dict[str, Path] = {}
        for path in _images(lose):
            key = path.relative_to(lose).with_suffix("").as_posix()
            if key in others:
                yield Item(str(path), error=f"{others[key]} has the same name, so it is not clear which one is meant")
            others.setdefault(key, path)
        for path in _images(win):
            key = path.relative_to(win).with_suffix("").as_posix()
            other = others.pop(key, None)
            prompt = self._caption(path) or (self._caption(other) if other else None) or self.options.prompt
            if other is None:
                yield Item(str(path), error=f"there is no image of that name under {lose}")
            elif not prompt:
                yield Item(str(path), error="no caption: write it into a .txt of the same name, or give --prompt")
            else:
                pictures = (Picture("w", path=path), Picture("l", path=other))
                yield Item(str(path), Asked(prompt), pictures, (Comparison("w", "l", "a", "people"),))
        for other in others.values():
            yield Item(str(other), error=f"there is no image of that name under {win}")

    def _by_prompt(self, path: Path) -> Iterator[Item]:
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        bare = sorted(p for p in path.iterdir() if _is_image(p))
        if not folders and not bare:
            raise UsageError(
                f"import: {path} has neither w/ and l/ nor a folder for each prompt. Name them with --win and --lose."
            )
        for image in bare:
            prompt = self._caption(image) or self.options.prompt
            error = None if prompt else "no caption: write it into a .txt of the same name, or give --prompt"
            yield Item(str(image), Asked(prompt or ""), (Picture("image", path=image),), error=error)
        for folder in folders:
            written = folder / "prompt.txt"
            common = _text(written) if written.is_file() else self.options.prompt or folder.name.replace("_", " ")
            for image in _images(folder):
                yield Item(str(image), Asked(self._caption(image) or common), (Picture("image", path=image),))

    def _caption(self, image: Path) -> str | None:
        for suffix in (".txt", ".caption"):
            if image.with_suffix(suffix).is_file():
                return _text(image.with_suffix(suffix))
        return None


def _usual(source: Path) -> tuple[str, str] | None:
    return next(((a, b) for a, b in USUAL if (source / a).is_dir() and (source / b).is_dir()), None)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if _is_image(p))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not path.name.startswith(".") and path.is_file()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({error}). Save it as UTF-8.") from error


plugin = Folders
