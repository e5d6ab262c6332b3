"""From pairs to micro-batches: caches of latents and conditions, the order of the pairs, batches of one signature."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from prefkit.errors import UsageError
from prefkit.images import size as size_of
from prefkit.models.trees import Tree, has_nan, map_tensors, to_device
from prefkit.store import Store
from prefkit.store.reader import CandidateReader
from prefkit.train.data.aspect_buckets import fit
from prefkit.train.data.augment import Augmentation
from prefkit.train.data.cache import Cache
from prefkit.train.data.draws import draw_key
from prefkit.train.data.masks import Masks
from prefkit.train.data.pairs import PairImage, PairRow, PairSource, request_of
from prefkit.types import Candidate, Draw, Groups, Request, digest

ENCODE_ROWS = 32
PART_ROWS = 256


@dataclass
class Batch:
    """Samples whose conditions share a signature: all that are first in their groups, then all second, and so on.

    Draws are per sample; the members of a group share one time and one noise.
    weight: [samples, ...] of the errors, as latents; None = 1 everywhere.
    keys, reference: with cache_reference, names of the samples and, where all are known, the reference's errors by head.
    """

    latents: torch.Tensor
    draw: Draw
    condition: Tree
    groups: Groups
    members: list[Any]
    weight: torch.Tensor | None = None
    keys: np.ndarray | None = None
    reference: dict[str, torch.Tensor] | None = None

    def to(self, device: Any) -> Batch:
        """On `device`; from pinned memory the copies run beside the computation."""
        return self._changed(lambda tree: to_device(tree, device))

    def pinned(self) -> Batch:
        """In page-locked memory, which a CUDA device copies from by itself. What is on the device already stays there."""
        return self._changed(lambda tree: map_tensors(_pinned, tree))

    def _changed(self, change: Callable[[Tree], Tree]) -> Batch:
        names = ("latents", "condition", "weight", "reference")
        changed = {name: change(getattr(self, name)) for name in names}
        draw, groups = Draw(*change((self.draw.time, self.draw.noise))), Groups(**change(vars(self.groups)))
        return replace(self, draw=draw, groups=groups, **changed)


class PairData:
    """Pairs, or groups made of them, with their caches. `requests` by id give one what its caption does not say.

    conditions: a Cache, or a texts.PromptEmbeddingCache that holds few of them at a time.
    beside: what lies beside the latents, by `beside_key`: weight and noise of one image. masks: what the weights are of.
    views: how a group's visits look at its images. seed: train.seed, which the draws of training visits hang on.
    """

    def __init__(
        self,
        pairs: Sequence[Any],
        latents: Cache,
        conditions: Any,
        requests: dict[str, Request],
        beside: Cache | None = None,
        masks: Masks | None = None,
        views: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.pairs, self.latents, self.conditions, self.requests = pairs, latents, conditions, requests
        self.beside, self.masks, self.views = beside, masks, views or Augmentation()

    def of(self, groups: Sequence[Any]) -> PairData:
        """The same caches, for these groups."""
        own = self.latents, self.conditions, self.requests, self.beside, self.masks, self.views, self.seed
        return PairData(groups, *own)

    def request(self, pair: Any) -> Request:
        return request_of(pair, self.requests)

    def size(self, pair: Any) -> tuple[int, int]:
        """(height, width) in pixels, of all its images."""
        key = self.cached(pair.sides[0])
        if key is None:
            raise KeyError(pair.sides[0].key)
        height, width = self.latents.notes[key]
        return height, width

    def cached(self, side: PairImage) -> str | None:
        """Key of one of its views whose latents are there."""
        return next((key for key in self.views.keys(side) if key in self.latents), None)

    def condition_key(self, pair: Any) -> str:
        request = self.request(pair)
        return digest(request.prompt, request.extra, self.size(pair))

    def beside_key(self, group: Any, side: PairImage) -> str:
        """One image may be masked differently for several requests, or come from several seeds."""
        said = None if self.masks is None else self.masks.said(group, side)
        return digest(side.key, side.candidate, said)

    def example(self) -> str:
        """Key of an image whose latents are there."""
        return next(key for pair in self.pairs for side in pair.sides if (key := self.cached(side)))

    def complete(self) -> bool:
        return self.encoded() and all(self.condition_key(pair) in self.conditions for pair in self.pairs)

    def encoded(self) -> bool:
        """Whether all images are, and what lies beside them is there."""
        own = [(pair, side) for pair in self.pairs for side in pair.sides]
        if self.beside is not None and any(self.beside_key(*each) not in self.beside for each in own):
            return False
        return all(side.key in self.latents for _, side in own)

    # -- batches --------------------------------------------------------------------------------------------------
    def batches(
        self, family: Any, chosen: Sequence[tuple[Any, int]], time: torch.Tensor | None = None
    ) -> Iterator[Batch]:
        """(group, visit)s, each in its view, as batches of one condition signature, latent shape and group size.

        time: [1], overrules the draws'.
        """
        buckets: dict[Any, list[Any]] = {}
        for plain, visit in chosen:
            group = self.views.at(plain, visit)
            key = draw_key(self.seed, group.id, visit)
            latents = [self.latents.get(side.key)["latents"] for side in group.sides]
            condition = self.conditions.get(self.condition_key(group))
            draw = family.draw(key, visit, latents[0])
            if time is not None:
                draw = Draw(time, draw.noise)
            kind = (family.signature(condition), latents[0].shape, len(latents))
            beside = [self.beside.get(self.beside_key(group, side)) if self.beside else {} for side in group.sides]
            buckets.setdefault(kind, []).append((group, latents, condition, draw, beside))
        for members in buckets.values():
            yield self._batch(family, members)

    def _batch(self, family: Any, members: list[Any]) -> Batch:
        groups, latents, conditions, draws, beside = zip(*members, strict=True)
        count, sides = len(groups), len(latents[0])
        index, rank = torch.arange(count).repeat(sides), torch.arange(sides).repeat_interleave(count)
        gaps = torch.tensor([math.nan if g.score_gap is None else g.score_gap for g in groups]).repeat(sides)
        soft = torch.tensor([g.p for g in groups]).repeat(sides)
        labels = torch.tensor([g.labels[side] for side in range(sides) for g in groups])
        own = [found[side] for side in range(sides) for found in beside]
        return Batch(
            latents=torch.stack([both[side] for side in range(sides) for both in latents]),
            draw=Draw(torch.cat([d.time for d in draws] * sides), torch.cat([d.noise for d in draws] * sides)),
            condition=family.collate(list(conditions) * sides),
            groups=Groups(index, rank, labels, torch.ones(count * sides), gaps, soft),
            members=list(groups),
            weight=torch.stack([found["weight"] for found in own]) if "weight" in own[0] else None,
        )


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and tensor.layout == torch.strided else tensor


def order(count: int, seed: int, position: int) -> tuple[int, int]:
    """(index of the pair, epoch) at a position of the endless stream: a permutation per epoch."""
    epoch = position // count
    return int(_permutation(count, seed, epoch)[position % count]), epoch


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    key = (count, seed, epoch)
    if key not in _PERMUTATIONS:
        _PERMUTATIONS.clear()
        for near in (epoch, epoch + 1):  # a batch may reach into the next epoch
            generator = np.random.default_rng([seed, near])
            _PERMUTATIONS[count, seed, near] = generator.permutation(count)
    return _PERMUTATIONS[key]


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def ahead(make: Callable[[int], Any], numbers: Sequence[int]) -> Iterator[Any]:
    """make(number) for each number, the next one being made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for number in numbers:
            following = pool.submit(make, number)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


# -- caches -------------------------------------------------------------------------------------------------------
def first_size(source: PairSource, store: Store, pairs: Sequence[PairRow]) -> tuple[int, int]:
    """(height, width) of the first image."""
    for row, image, _ in source.images():
        if image is not None:
            return _size(image, source, row)
        break
    found = CandidateReader(store)
    name = pairs[0].win.candidate or ""
    return _size(found.image(name), source, 0) if name in found else (512, 512)


def fill_latents(
    data: PairData,
    wanted: Collection[PairImage],
    family: Any,
    source: PairSource,
    store: Store,
    generators: Sequence[str],
    share: tuple[int, int],
) -> None:
    """Cache the latents of the `wanted` images that are missing: from the candidates of `generators` where they hold them, else from the images.

    Images are those of the source or, where it has none, of any candidates. share: (rank, processes); every process
    takes the images whose key falls to it. Raises UsageError naming the row.
    """
    rank, processes = share
    views: dict[str, dict[str, PairImage]] = {}  # by the plain view's key
    for side in wanted:
        if side.key not in data.latents and int(side.key[:8], 16) % processes == rank:
            views.setdefault(side.plain or side.key, {})[side.key] = side
    rows: dict[str, tuple[int, PairImage]] = {}
    for pair in data.pairs:
        for side in pair.sides:
            if side.key in views:
                rows.setdefault(side.key, (pair.row, side))
    writer = _Writer(data.latents, family, source, views)
    if generators:
        for key, candidate in _candidates_of(rows, store, generators):
            writer.add(key, rows.pop(key)[0], candidate)
    if rows:
        places = {(row, side.column): key for key, (row, side) in rows.items()}
        for number, *images in source.images():
            for column, image in enumerate(images):
                if image is not None and (number, column) in places:
                    key = places[number, column]
                    _, side = rows.pop(key)
                    writer.add(key, number, Candidate(side.candidate or key, "", 0, 0, image=image))
    if rows:
        for key, candidate in _candidates_of(rows, store, ()):
            writer.add(key, rows.pop(key)[0], replace(candidate, payload=None))
    writer.flush()
    if rows:
        row, side = next(iter(rows.values()))
        raise UsageError(
            f"pairs {source.name}, row {row}: neither the row nor the run's candidates hold the image {side.candidate or side.key}."
        )


def _candidates_of(
    rows: dict[str, tuple[int, PairImage]], store: Store, generators: Sequence[str]
) -> Iterator[tuple[str, Candidate]]:
    """(key, candidate) of rows that name a candidate of these generators (none given: of any)."""
    wanted = {side.candidate: key for key, (_, side) in rows.items() if side.candidate}
    if wanted:
        for candidate in store.iter_candidates(generators, set(wanted)):
            key = wanted[candidate.id]
            if key in rows and candidate.error is None:
                yield key, candidate


def fill_conditions(data: PairData, family: Any, share: tuple[int, int]) -> None:
    """Cache the conditions that are missing, one per request and size."""
    rank, processes = share
    wanted: dict[str, Any] = {}
    for pair in data.pairs:
        key = data.condition_key(pair)
        if key not in data.conditions and int(key[:8], 16) % processes == rank:
            wanted.setdefault(key, pair)
    sizes: dict[tuple[int, int], list[str]] = {}
    for key, pair in wanted.items():
        sizes.setdefault(data.size(pair), []).append(key)
    for size, keys in sizes.items():
        for start in range(0, len(keys), ENCODE_ROWS):
            block = keys[start : start + ENCODE_ROWS]
            found = family.conditions([data.request(wanted[key]) for key in block], size)
            for key, condition in zip(block, found, strict=True):
                if has_nan(condition):
                    raise UsageError(
                        f"the encoded prompt (or input image) of {data.request(wanted[key]).prompt[:80]!r} is not finite. "
                        "Set train.precision to bf16 or no, or use another model.base."
                    )
            data.conditions.append(dict(zip(block, found, strict=True)))


def check_sizes(data: PairData, name: str) -> None:
    """Raises UsageError where the two images of a pair differ in size; of pairs that are not cached nothing is known."""
    there = [(pair, [data.cached(side) for side in pair.sides]) for pair in data.pairs]
    known = [(pair, [data.latents.notes[key] for key in keys if key]) for pair, keys in there if all(keys)]
    wrong = [(pair, sizes) for pair, sizes in known if sizes[0] != sizes[1]]
    if wrong:
        pair, ((h0, w0), (h1, w1)) = wrong[0]
        raise UsageError(
            f"pairs {name}: in {len(wrong)} of {len(known)} pairs the two images differ in size, first in row "
            f"{pair.row} ({w0} x {h0} against {w1} x {h1} px). Winner and loser share one noise, so they must have "
            "one size: resize and crop both alike, or remove the pairs."
        )


class _Writer:
    """Collects candidates and writes latents of their wanted views, a part at a time. views: by the plain key, by key."""

    def __init__(
        self, cache: Cache, family: Any, source: PairSource, views: Mapping[str, Mapping[str, PairImage]]
    ) -> None:
        self.cache, self.family, self.source, self.views = cache, family, source, views
        self.waiting: list[tuple[str, int, PairImage, Candidate]] = []

    def add(self, plain: str, row: int, candidate: Candidate) -> None:
        self.waiting += [(key, row, side, candidate) for key, side in self.views[plain].items()]
        if len(self.waiting) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        notes: dict[str, list[int]] = {}
        found: dict[str, Tree] = {}
        for start in range(0, len(self.waiting), ENCODE_ROWS):
            block = self.waiting[start : start + ENCODE_ROWS]
            ready = [self._ready(row, side, candidate) for _, row, side, candidate in block]
            encoded = self.family.latents([candidate for candidate, _ in ready])
            for (key, row, *_), (_, notes[key]), latents in zip(block, ready, encoded, strict=True):
                if not latents.isfinite().all():
                    raise UsageError(
                        f"pairs {self.source.name}, row {row}: the latents of image {key} are not finite. Remove the row; "
                        "where every image is refused, the VAE of model.base is broken or overflows: use another one."
                    )
                found[key] = {"latents": latents}
        self.cache.append(found, notes)
        self.waiting = []

    def _ready(self, row: int, side: PairImage, candidate: Candidate) -> tuple[Candidate, list[int]]:
        """The candidate as it is encoded, and [height, width]. Latents that it holds are those of its own size alone."""
        size = self._stored_size(row, candidate) if candidate.payload is not None else None
        if size is not None and side.frame in (None, size) and not side.flip:
            return candidate, list(size)
        try:
            image = candidate.pil()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _undecodable(self.source, row, error) from error
        image = fit(image, side)
        return replace(candidate, payload=None, decoded=image), [image.height, image.width]

    def _stored_size(self, row: int, candidate: Candidate) -> tuple[int, int]:
        return _size(
            candidate.path if candidate.image is None and candidate.path else candidate.image or b"", self.source, row
        )


def _size(image: bytes | str, source: PairSource, row: int) -> tuple[int, int]:
    """(height, width)."""
    try:
        return size_of(image)[::-1]
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise _undecodable(source, row, error) from error


def _undecodable(source: PairSource, row: int, error: Exception) -> UsageError:
    known = not isinstance(error, UnidentifiedImageError)
    text = " ".join(str(error).split())[:120] if known else "no image format that Pillow knows"
    return UsageError(f"pairs {source.name}, row {row}: an image cannot be decoded ({text}). Remove or mend this row.")
