"""Evaluation on held-out requests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Set:
    """A set of held-out requests."""

    #: null = the run's own requests of `split`; else a file as in requests.source
    source: str | None = None
    split: str = "test"
    prompt_column: str = "prompt"


@dataclass(frozen=True)
class Eval:
    #: trained models of this run, by name under `train`; left out = all of them
    models: list[str] = field(default_factory=list)
    #: score aliases; empty = all
    scorers: list[str] = field(default_factory=list)
    #: images per request and model
    seeds: int = field(default=4, metadata={"content": False})
    #: sets of requests by name; empty = the run's own held-out requests
    sets: dict[str, Set] = field(default_factory=dict)
    #: settings of generation are those of this generator (use: diffusers); null = the first such one of the recipe
    generator: str | None = None
    #: other guidance values and step counts at which the base is shown beside the tuned models
    base_guidance: list[float] = field(default_factory=list)
    base_steps: list[int] = field(default_factory=list)
    #: images per request with which best-of-N of the base is measured; 0 = the seeds themselves
    best_of: int = field(default=0, metadata={"content": False})
    #: score differences up to this are ties
    tie: float = 0.0
    #: requests per set; null = all
    max_requests: int | None = field(default=None, metadata={"content": False})
    bootstrap: int = 2000
    batch_size: int = field(default=8, metadata={"content": False})
    device: str | None = field(default=None, metadata={"content": False})
