"""Make the data of the study: pictures of dressed bodies, what a detector reads from them, and the true poses.

    python pipelines/mesh/make_data.py OUT --cache CACHE [--detector noise] [--workers 2] [--fast]

One Parquet file of requests per set is written to OUT:
train             labelled, procedural poses, nothing in front of the body: for the base model
fit               labelled, procedural poses, half of them occluded: for the scorer
pairs             occluded, half procedural and half from 10 motion clips; its labels are for controls only
test_procedural   held-out procedural poses, every second picture occluded
test_motion       frames of 5 other clips, every second picture occluded
CACHE: the folder of assets.py; BlazePose also needs the package ai-edge-litert. With `--detector noise` the keypoints are
projected joints with a network's errors, and only the motion clips are read from CACHE; without --cache, no row is from a clip.
Pictures are not stored, except the first few of each set. sheet.png shows some of them with their keypoints.
A row depends only on --seed, its set and its number, not on the sizes of the sets or on --workers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from assets import CLIP_HASHES
from detector import MARGIN, BlazePose, square
from motion import PAIR_CLIPS, TEST_CLIPS, read_clips
from noise import HIDDEN, VISIBLE, noisy
from pictures import BODY, Picture, Shot, random_shape, shots, take
from poses import poses
from sheet import contact_sheet
from skeleton import random_view, rest_turns, seen

from prefkit.errors import UsageError
from prefkit.mesh.body import JOINT_NAMES
from prefkit.mesh.rotations import from_matrix

#: rows that a process makes at a time
CHUNK = 50
FAST = {"train": 64, "fit": 32, "pairs": 24, "test": 16}


@dataclass(frozen=True)
class Part:
    """One set of rows. stream: the set's own number in the random seed. motion: fraction of rows from clips. occluded:
    fraction of rows with objects in front of the body. Rows of both kinds are spread evenly over the set."""

    name: str
    stream: int
    split: str
    occluded: float
    motion: float = 0.0
    clips: tuple[str, ...] = ()


#: option that gives a size -> the sets of that size
SETS = {
    "train": [Part("train", 0, "train", 0.0)],
    "fit": [Part("fit", 1, "train", 0.5)],
    "pairs": [Part("pairs", 2, "train", 1.0, 0.5, PAIR_CLIPS)],
    "test": [Part("test_procedural", 3, "test", 0.5), Part("test_motion", 4, "test", 0.5, 1.0, TEST_CLIPS)],
}


@dataclass(frozen=True)
class Settings:
    """Settings of every process. cache: the folder of assets.py, or None. stored: number of pictures per set to store."""

    out: Path
    cache: Path | None
    detector: str
    seed: int
    stored: int


def every(number: int, fraction: float) -> bool:
    """True for this fraction of the numbers, evenly spread."""
    return int((number + 1) * fraction) > int(number * fraction)


class Maker:
    """Makes the rows of one set."""

    def __init__(self, part: Part, settings: Settings) -> None:
        self.part, self.settings, self.rest = part, settings, rest_turns(BODY)
        self.clips = read_clips(settings.cache, part.clips, self.rest) if settings.cache and part.clips else {}
        self.blazepose = BlazePose(settings.cache) if settings.detector == "blazepose" and settings.cache else None

    def rows(self, numbers: range) -> list[dict[str, Any]]:
        seed = [self.settings.seed, self.part.stream]
        rngs = [np.random.default_rng([*seed, 1, number]) for number in numbers]
        modes, rotations = poses([*seed, 0], numbers, self.rest)
        for k, (number, rng) in enumerate(zip(numbers, rngs)):
            if self.clips and every(number, self.part.motion):
                modes[k] = list(self.clips)[rng.integers(len(self.clips))]
                frames = self.clips[modes[k]]
                rotations[k] = frames[rng.integers(len(frames))]
            rotations[k] = seen(rotations[k], random_view(rng))
        shapes = np.stack([random_shape(rng) for rng in rngs])
        placed = zip(numbers, rngs, modes, rotations, shapes, shots(rotations, shapes, rngs))
        return [self.row(*one) for one in placed]

    def row(
        self, number: int, rng: np.random.Generator, mode: str, rotations: np.ndarray, shape: np.ndarray, shot: Shot
    ) -> dict[str, Any]:
        picture = take(shot, every(number, self.part.occluded), rng)
        name = f"{self.part.name}-{number:06d}"
        return {
            "request_id": name,
            "prompt": f"person {self.part.stream}{number:06d}",
            "split": self.part.split,
            "domain": "motion" if mode in self.clips else "procedural",
            "clip": mode if mode in self.clips else None,
            "mode": None if mode in self.clips else mode,
            "occluded": bool(every(number, self.part.occluded)),
            **truth(rotations, shape, shot, picture),
            **self.detected(picture, rng),
            "picture": self.store(picture, name) if number < self.settings.stored else None,
        }

    def detected(self, picture: Picture, rng: np.random.Generator) -> dict[str, Any]:
        if self.blazepose is None:
            side = square(picture.box, MARGIN).side
            return keypoints("free18", noisy(picture.joints, picture.states, JOINT_NAMES, side, rng))
        found = self.blazepose(picture.image, picture.box)
        outside = {"blazepose3d": rounded(found.world, 4), "person": round(found.person, 4)}
        return keypoints("blazepose33", found.points) | outside

    def store(self, picture: Picture, name: str) -> str:
        path = self.settings.out / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.image.save(path)
        return str(path.relative_to(self.settings.out))


def rounded(values: Any, digits: int) -> Any:
    return np.asarray(values, np.float64).round(digits).tolist()


def keypoints(names: str, points: np.ndarray) -> dict[str, Any]:
    return {"keypoint_names": names, "keypoints2d": rounded(points, 3)}


def truth(rotations: np.ndarray, shape: np.ndarray, shot: Shot, picture: Picture) -> dict[str, Any]:
    """Return the columns with a picture's labels, box and camera (see prefkit/mesh/truth.py and observed.py)."""
    camera = shot.camera
    return {
        "bbox": rounded(picture.box, 2),
        "camera": {
            "focal": round(camera.focal, 3),
            "principal": [camera.cx, camera.cy],
            "size": [camera.width, camera.height],
        },
        "true_joints3d": rounded(shot.joints, 5),
        "true_rotations": rounded(from_matrix(torch.from_numpy(rotations), "6d"), 6),
        "true_betas": rounded(shape, 5),
        "true_translation": rounded(shot.translation, 5),
        "visible": [int(state == VISIBLE) for state in picture.states],
        "hidden": [int(state == HIDDEN) for state in picture.states],
    }


@cache
def maker_of(part: Part, settings: Settings) -> Maker:
    """Return the maker of a set; a process opens the networks and clips of a set once."""
    torch.set_num_threads(1)
    return Maker(part, settings)


def make_chunk(part: Part, settings: Settings, numbers: range) -> tuple[list[dict[str, Any]], float]:
    """Return the rows with these numbers, and the CPU-seconds that they took."""
    maker, before = maker_of(part, settings), time.process_time()
    return maker.rows(numbers), time.process_time() - before


def chunks(part: Part, settings: Settings, size: int, pool: ProcessPoolExecutor | None) -> Iterator[Any]:
    ranges = [range(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]
    work = partial(make_chunk, part, settings)
    return pool.map(work, ranges) if pool else map(work, ranges)


def make_set(part: Part, settings: Settings, size: int, pool: ProcessPoolExecutor | None) -> dict[str, Any]:
    """Write a set's Parquet file. Returns the facts about it for data.json."""
    rows: list[dict[str, Any]] = []
    cpu = 0.0
    for some, seconds in chunks(part, settings, size, pool):
        rows += some
        cpu += seconds
        print(f"\r{part.name} {len(rows)}/{size}  {1000 * cpu / len(rows):.0f} CPU-ms a picture", end="", flush=True)
    print()
    pq.write_table(pa.Table.from_pylist(rows), settings.out / f"{part.name}.parquet", compression="zstd")
    return {"rows": size, "cpu_seconds": round(cpu, 1), "occluded": sum(row["occluded"] for row in rows)}


def check(args: argparse.Namespace) -> None:
    if args.detector == "blazepose" and not args.cache:
        raise UsageError("BlazePose needs --cache, a folder made by pipelines/mesh/assets.py; or use --detector noise.")
    if args.out.exists() and any(args.out.glob("*.parquet")) and not args.force:
        raise UsageError(f"{args.out} already holds data. Choose another folder, or replace it with --force.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--detector", choices=["blazepose", "noise"], default="blazepose")
    parser.add_argument("--train", type=int, default=12000)
    parser.add_argument("--fit", type=int, default=3000)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000, help="rows of each of the two test sets")
    parser.add_argument("--fast", action="store_true", help=f"few rows: {FAST}")
    parser.add_argument("--stored", type=int, default=8, help="pictures kept as PNG per set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--force", action="store_true")
    args = parser.parse_args()
    for name, size in FAST.items() if args.fast else ():
        setattr(args, name, size)
    return args


def make(args: argparse.Namespace) -> dict[str, Any]:
    """Write every set. Returns the content of data.json."""
    settings = Settings(args.out, args.cache, args.detector, args.seed, args.stored)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(part, getattr(args, option)) for option, parts in SETS.items() for part in parts]
    wanted = [(part, size) for part, size in wanted if args.cache or part.motion < 1]
    pool = ProcessPoolExecutor(args.workers, get_context("spawn")) if args.workers > 1 else None
    try:
        sets = {part.name: make_set(part, settings, size, pool) for part, size in wanted if size}
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    facts = {"seed": args.seed, "detector": args.detector, "clips": len(CLIP_HASHES) if args.cache else 0, "sets": sets}
    (args.out / "data.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args = parse()
    try:
        check(args)
        facts = make(args)
    except UsageError as error:
        raise SystemExit(f"{error}") from error
    contact_sheet(args.out).save(args.out / "sheet.png")
    print(f"{args.out}: {sum(s['cpu_seconds'] for s in facts['sets'].values()):.0f} CPU-seconds")


if __name__ == "__main__":
    main()
