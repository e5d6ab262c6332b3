"""`text_cache`: where a training's conditions are. A large text encoder makes megabytes of each.

full     all of them on disk before the first step; while training there is no text encoder in memory
rolling  those of the next WINDOW steps in main memory; between windows the text encoders wait in main memory too, and come
         to the device between two steps, beside the denoiser but not beside its activations
off      those of the step in hand; the text encoders stay on the device, beside the denoiser and its activations
In all three, conditions of pairs kept aside and of the preflight are on disk, being asked for again and again. Every
condition is encoded by itself, whatever the window, so all three give the same training to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from prefkit.config import Train
from prefkit.models import trees
from prefkit.models.trees import Tree
from prefkit.train.data.batches import PairData, ahead, fill_conditions
from prefkit.train.data.cache import Cache
from prefkit.train.monitor import validation

CACHES = ("full", "rolling", "off")
WINDOW = 64


class PromptEmbeddingCache:
    """Conditions by key, as a Cache has them: a window of them in memory, others on `disk`.

    load: a family whose text encoders are on the device. stay: they stay there. window: steps.
    """

    def __init__(self, disk: Cache, load: Callable[[], Any], device: Any, window: int, stay: bool) -> None:
        self.disk, self.load, self.device, self.window, self.stay = disk, load, device, window, stay
        self.held: dict[str, bytes] = {}
        self.family: Any = None

    def __contains__(self, key: str) -> bool:
        return key in self.held or key in self.disk

    def get(self, key: str) -> Tree:
        return trees.loads(self.held[key]) if key in self.held else self.disk.get(key)

    def append(self, items: dict[str, Tree]) -> None:
        self.held |= {key: trees.dumps(tree) for key, tree in items.items()}

    def show(self, data: PairData, groups: Sequence[Any]) -> None:
        """Hold the conditions of these groups, and no others."""
        wanted = {data.condition_key(group) for group in groups}
        self.held = {key: blob for key, blob in self.held.items() if key in wanted}
        if all(key in self for key in wanted):
            return
        if self.family is None:
            self.family = self.load()
        self._move(self.device)
        fill_conditions(data.of(groups), self.family, (0, 1))
        if not self.stay:
            self._move("cpu")

    def _move(self, device: Any) -> None:
        """All that has weights: the denoiser and what else is not needed are there on paper and stay so."""
        for module in self.family.pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(device)


def on_disk(config: Train, data: PairData, wanted: PairData) -> PairData:
    """What has its conditions made before the first step. data: all pairs; wanted: what the trainings visit."""
    if config.text_cache == "full":
        return wanted
    return data.of(validation.split(data.pairs, config.validation)[1])


def shown(plan: Any, data: PairData, device: Any) -> PairData:
    """The same pairs, with the rest of their conditions coming as they are needed."""
    if plan.config.text_cache == "full":
        return data

    def load() -> Any:
        parts = {"text", "vae"} if plan.recipe.model.inputs else {"text"}
        return plan.load(device, tuple(data.latents.notes[data.example()]), parts, plan.wiring())

    stay = plan.config.text_cache == "off"
    found = data.of(data.pairs)
    found.conditions = PromptEmbeddingCache(data.conditions, load, device, 1 if stay else WINDOW, stay)
    return found


def prepared(loop: Any, steps: Sequence[int], window: int | None = None) -> Iterator[Any]:
    """loop.micro_batches of each step, made in a thread while those before are used; with the conditions they take.

    window: steps whose conditions are encoded at once, overruling the text cache's.
    """
    texts = loop.data.conditions
    if not isinstance(texts, PromptEmbeddingCache):
        yield from ahead(loop.micro_batches, steps)
        return
    size = window or texts.window
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        texts.show(loop.data, [group for step in part for own in loop.chosen(step) for group, _ in own])
        yield from ahead(loop.micro_batches, part)
