"""Settings of the evaluation on held-out requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefkit.config.content import runtime
from prefkit.config.curation import Model


@dataclass(frozen=True)
class Set:
    """A set of held-out requests."""

    #: file of requests, as in requests.source; null = the run's own requests with the split `split`
    source: str | None = None
    split: str = "test"
    prompt_column: str = "prompt"


@dataclass(frozen=True)
class Eval:
    #: entries of `train` whose models are evaluated; unset = all trained models of this run
    models: list[str] = field(default_factory=list)
    #: score names; empty = all
    scorers: list[str] = field(default_factory=list)
    #: candidates per request and model
    seeds: int = runtime(4)
    #: name -> set of requests; empty = the run's own held-out requests
    sets: dict[str, Set] = field(default_factory=dict)
    #: entry of `generate` (use: diffusers or mesh) whose sampling settings are used; null = the first such entry
    generator: str | None = None
    #: seed of the images; null = that of the generator
    seed: int | None = None
    #: model to compare with, by the keys of `model`; null = `model` itself, from which the training started. In the
    #: recipes of offline rounds, it is the model from which the first round started
    base: Model | None = None
    #: further guidance values, and step counts, with which the base model is sampled and compared with the tuned models
    base_guidance: list[float] = field(default_factory=list)
    base_steps: list[int] = field(default_factory=list)
    #: N of best-of-N sampling with the base model: candidates per request; 0 = as many as `seeds`
    best_of: int = runtime(0)
    #: largest score difference that counts as a tie
    tie: float = 0.0
    #: requests per set; null = all
    max_requests: int | None = runtime(None)
    #: image encoder of further measures, the diversity of a request's images in embeddings and the distances to `real`:
    #: torchvision:NAME, timm:NAME, open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, tiny (embedded)
    encoder: str | None = None
    #: weights of that encoder: a file (torchvision, timm, open_clip) or an open_clip tag
    encoder_pretrained: str | None = None
    #: folder of real images (with subfolders), to measure the Fréchet distance and CMMD of each model's images to them;
    #: equals published figures only for the same encoder, numbers of images, and preparation of all images
    real: str | None = None
    bootstrap: int = 2000
    batch_size: int = runtime(8)
    device: str | None = runtime(None)
