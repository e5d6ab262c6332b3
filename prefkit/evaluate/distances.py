"""Distances of an evaluation's images: within a request, between base and tuned at equal seeds, and to real images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.config import Eval
from prefkit.distributed import device_of
from prefkit.evaluate.set_distances import CAVEAT, RESAMPLES, bias, compare_sets, unit
from prefkit.score.diversity import Embeddings, Thumbnails, mean_cosine_diversity, mean_diversity, rms, thumbnail
from prefkit.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from prefkit.score.embed.encoder import Encoder

DRAWN = 64  # px per side, to render a mesh without a stored image
Keyed = tuple[tuple[str, int], "Image"]


def encoder_of(cfg: Eval) -> Encoder | None:
    """Return the encoder set by eval.NAME.encoder, or None. Raises UsageError if its weights are unset or missing."""
    from prefkit.score.embed.encoder import Encoder

    return None if cfg.encoder is None else Encoder(cfg.encoder, cfg.encoder_pretrained, needs_text=False)


def distances(
    cfg: Eval,
    encoder: Encoder | None,
    generator: str,
    opened: Mapping[str, Store],
    requests: set[str],
    real: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """Return, for each model but the base, its diversity, the base's diversity and the distance between their images.

    opened: run folders by model. With an encoder, `encoder_diversity` holds the encoder's name and the diversities of
    both models' embeddings. real: embeddings [m, D] of real images. If given, `real_distance` holds the distances of
    both models to them.
    """
    folders = {model: (folder, generator, requests, cfg.seeds) for model, folder in opened.items()}
    seen = {model: {key: thumbnail(image) for key, image in images(*folder)} for model, folder in folders.items()}
    pixels = {model: mean_diversity(thumbnails) for model, thumbnails in seen.items()}
    vectors = {}
    if encoder is not None:
        encoder.load(device_of(cfg.device), "float32")
        vectors = {model: _embeddings(encoder, images(*folder), cfg.batch_size) for model, folder in folders.items()}
    embedded = {model: mean_cosine_diversity(_units(rows)) for model, rows in vectors.items()}
    result: dict[str, dict[str, Any]] = {}
    for model in [model for model in opened if model != "base"]:
        result[model] = {"diversity_base": pixels["base"], "diversity_tuned": pixels[model]}
        result[model] |= {"moved": moved(seen["base"], seen[model]), "seed_distance": pixels["base"]}
        if embedded:
            both = {"base": embedded["base"], "tuned": embedded[model]}
            result[model]["encoder_diversity"] = {"encoder": cfg.encoder} | both
        if real is not None:
            apart = real_distance(vectors["base"], vectors[model], real, cfg.bootstrap)
            result[model]["real_distance"] = {"encoder": cfg.encoder} | apart
    return result


def real_distance(base: Embeddings, tuned: Embeddings, real: np.ndarray, samples: int) -> dict[str, Any]:
    """Return {n, n_real, n_requests, width, frechet, cmmd, caveats} for the images that both models made.

    n: images of each model, paired by request and seed; n_real: real images; width: embedding dimension; frechet and
    cmmd: see `compare_sets`; caveats: sentences on what the values depend on, and on a large bias.
    """
    keys = sorted(base.keys() & tuned.keys())
    codes = np.unique([request for request, _ in keys], return_inverse=True)[1]
    rows = [np.array([own[key] for key in keys]).reshape(-1, real.shape[1]) for own in (base, tuned)]
    counts = {"n": len(keys), "n_real": len(real), "n_requests": len(np.unique(codes)), "width": real.shape[1]}
    large = bias(len(keys), len(real), real.shape[1])
    caveats = {"caveats": [CAVEAT, large] if large else [CAVEAT]}
    return counts | compare_sets(rows[0], rows[1], real, codes, min(max(samples, 2), RESAMPLES)) | caveats


def images(store: Store, generator: str, requests: set[str], seeds: int) -> Iterator[Keyed]:
    """Yield ((request id, index), image) for the readable images of these requests with index < seeds.

    A mesh without a stored image is rendered.
    """
    from prefkit.mesh.picture import picture_of_payload

    bare = set()
    columns = ["id", "request_id", "index", "seed"]
    for candidate in store.iter_candidates([generator], columns=[*columns, "image", "path"]):
        if candidate.request_id not in requests or candidate.index >= seeds:
            continue
        if candidate.image is None and candidate.path is None:
            bare.add(candidate.id)
            continue
        with suppress(OSError, ValueError):
            yield (candidate.request_id, candidate.index), candidate.pil()
    for candidate in store.iter_candidates([generator], bare, [*columns, "payload"]) if bare else ():
        if (drawn := picture_of_payload(candidate.payload, candidate.extra, DRAWN)) is not None:
            yield (candidate.request_id, candidate.index), drawn


def _embeddings(encoder: Encoder, keyed: Iterator[Keyed], size: int) -> Embeddings:
    rows: dict[tuple[str, int], np.ndarray] = {}
    batch: dict[tuple[str, int], Image] = {}

    def flush() -> None:
        if batch:
            rows.update(zip(batch, encoder.images(list(batch.values()), normalize=False).cpu().numpy()))
            batch.clear()

    for key, image in keyed:
        batch[key] = image
        if len(batch) == size:
            flush()
    flush()
    return rows


def _units(rows: Embeddings) -> Embeddings:
    return dict(zip(rows, unit(np.stack(list(rows.values()))))) if rows else {}


def moved(base: Thumbnails, tuned: Thumbnails) -> float | None:
    """Return the mean RMS distance between base and tuned thumbnails with equal request and seed; None without any."""
    shared = sorted(base.keys() & tuned.keys())
    return float(np.mean([rms(base[key] / 255.0, tuned[key] / 255.0) for key in shared])) if shared else None
