"""The settings of a recipe: frozen dataclasses, one per stage.

The comment lines (`#:`) above a field are its help text. A `runtime` field does not affect what a stored
row means, so changing its value never conflicts with a table on disk. A `Choice` names a plug-in by `use`; the
plug-in's options are keys next to `use` in a recipe, and are in `options` here.
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
    #: offline rounds of `prefkit run`: each makes candidates with the model of the round before, scores and pairs them,
    #: continues the training (its reference is the model at the start of the round) and compares the result with
    #: `model`. Round K is the run folder RUN/rounds/K; 1 = no rounds. Rounds of sampling within a training (DDPO,
    #: D3PO) are set by train.NAME.online
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
    #: dotted key -> value that the flag `--fast` sets in the recipe
    fast: dict[str, Any] = runtime(factory=dict)
