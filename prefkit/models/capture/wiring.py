"""The result of a capture: a pipeline's wiring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wiring:
    """The connections between a pipeline's scheduler, denoiser and VAE: argument names, and keys in capture/maps.py."""

    pipeline: str  # class name of the pipeline
    denoiser: str  # component name: "unet" | "transformer"
    sample: str  # argument of the denoiser's forward that takes x_t
    time: str  # argument of the denoiser's forward that takes the time
    state: str  # scheduler's sample -> x_t, a name in maps.STATE
    input: str  # x_t -> sample argument, a name in maps.INPUT or maps.EXTRA_INPUT
    output: str  # network output -> scheduler's model_output, a name in maps.OUTPUT
    clock: str  # schedule time -> time argument, a name in maps.CLOCK
    layout: str  # final latents -> grid of the VAE, a name in maps.LAYOUT
    affine: str  # grid -> input of vae.decode, a name in maps.AFFINE
    downscale: int  # pixels per cell of the VAE's latents
    prediction: str  # type of the network's prediction: "epsilon" | "v_prediction" | "flow"
    train_steps: int  # the scheduler's num_train_timesteps
    no_guidance: Mapping[str, Any]  # call arguments that disable classifier-free guidance: {"guidance_scale": 1.0}
    # path in the condition ("added_cond_kwargs.text_embeds") -> batch dimension, "list" (entry per sample) or "shared"
    batch: Mapping[str, int | str]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Wiring:
        return cls(**json.loads(text))
