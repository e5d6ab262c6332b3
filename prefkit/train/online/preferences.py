"""Online DPO: a round's samples become pairs, as `prefkit pair` makes them, and any objective on pairs learns from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import safetensors.torch

from prefkit.config import Online, Pair, Recipe, Train
from prefkit.errors import UsageError
from prefkit.output import warn
from prefkit.pair.run import run_pair
from prefkit.store import Store
from prefkit.train.data import PairData
from prefkit.train.offline import Loop
from prefkit.train.online.rounds import Round, folder_of
from prefkit.train.online.updates import Updates
from prefkit.train.pairs import PairRow, PairSource, read_pairs
from prefkit.train.processes import Processes
from prefkit.train.reference import Policy
from prefkit.types import Request

NAME = "main"


class PairLearner:
    """objective: of shape "pair" or "single". Its losses are the offline loop's own; its updates are the online ones."""

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
        self.conditions = Memory()
        nothing = PairData([], Memory(), self.conditions, {})  # type: ignore[arg-type]
        self.loop = Loop(config, family, objective, policy, nothing, None, updates.processes, folder)
        self.loop.optimizer, self.loop.scaler = updates.optimizer, updates.scaler

    def learn(self, round_: Round, after_update: Any) -> dict[str, float]:
        """`updates` x `epochs` steps of global batches over the round's pairs; returns the means of what is logged."""
        store = Store(folder_of(self.folder, round_.number))
        processes: Processes = self.updates.processes
        if processes.main:
            try:
                run_pair(store, replace(self.recipe, pair={NAME: self.pair}), NAME)
            except UsageError as error:
                warn(f"round {round_.number}: {error}")
        processes.wait()
        if not (store.pairs(NAME) / "spec.json").exists():
            return {"pairs": 0}
        self.loop.data = self._data(store, round_)
        sums: dict[str, float] = {}
        steps = self.online.updates * self.online.epochs
        last: dict[str, float] = {}
        for step in range(steps):
            self.loop.step = self.updates.count
            batches = self.loop.micro_batches(step)
            for key, value in self.loop.accumulate(batches).items():
                sums[key] = sums.get(key, 0.0) + value
            last = self.updates.step(summed=True)
            after_update()
        return {key: value / steps for key, value in sums.items()} | last | {"pairs": len(self.loop.data.pairs)}

    def _data(self, store: Store, round_: Round) -> PairData:
        """The round's pairs with their latents in memory; conditions are computed once per request and kept."""
        source = PairSource.find(store, NAME)
        named = [replace(pair, id=_name(round_, pair)) for pair in read_pairs(source)]
        pairs = sorted(named, key=lambda pair: pair.id)  # processes write their parts in any order
        wanted = {side.candidate: side.key for pair in pairs for side in (pair.win, pair.lose)}
        latents = Memory()
        for candidate in store.iter_candidates():
            if candidate.id in wanted and candidate.payload is not None:
                image = candidate.pil()
                tree = {"latents": safetensors.torch.load(candidate.payload)["latents"].float()}
                latents.keep(wanted[candidate.id], tree, [image.height, image.width])
        requests = {r.request_id: r for r in store.requests()}
        data = PairData(pairs, latents, self.conditions, requests)  # type: ignore[arg-type]
        missing: dict[str, tuple[Request, tuple[int, int]]] = {}
        for pair in pairs:
            if data.condition_key(pair) not in data.conditions:
                missing[data.condition_key(pair)] = data.request(pair), data.size(pair)
        for key, (request, size) in missing.items():
            self.conditions.keep(key, self.family.conditions([request], size)[0])
        return data


def _name(round_: Round, pair: PairRow) -> str:
    """By what was asked for, not by what came out: draws do not hang on single pixels."""
    return f"{round_.number} {' '.join(sorted(str(side.candidate) for side in (pair.win, pair.lose)))}"


class Memory:
    """What train.cache.Cache is on disk, in memory."""

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
