"""What a training samples for its own eyes: one image of a request, from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefkit.generate.generators import candidate_id, encoded, latents_payload
from prefkit.models.sample import Sampled
from prefkit.types import Candidate, Request


@dataclass(frozen=True)
class Asked:
    """One sample of a round: of which request, which of its group, from which seed."""

    request: Request
    index: int
    seed: int


def candidate_of(spec: Mapping[str, Any], asked: Asked, sampled: Sampled, latents: bool) -> Candidate:
    """latents: with the final latents as payload."""
    image = encoded(sampled.image, "png")
    return Candidate(
        candidate_id(dict(spec), asked.request, asked.index, asked.seed),
        asked.request.request_id,
        asked.index,
        asked.seed,
        prompt=asked.request.prompt,
        image=image,
        sha256=hashlib.sha256(image).hexdigest(),
        payload=latents_payload(sampled.latents) if latents else None,
        extra=asked.request.extra,
        decoded=sampled.image,
    )
