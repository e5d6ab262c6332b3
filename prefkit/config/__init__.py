"""What a recipe can say: frozen dataclasses, one per stage.

A field's comment line (`#:` above it) is its help text. `content=False` marks fields that do not change
what a row means, so that changing them is never a mismatch with what is on disk. A `Choice` names a plug-in
by `use`; the plug-in's own options stand beside it in the recipe and end up in `options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefkit.config.content import content, free, plain
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
    "free",
    "plain",
]


@dataclass(frozen=True)
class Recipe:
    #: folder of the run
    run: str = ""
    model: Model = field(default_factory=Model)
    requests: Requests = field(default_factory=Requests)
    generate: dict[str, Generate] = field(default_factory=dict)
    score: dict[str, Score] = field(default_factory=dict)
    compare: dict[str, Compare] = field(default_factory=dict)
    pair: dict[str, Pair] = field(default_factory=dict)
    train: dict[str, Train] = field(default_factory=dict)
    eval: dict[str, Eval] = field(default_factory=dict)
    #: colour that transparent images are composited on, as CSS writes it (white, #f5f5dc)
    background: str = "white"
    #: said when `prefkit run` starts
    about: str = free("")
    #: dotted key -> value, laid over the recipe by `--fast`
    fast: dict[str, Any] = free(factory=dict)
