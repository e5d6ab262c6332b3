"""What a training samples for its own eyes: one image of a request, from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefkit.generate.generators import candidate_id, encoded, latents_payload
from prefkit.models.latents import NOT_FINITE
from prefkit.models.sample import Sampled
from prefkit.types import Candidate, Request


@dataclass(frozen=True)
class Asked:
    """One sample of a round: of which request, which of its group, from which seed."""

    request: Request
    index: int
    seed: int


def candidate_of(spec: Mapping[str, Any], asked: Asked, sampled: Sampled, latents: bool) -> Candidate:
    """latents: with the final latents as payload. A sample that is not finite is a failed candidate, without an image."""
    own = candidate_id(dict(spec), asked.request, asked.index, asked.seed)
    said: dict[str, Any] = {"prompt": asked.request.prompt, "extra": asked.request.extra}
    if not sampled.finite:
        return Candidate(own, asked.request.request_id, asked.index, asked.seed, **said, error=NOT_FINITE)
    image = encoded(sampled.image, "png")
    return Candidate(
        own,
        asked.request.request_id,
        asked.index,
        asked.seed,
        image=image,
        sha256=hashlib.sha256(image).hexdigest(),
        payload=latents_payload(sampled.latents) if latents else None,
        decoded=sampled.image,
        **said,
    )
