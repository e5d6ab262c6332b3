"""What a capture has proven about a pipeline, as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wiring:
    """How a pipeline's scheduler, denoiser and VAE speak to each other. Every field was seen to reproduce numbers.

    pipeline        class name of the pipeline
    denoiser        component name: "unet" | "transformer"
    sample          argument of the denoiser's forward that takes x_t
    time            argument that takes the time
    state           scheduler's sample -> x_t, a name in maps.STATE
    input           x_t -> argument, a name in maps.INPUT or maps.EXTRA_INPUT
    output          network output -> scheduler's model_output, a name in maps.OUTPUT
    clock           schedule time -> argument, a name in maps.CLOCK
    layout, affine  final latents -> input of vae.decode, names in maps.LAYOUT and maps.AFFINE
    downscale       pixels per cell of the VAE's latents
    prediction      what the network predicts: "epsilon" | "v_prediction" | "flow"
    train_steps     the scheduler's num_train_timesteps
    no_guidance     call arguments that switch classifier-free guidance off, e.g. {"guidance_scale": 1.0}
    batch           leaf of the condition ("added_cond_kwargs.text_embeds") -> its batch dimension,
                    "list" (one entry per sample) or "shared"
    """

    pipeline: str
    denoiser: str
    sample: str
    time: str
    state: str
    input: str
    output: str
    clock: str
    layout: str
    affine: str
    downscale: int
    prediction: str
    train_steps: int
    no_guidance: Mapping[str, Any]
    batch: Mapping[str, int | str]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Wiring:
        return cls(**json.loads(text))
