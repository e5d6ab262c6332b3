"""The settings of a recipe: frozen dataclasses, one per stage.

The comment lines (`#:`) above a field are its help text. A `runtime` field does not affect what a stored row means, so
its value may change between commands on the same run. Some entries name a plug-in by `use`; the plug-in's options are
keys next to `use` in a recipe, and are in `options` here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefkit.config.content import content, plain, runtime
from prefkit.config.curation import Compare, Generate, Model, Pair, Requests, Score
from prefkit.config.evaluation import Eval, Set
from prefkit.config.training import Choice, Lora, Online, Train

__all__ = [
    "Choice",
    "Compare",
    "Eval",
    "Generate",
    "Lora",
    "Model",
    "Online",
    "Pair",
    "Recipe",
    "Requests",
    "Score",
    "Set",
    "Train",
    "content",
    "plain",
    "runtime",
]


@dataclass(frozen=True)
class Recipe:
    #: folder of the run
    run: str = ""
    #: number of offline rounds of `prefkit run`; 1 = no rounds. Each round generates candidates with the previous
    #: round's model, scores and pairs them, trains this model further (with a frozen copy as the reference), and
    #: compares the result with `model`. Round K is the run folder RUN/rounds/K. Online training (DDPO, D3PO) has rounds
    #: of its own, set by train.NAME.online
    rounds: int = 1
    model: Model = field(default_factory=Model)
    requests: Requests = field(default_factory=Requests)
    generate: dict[str, Generate] = field(default_factory=dict)
    score: dict[str, Score] = field(default_factory=dict)
    compare: dict[str, Compare] = field(default_factory=dict)
    pair: dict[str, Pair] = field(default_factory=dict)
    train: dict[str, Train] = field(default_factory=dict)
    eval: dict[str, Eval] = field(default_factory=dict)
    #: colour behind transparent images, as in CSS (white, #f5f5dc)
    background: str = "white"
    #: text printed when `prefkit run` starts
    about: str = runtime("")
    #: dotted recipe key -> value that the flag `--fast` sets
    fast: dict[str, Any] = runtime(factory=dict)
