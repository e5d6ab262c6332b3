"""Evaluation on held-out requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefkit.config.content import runtime


@dataclass(frozen=True)
class Set:
    """A set of held-out requests."""

    #: null = the run's own requests of `split`; else a file as in requests.source
    source: str | None = None
    split: str = "test"
    prompt_column: str = "prompt"


@dataclass(frozen=True)
class Eval:
    #: names under `train` of trained models of this run; unset = all
    models: list[str] = field(default_factory=list)
    #: score names; empty = all
    scorers: list[str] = field(default_factory=list)
    #: images per request and model
    seeds: int = runtime(4)
    #: sets of requests by name; empty = the run's own held-out requests
    sets: dict[str, Set] = field(default_factory=dict)
    #: entry of `generate` (use: diffusers) whose settings are used; null = the first
    generator: str | None = None
    #: further guidance values and step counts at which the base is compared with the tuned models
    base_guidance: list[float] = field(default_factory=list)
    base_steps: list[int] = field(default_factory=list)
    #: images per request for best-of-N of the base; 0 = the seeds
    best_of: int = runtime(0)
    #: largest score difference that is a tie
    tie: float = 0.0
    #: requests per set; null = all
    max_requests: int | None = runtime(None)
    bootstrap: int = 2000
    batch_size: int = runtime(8)
    device: str | None = runtime(None)
