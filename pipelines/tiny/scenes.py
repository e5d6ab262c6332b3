"""Render scenes of the wardrobe into one .npz file for training; a seed always gives the same scenes.

    python pipelines/tiny/scenes.py OUT.npz --n 24000 --seed 0 --processes 2 [--held-out]

The file holds images uint8 [N, 64, 64, 3] and scenes int64 [N, 4]: indices into the lists of items, colours,
backgrounds and patterns in prefkit/tiny/domain.py. 24,000 scenes take about 30 s on 2 cores. With --held-out, all
scenes have (item, colour) pairs that training never sees.
"""

from __future__ import annotations

import argparse
from functools import partial
from multiprocessing import get_context

import numpy as np

from prefkit.tiny.captions import held_out_pair, training_scene
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, Scene
from prefkit.tiny.scene import render

LISTS: tuple[list[str], ...] = (list(ITEMS), list(COLOURS), list(BACKGROUNDS), list(PATTERNS))


def scene_of(row: np.ndarray) -> Scene:
    """Return the scene for one row of indices."""
    return Scene(*(names[i] for names, i in zip(LISTS, row)))


def indices(scene: Scene) -> tuple[int, int, int, int]:
    named = (scene.item, scene.colour, scene.background, scene.pattern)
    item, colour, background, pattern = (names.index(name) for names, name in zip(LISTS, named))
    return item, colour, background, pattern


def one(number: int, *, seed: int, held_out: bool) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Render scene `number` of this seed; the result does not depend on the number of processes."""
    rng = np.random.default_rng([seed, number])
    scene = training_scene(rng)
    if held_out:
        pairs = [(item, colour) for item in ITEMS for colour in COLOURS if held_out_pair(item, colour)]
        item, colour = pairs[rng.integers(len(pairs))]
        scene = Scene(item, colour, scene.background, scene.pattern)
    return np.asarray(render(scene, int(rng.integers(2**31)))), indices(scene)


def render_many(n: int, seed: int, processes: int, held_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [n, 64, 64, 3] and scene indices int64 [n, 4]."""
    with get_context("spawn").Pool(processes) as pool:
        made = pool.map(partial(one, seed=seed, held_out=held_out), range(n), chunksize=250)
    return np.stack([image for image, _ in made]), np.array([scene for _, scene in made])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--n", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--held-out", action="store_true")
    args = parser.parse_args()
    images, scenes = render_many(args.n, args.seed, args.processes, args.held_out)
    np.savez(args.out, images=images, scenes=scenes)
    print(f"{args.out}: {len(images)} scenes")


if __name__ == "__main__":
    main()
