"""`text_cache`, the setting for prompt conditions, each of which can take megabytes.

full  all conditions are encoded to disk before the first step, and no text encoder is in memory during training
off   each step encodes the conditions that it needs, and the text encoders stay on the device next to the denoiser

In both modes, the conditions for held-out pairs and the preflight are on disk, because every measurement needs them.
Conditions are encoded one by one, so training is bit-identical in both modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefkit.config import Train
from prefkit.models import trees
from prefkit.models.trees import Tree
from prefkit.train.data.batches import PairData, ahead, fill_conditions
from prefkit.train.data.cache import Cache
from prefkit.train.monitor import validation

CACHES = ("full", "off")


class PromptEmbeddingCache:
    """Keeps the current step's conditions in memory and reads all others from `disk`; has the interface of Cache.

    load: function that returns a family with its text encoders on the device.
    """

    def __init__(self, disk: Cache, load: Callable[[], Any]) -> None:
        self.disk, self.load = disk, load
        self.held: dict[str, bytes] = {}
        self.family: Any = None

    def __contains__(self, key: str) -> bool:
        return key in self.held or key in self.disk

    def get(self, key: str) -> Tree:
        return trees.loads(self.held[key]) if key in self.held else self.disk.get(key)

    def append(self, items: dict[str, Tree]) -> None:
        self.held |= {key: trees.dumps(tree) for key, tree in items.items()}

    def hold(self, data: PairData, groups: Sequence[Any]) -> None:
        """Keep only these groups' conditions in memory, after encoding the missing ones."""
        keys = {data.condition_key(group) for group in groups}
        self.held = {key: blob for key, blob in self.held.items() if key in keys}
        if any(key not in self for key in keys):
            self.family = self.family or self.load()
            fill_conditions(data.of(groups), self.family, (0, 1))


def encoded_ahead(config: Train, data: PairData, visited: PairData) -> PairData:
    """Return the pairs whose conditions are encoded before the first step. visited: the pairs that training visits."""
    return visited if config.text_cache == "full" else data.of(validation.split(data.pairs, config.validation)[1])


def with_text_cache(plan: Any, data: PairData, device: Any) -> PairData:
    """Return `data`; with `text_cache: off`, a copy whose conditions are encoded by the step that needs them."""
    if plan.config.text_cache == "full":
        return data

    def load() -> Any:
        parts = {"text", "vae"} if plan.recipe.model.inputs else {"text"}
        return plan.load(device, tuple(data.latents.notes[data.example()]), parts, plan.wiring())

    uncached = data.of(data.pairs)
    uncached.conditions = PromptEmbeddingCache(data.conditions, load)
    return uncached


def prefetch(loop: Any, steps: Sequence[int]) -> Iterator[Any]:
    """Yield loop.micro_batches(step) for each step, prepared ahead in a thread unless text_cache is `off`."""
    conditions = loop.data.conditions
    if not isinstance(conditions, PromptEmbeddingCache):
        yield from ahead(loop.micro_batches, steps)
        return
    for step in steps:
        conditions.hold(loop.data, [group for visits in loop.batch_indices(step) for group, _ in visits])
        yield loop.micro_batches(step)
