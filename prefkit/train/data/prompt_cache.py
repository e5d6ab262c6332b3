"""`text_cache`: where the prompt conditions of a training are held. A large text encoder makes megabytes of each.

full  all of them on disk before the first step; no text encoder is in memory while training
off   those of the current step in memory; the text encoders stay on the device beside the denoiser
In both modes the conditions of held-out pairs and of the preflight are on disk, since every measurement needs them. Each
condition is encoded by itself, so both modes give the same training to the last bit.
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
    """Conditions of the current step in memory, others on `disk`; same interface as Cache.

    load: loads a family with its text encoders on the device.
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
        """Hold the conditions of these groups, and no others."""
        wanted = {data.condition_key(group) for group in groups}
        self.held = {key: blob for key, blob in self.held.items() if key in wanted}
        if all(key in self for key in wanted):
            return
        if self.family is None:
            self.family = self.load()
        fill_conditions(data.of(groups), self.family, (0, 1))


def on_disk(config: Train, data: PairData, wanted: PairData) -> PairData:
    """The pairs whose conditions are encoded before the first step. data: all pairs; wanted: those that are visited."""
    if config.text_cache == "full":
        return wanted
    return data.of(validation.split(data.pairs, config.validation)[1])


def shown(plan: Any, data: PairData, device: Any) -> PairData:
    """The same pairs and, with text_cache: off, conditions that are encoded at every step."""
    if plan.config.text_cache == "full":
        return data

    def load() -> Any:
        parts = {"text", "vae"} if plan.recipe.model.inputs else {"text"}
        return plan.load(device, tuple(data.latents.notes[data.example()]), parts, plan.wiring())

    online = data.of(data.pairs)
    online.conditions = PromptEmbeddingCache(data.conditions, load)
    return online


def prepared(loop: Any, steps: Sequence[int]) -> Iterator[Any]:
    """loop.micro_batches of each step, made in a thread while the previous ones are used."""
    texts = loop.data.conditions
    if not isinstance(texts, PromptEmbeddingCache):
        yield from ahead(loop.micro_batches, steps)
        return
    for step in steps:
        texts.hold(loop.data, [group for own in loop.batch_indices(step) for group, _ in own])
        yield loop.micro_batches(step)
