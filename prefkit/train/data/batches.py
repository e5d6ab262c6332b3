"""Batches of pairs: fills the caches of latents and conditions, orders the pairs, and builds batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from prefkit.train.data.cache import Cache, in_share
from prefkit.train.data.draws import draw_key
from prefkit.train.data.masks import Masks
from prefkit.train.data.pairs import PairImage, PairRow, PairSource, request_of
from prefkit.types import Candidate, Draw, Groups, Request, digest

ENCODE_ROWS = 32
PART_ROWS = 256


@dataclass
class Batch:
    """A batch of samples with one condition signature: all groups' first images, then all second images, and so on.

    draw has one entry per sample; the members of a group share one time and one noise. weight: factors of the squared
    errors, shaped like latents; None = 1 everywhere. keys, reference (only with cache_reference): the samples' keys in
    the reference cache, and the reference's errors by head if all of them are cached.
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
        """Return the batch on `device`; copies from pinned memory run in parallel with the computation."""
        return self._mapped(lambda tree: to_device(tree, device))

    def pinned(self) -> Batch:
        """Return the batch in page-locked memory, from which a CUDA device copies asynchronously."""
        return self._mapped(lambda tree: map_tensors(_pinned, tree))

    def _mapped(self, change: Callable[[Tree], Tree]) -> Batch:
        fields = {name: change(getattr(self, name)) for name in ("latents", "condition", "weight", "reference")}
        draw, groups = Draw(*change((self.draw.time, self.draw.noise))), Groups(**change(vars(self.groups)))
        return replace(self, draw=draw, groups=groups, **fields)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and tensor.layout == torch.strided else tensor


@dataclass(eq=False)
class PairData:
    """Pairs, or groups made from pairs, with their caches.

    conditions: a Cache or a PromptEmbeddingCache. requests: requests by id. weights: the cache of loss weights, if
    there are masks. seed: train.seed, on which the random draws of training depend.
    """

    pairs: Sequence[Any]
    latents: Cache
    conditions: Any
    requests: dict[str, Request]
    weights: Cache | None = None
    masks: Masks | None = None
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    condition_keys: dict[tuple[str, tuple[int, int]], str] = field(default_factory=dict, repr=False)

    def of(self, groups: Sequence[Any]) -> PairData:
        """Return a copy with these groups and the same caches."""
        return replace(self, pairs=groups)

    def request(self, group: Any) -> Request:
        return request_of(group, self.requests)

    def size(self, group: Any) -> tuple[int, int]:
        """Return (height, width) in pixels of the group's images. Raises KeyError if the first image is not cached."""
        key = self.cached(group.images[0])
        height, width = self.latents.notes[key or group.images[0].key]
        return height, width

    def cached(self, image: PairImage) -> str | None:
        """Return the key, unflipped or flipped, under which the image's latents are cached, else None."""
        return next((key for key in self.augmentation.keys(image) if key in self.latents), None)

    def condition_key(self, group: Any) -> str:
        request, size = self.request(group), self.size(group)
        known = request.request_id, size
        if known not in self.condition_keys:  # kept, because hashing a long `extra` (such as keypoints) is slow
            self.condition_keys[known] = digest(request.prompt, request.extra, size)
        return self.condition_keys[known]

    def weight_key(self, group: Any, image: PairImage) -> str:
        """Return the key of an image's loss weights; an image may have a different mask in each request."""
        return digest(image.key, image.candidate, None if self.masks is None else self.masks.lookup(group, image))

    def example(self) -> str:
        """Return the key of any cached image."""
        return next(key for pair in self.pairs for image in pair.images if (key := self.cached(image)))

    def complete(self) -> bool:
        """True if all latents, loss weights and conditions are cached."""
        return self.encoded() and all(self.condition_key(pair) in self.conditions for pair in self.pairs)

    def encoded(self) -> bool:
        """True if all latents and loss weights are cached."""
        images = [(group, image) for group in self.pairs for image in group.images]
        if self.weights is not None and any(self.weight_key(*each) not in self.weights for each in images):
            return False
        return all(image.key in self.latents for _, image in images)

    # -- batches --------------------------------------------------------------------------------------------------
    def batches(
        self, family: Any, visits: Sequence[tuple[Any, int]], time: torch.Tensor | None = None
    ) -> Iterator[Batch]:
        """Yield batches built from (group, visit) pairs, each of one condition signature, latent shape and group size.

        time: [1], used instead of the drawn times.
        """
        buckets: dict[Any, list[Any]] = {}
        for original, visit in visits:
            group = self.augmentation.at(original, visit)
            latents = [self.latents.get(image.key)["latents"] for image in group.images]
            condition = self.conditions.get(self.condition_key(group))
            draw = family.draw(draw_key(self.seed, group.id, visit), visit, latents[0])
            if time is not None:
                draw = Draw(time, draw.noise)
            weights = []
            if self.weights is not None:
                weights = [self.weights.get(self.weight_key(group, image))["weight"] for image in group.images]
            signature = (family.signature(condition), latents[0].shape, len(latents))
            buckets.setdefault(signature, []).append((group, latents, condition, draw, weights))
        for members in buckets.values():
            yield self._batch(family, members)

    def _batch(self, family: Any, members: list[Any]) -> Batch:
        groups, latents, conditions, draws, weights = zip(*members, strict=True)
        count, size = len(groups), len(latents[0])
        index, rank = torch.arange(count).repeat(size), torch.arange(size).repeat_interleave(count)
        gaps = torch.tensor([math.nan if g.score_gap is None else g.score_gap for g in groups]).repeat(size)
        soft = torch.tensor([g.p for g in groups]).repeat(size)
        labels = torch.tensor([g.labels[i] for i in range(size) for g in groups])
        advantage = None
        if groups[0].advantages is not None:
            advantage = torch.tensor([g.advantages[i] for i in range(size) for g in groups])
        time, noise = torch.cat([d.time for d in draws] * size), torch.cat([d.noise for d in draws] * size)
        return Batch(
            latents=_stacked(latents),
            draw=Draw(time, noise),
            condition=family.collate(list(conditions) * size),
            groups=Groups(index, rank, labels, torch.ones(count * size), gaps, soft, advantage),
            members=list(groups),
            weight=_stacked(weights) if weights[0] else None,
        )


def _stacked(tensors: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Stack [groups][images] tensors to [images * groups, ...]: the groups' first images, then their second ones."""
    return torch.stack([each for column in zip(*tensors, strict=True) for each in column])


def order(count: int, seed: int, position: int) -> tuple[int, int]:
    """Return (group index, epoch) at a position in the endless stream of groups, a permutation per epoch."""
    epoch = position // count
    return int(_permutation(count, seed, epoch)[position % count]), epoch


@functools.lru_cache(4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def ahead(make: Callable[[int], Any], numbers: Sequence[int]) -> Iterator[Any]:
    """Yield make(number) for each number; a thread computes the next result while the current one is in use."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for number in numbers:
            following = pool.submit(make, number)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


# -- caches -------------------------------------------------------------------------------------------------------
def first_size(source: PairSource, store: Store, pairs: Sequence[PairRow]) -> tuple[int, int]:
    """Return (height, width) of the first pair's image, read from the pairs or the run.

    (512, 512) if neither has the image; (0, 0) if the candidate is a payload without an image.
    """
    for row, image, _ in source.images():
        if image is not None:
            return _size(image, source, row)
        break
    reader = CandidateReader(store)
    candidate = pairs[0].win.candidate or ""
    if candidate not in reader:
        return 512, 512
    image = reader.image(candidate)
    return (0, 0) if image is None else _size(image, source, 0)


def fill_latents(
    data: PairData,
    wanted: Collection[PairImage],
    family: Any,
    source: PairSource,
    store: Store,
    generators: Sequence[str],
    share: tuple[int, int],
) -> None:
    """Cache the latents of those `wanted` images that are not cached yet.

    Latents stored with candidates of `generators` are used; all other images are encoded. Pixels come from `source` or,
    if the row has none, from the image's candidate by any generator. share: (rank, processes). Raises UsageError with
    the row of an image that is missing or cannot be encoded.
    """
    versions: dict[str, list[PairImage]] = {}  # unflipped key -> its versions (flipped or not) to cache
    for image in {image.key: image for image in wanted}.values():
        if image.key not in data.latents and in_share(image.key, share):
            versions.setdefault(image.unflipped or image.key, []).append(image)
    missing: dict[str, tuple[int, PairImage]] = {}
    for pair in data.pairs:
        for image in pair.images:
            if image.key in versions:
                missing.setdefault(image.key, (pair.row, image))
    waiting: list[tuple[int, PairImage, Candidate]] = []
    for key, candidate in _sources(missing, source, store, generators):
        row, _ = missing.pop(key)
        waiting += [(row, image, candidate) for image in versions[key]]
        if len(waiting) >= PART_ROWS:
            _encode(data.latents, waiting, family, source)
            waiting = []
    _encode(data.latents, waiting, family, source)
    if missing:
        row, image = next(iter(missing.values()))
        raise UsageError(
            f"pairs {source.name}, row {row}: neither the row nor the run's candidates hold the image "
            f"or mesh {image.candidate or image.key}. Remove the row, or add the image to it."
        )


def _sources(
    missing: Mapping[str, tuple[int, PairImage]], source: PairSource, store: Store, generators: Sequence[str]
) -> Iterator[tuple[str, Candidate]]:
    """Yield (key, candidate with its image). After each, the caller must remove the key from `missing`."""
    if generators:
        yield from _candidates(missing, store, generators)
    if missing:
        keys = {(row, image.column): key for key, (row, image) in missing.items()}
        for number, *images in source.images():
            for column, encoded in enumerate(images):
                if encoded is not None and (key := keys.get((number, column))) is not None:
                    yield key, Candidate(missing[key][1].candidate or key, "", 0, 0, image=encoded)
    for key, candidate in _candidates(missing, store, ()):
        yield key, replace(candidate, payload=None)


def _candidates(
    missing: Mapping[str, tuple[int, PairImage]], store: Store, generators: Sequence[str]
) -> Iterator[tuple[str, Candidate]]:
    """Yield (key, candidate) of the missing images whose candidate is from these generators (empty: from any)."""
    keys = {image.candidate: key for key, (_, image) in missing.items() if image.candidate}
    for candidate in store.iter_candidates(generators, set(keys)) if keys else ():
        if keys[candidate.id] in missing and candidate.error is None:
            yield keys[candidate.id], candidate


def _encode(cache: Cache, images: list[tuple[int, PairImage, Candidate]], family: Any, source: PairSource) -> None:
    """Encode (row, image, candidate) entries; cache their latents and sizes ([0, 0] without pixels)."""
    latents: dict[str, Tree] = {}
    notes: dict[str, list[int]] = {}
    for start in range(0, len(images), ENCODE_ROWS):
        block = images[start : start + ENCODE_ROWS]
        fitted = [(candidate, [0, 0]) for _, _, candidate in block]
        if not getattr(family, "from_payload", False):
            fitted = [_fitted(row, image, candidate, source) for row, image, candidate in block]
        encoded = family.latents([candidate for candidate, _ in fitted])
        for (row, image, _), (_, notes[image.key]), own in zip(block, fitted, encoded, strict=True):
            if not own.isfinite().all():
                raise UsageError(
                    f"pairs {source.name}, row {row}: the latents of image {image.key} are not finite. Remove the row. "
                    "If this happens for every image, the VAE of model.base is broken or overflows: use another base."
                )
            latents[image.key] = {"latents": own}
    cache.append(latents, notes)


def _fitted(row: int, image: PairImage, candidate: Candidate, source: PairSource) -> tuple[Candidate, list[int]]:
    """Return (candidate to encode, [height, width]); the payload is dropped if the image is resized or flipped."""
    if candidate.payload is not None:
        external = candidate.path if candidate.image is None else None
        size = _size(external or candidate.image or b"", source, row)
        if image.bucket in (None, size) and not image.flip:
            return candidate, list(size)
    try:
        picture = fit(candidate.pil(), image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _undecodable(source, row, error) from error
    return replace(candidate, payload=None, decoded=picture), [picture.height, picture.width]


def _size(image: bytes | str, source: PairSource, row: int) -> tuple[int, int]:
    """Return (height, width) of an encoded image or of an image file."""
    try:
        return size_of(image)[::-1]
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise _undecodable(source, row, error) from error


def _undecodable(source: PairSource, row: int, error: Exception) -> UsageError:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "not an image format that Pillow knows" if unknown else " ".join(str(error).split())[:120]
    return UsageError(f"pairs {source.name}, row {row}: an image cannot be decoded ({reason}). Remove or fix this row.")


def fill_conditions(data: PairData, family: Any, share: tuple[int, int]) -> None:
    """Cache the missing conditions, one per request and size. share: (rank, processes)."""
    missing = {key: group for group in data.pairs if (key := data.condition_key(group)) not in data.conditions}
    sizes: dict[tuple[int, int], list[str]] = {}
    for key, group in missing.items():
        if in_share(key, share):
            sizes.setdefault(data.size(group), []).append(key)
    for size, keys in sizes.items():
        for start in range(0, len(keys), ENCODE_ROWS):
            block = keys[start : start + ENCODE_ROWS]
            requests = [data.request(missing[key]) for key in block]
            conditions = family.conditions(requests, size)
            for request, condition in zip(requests, conditions, strict=True):
                if has_nan(condition):
                    raise UsageError(
                        f"encoding the prompt {request.prompt[:80]!r} (or its input image) gave NaN. Set "
                        "train.precision to `bf16` or `no`, or use another model.base."
                    )
            data.conditions.append(dict(zip(block, conditions, strict=True)))


def check_sizes(data: PairData, name: str) -> None:
    """Raise UsageError if the two images of a pair differ in size. Pairs without cached images are skipped."""
    cached = [(pair, [data.cached(image) for image in pair.images]) for pair in data.pairs]
    sizes = [(pair, [data.latents.notes[key] for key in keys if key]) for pair, keys in cached if all(keys)]
    unequal = [(pair, both) for pair, both in sizes if both[0] != both[1]]
    if unequal:
        pair, ((h0, w0), (h1, w1)) = unequal[0]
        raise UsageError(
            f"pairs {name}: in {len(unequal)} of {len(sizes)} pairs, the two images differ in size, first in row "
            f"{pair.row} ({w0} x {h0} against {w1} x {h1} px). Winner and loser share one noise, so they must have "
            "the same size: resize and crop both in the same way, set train.NAME.resolution, or remove the pairs."
        )
