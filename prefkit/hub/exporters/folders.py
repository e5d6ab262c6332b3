"""Folders w/ (winners) and l/ (losers) with captions, for SimpleTuner's Flow-DPO (reference_strict) and kohya's DPO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.importing.image_check import suffix_of
from prefkit.hub.pair_files import as_png, one_line
from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.store.files import dump_json, write_atomic


@dataclass(frozen=True)
class FoldersOptions:
    #: name of the folder for the better images
    win: str = "w"
    #: name of the folder for the worse images
    lose: str = "l"
    #: suffix of the caption files (.txt, .caption)
    caption: str = ".txt"


@dataclass(frozen=True)
class Folders:
    options: FoldersOptions
    Options = FoldersOptions

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        """Write pair N to OUT/SPLIT/w/N.png and OUT/SPLIT/l/N.png, and SimpleTuner's config of both folders."""
        counts: dict[str, Any] = {"pairs": 0, "as_png": 0, "captions_joined": 0}
        for pair in pairs.rows():
            counts["pairs"] += 1
            counts[pair.split] = counts.get(pair.split, 0) + 1
            suffix, win, lose = _alike(pair)
            counts["as_png"] += win is not pair.win
            caption = one_line(pair.caption)
            counts["captions_joined"] += caption != pair.caption
            for side, data in ((self.options.win, win), (self.options.lose, lose)):
                folder = out / pair.split / side
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{pair.number:07d}{suffix}").write_bytes(data)
                (folder / f"{pair.number:07d}{self.options.caption}").write_text(caption, encoding="utf-8")
        for folder in sorted(p for p in out.iterdir() if p.is_dir()):
            write_atomic(folder / "simpletuner.json", dump_json(self._simpletuner(folder.name)))
        return counts

    def _simpletuner(self, split: str) -> Any:
        """Return SimpleTuner's data backends for a split: the winners, and the losers as their reference images."""
        common = {"type": "local", "caption_strategy": "textfile"}
        win, lose = (f"{split}/{side}" for side in (self.options.win, self.options.lose))
        better = {
            "id": "preferred",
            "dataset_type": "image",
            "instance_data_dir": win,
            "conditioning_data": ["rejected"],
        }
        worse = {"id": "rejected", "dataset_type": "conditioning", "conditioning_type": "reference_strict"}
        worse |= {"instance_data_dir": lose, "source_dataset_id": "preferred"}
        return [common | better, common | worse]


def _alike(pair: PairOut) -> tuple[str, bytes, bytes]:
    """Return (suffix, winner, loser): the original files if they have equal suffixes, else PNGs.

    The suffixes must be equal because trainers expect the same file name in both folders.
    """
    suffixes = {suffix_of(pair.win), suffix_of(pair.lose)}
    if len(suffixes) == 1:
        return suffixes.pop(), pair.win, pair.lose
    return ".png", as_png(pair.win), as_png(pair.lose)


plugin = Folders
