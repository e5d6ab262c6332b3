"""Online DPO: a round's samples become pairs, as `prefkit pair` makes them, and any offline objective learns from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import safetensors.torch

from prefkit.config import Online, Pair, Recipe, Train
from prefkit.distributed import Processes
from prefkit.errors import UsageError
from prefkit.models.trees import to_device
from prefkit.output import warn
from prefkit.pair.run import run_pair
from prefkit.store import Store
from prefkit.train.data.batches import PairData
from prefkit.train.data.groups import groups_of
from prefkit.train.data.pairs import PairRow, PairSource, read_pairs
from prefkit.train.online.rounds import Round, folder_of
from prefkit.train.online.updates import Updates
from prefkit.train.policy import Policy
from prefkit.train.trainer import Trainer, over_heads
from prefkit.types import Request, digest

NAME = "main"


class PairLearner:
    """objective: any offline one. Its losses are the offline loop's own; its updates are the online ones."""

    records = False

    def __init__(
        self,
        config: Train,
        online: Online,
        objective: Any,
        policy: Policy,
        family: Any,
        updates: Updates,
        pair: Pair,
        recipe: Recipe,
        folder: Any,
    ) -> None:
        self.online, self.family, self.updates, self.pair, self.recipe, self.folder = (
            online,
            family,
            updates,
            pair,
            recipe,
            folder,
        )
        self.objective, self.conditions = objective, Memory()
        if objective.reference == "ema":
            policy.start_average(objective.decay)
        nothing = PairData([], Memory(), self.conditions, {})  # type: ignore[arg-type]
        self.loop = Trainer(config, family, objective, policy, nothing, None, updates.processes, folder)
        self.loop.optimizer, self.loop.scaler = updates.optimizer, updates.scaler

    def learn(self, round_: Round, after_update: Any) -> dict[str, float]:
        """`updates` x `epochs` steps of global batches over the round's pairs; returns the means of what is logged.

        Raises UsageError where an objective on lists finds no ranking in them.
        """
        store = Store(folder_of(self.folder, round_.number))

        def paired() -> bool:
            try:
                run_pair(store, replace(self.recipe, pair={NAME: self.pair}), NAME)
            except UsageError as error:
                warn(f"round {round_.number}: {error}")
                return False
            return True

        processes: Processes = self.updates.processes
        if not processes.group.lead(paired):
            return {"pairs": 0}
        pairs = self._pairs(store)
        self.loop.data = self._data(store, pairs)
        sums: dict[str, float] = {}
        steps = self.online.updates * self.online.epochs
        for step in range(steps):
            self.loop.step = self.updates.count
            shown = self.loop.accumulate(self.loop.micro_batches(step))
            for key, value in (shown | self.updates.step(summed=True)).items():
                sums[key] = sums.get(key, 0.0) + value
            if hasattr(self.objective, "observe"):
                self.objective.observe(over_heads(shown))
            after_update()
        return {key: value / steps for key, value in sums.items()} | {"pairs": len(pairs)}

    def _pairs(self, store: Store) -> list[PairRow]:
        """In an order, and with ids, that hang on what was asked for: not on who wrote first, nor on single pixels."""
        found = []
        for pair in read_pairs(PairSource.find(store, NAME)):
            images = tuple(replace(image, key=str(image.candidate)) for image in pair.images)
            id = digest(pair.prompt, sorted(image.key for image in images))
            found.append(replace(pair, id=id, images=images))
        return sorted(found, key=lambda pair: pair.id)

    def _data(self, store: Store, pairs: list[PairRow]) -> PairData:
        """The pairs, or the groups that the objective makes of them, with their latents in memory; conditions are
        computed once per request and kept."""
        wanted = {image.key for pair in pairs for image in pair.images}
        latents = Memory()
        for candidate in store.iter_candidates():
            if candidate.id in wanted and candidate.payload is not None:
                image = candidate.pil()
                tree = {"latents": safetensors.torch.load(candidate.payload)["latents"].float()}
                latents.keep(candidate.id, tree, [image.height, image.width])
        requests = {r.request_id: r for r in store.requests()}
        groups = groups_of(self.objective, pairs, "of the round")
        data = PairData(groups, latents, self.conditions, requests, seed=self.loop.config.seed)  # type: ignore[arg-type]
        missing: dict[str, tuple[Request, tuple[int, int]]] = {}
        for pair in pairs:
            if data.condition_key(pair) not in data.conditions:
                missing[data.condition_key(pair)] = data.request(pair), data.size(pair)
        for key, (request, size) in missing.items():
            self.conditions.keep(key, to_device(self.family.conditions([request], size)[0], "cpu"))
        return data


class Memory:
    """What train.cache.Cache is on disk, in main memory: tensors of what is kept are on the CPU."""

    def __init__(self) -> None:
        self.trees: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.trees

    def keep(self, key: str, tree: Any, note: Any = None) -> None:
        self.trees[key] = tree
        if note is not None:
            self.notes[key] = note

    def get(self, key: str) -> Any:
        return self.trees[key]
