"""Settings of the evaluation on held-out requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefkit.config.content import runtime
from prefkit.config.curation import Model


@dataclass(frozen=True)
class Set:
    """A set of held-out requests."""

    #: file or dataset with requests, as in requests.source; null = the run's requests in the split `split`
    source: str | None = None
    split: str = "test"
    prompt_column: str = "prompt"


@dataclass(frozen=True)
class Eval:
    #: entries of `train` whose models are evaluated; null = all trained models in this run
    models: list[str] | None = None
    #: names of scores to evaluate; empty = all; [people] = none, only people's votes. Votes on the images (see
    #: `prefkit serve`) are always a judge
    scorers: list[str] = field(default_factory=list)
    #: entries of `compare` whose judges compare the images of all models, base included, each pair in both orders
    judges: list[str] = runtime(factory=list)
    #: candidates per request and model
    seeds: int = runtime(4)
    #: name -> set of requests; empty = the run's held-out requests
    sets: dict[str, Set] = field(default_factory=dict)
    #: entry of `generate` (use: diffusers or mesh) whose sampling settings are used; null = the first such entry
    generator: str | None = None
    #: seed of the images; null = the generator's seed
    seed: int | None = None
    #: base model to compare with, with the same keys as `model`; null = the recipe's `model`. In offline rounds, the
    #: base is the model before the first round
    base: Model | None = None
    #: further guidance values and step counts at which the base model is sampled, to compare tuned models with
    base_guidance: list[float] = field(default_factory=list)
    base_steps: list[int] = field(default_factory=list)
    #: N for best-of-N sampling with the base model; 0 = as many as `seeds`
    best_of: int = runtime(0)
    #: largest score difference that counts as a tie
    tie: float = 0.0
    #: requests per set; null = all
    max_requests: int | None = runtime(None)
    #: image encoder to measure the diversity of a request's images and the distances to `real`: torchvision:NAME,
    #: timm:NAME, an open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, or tiny (the embedded one)
    encoder: str | None = None
    #: weights of the encoder: a file (torchvision, timm, open_clip) or an open_clip tag
    encoder_pretrained: str | None = None
    #: folder with real images (also in subfolders), to which the Fréchet distance and CMMD of each model's images are
    #: measured. Comparable with published figures only for equal encoders, numbers of images and image preparation
    real: str | None = None
    #: column of the requests with explicit prompts, which describe the correct image; the base's images from them give
    #: the ceiling of the relative improvement. All images are scored against the request's own (implicit) prompt
    explicit: str | None = None
    #: column of the requests with superficial prompts, which describe the tempting wrong image; the floor
    superficial: str | None = None
    #: column by whose values (such as law) the scores of base, model and tiers are also reported
    by: str | None = None
    bootstrap: int = 2000
    batch_size: int = runtime(8)
    device: str | None = runtime(None)
