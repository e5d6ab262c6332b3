"""Online preference learning: a round's samples become pairs or scored groups, from which offline objectives learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch

from prefkit.config import Online, Pair, Recipe, plugin_options
from prefkit.errors import UsageError
from prefkit.models.trees import Tree, to_device
from prefkit.output import warn
from prefkit.pair.choose import choose_by, lacking, top_pairs
from prefkit.pair.run import by_aspects, run_pair, settled
from prefkit.store import Store
from prefkit.train.data.batches import PairData, fill_conditions
from prefkit.train.data.groups import groups_of
from prefkit.train.data.pairs import PairRow, PairSource, read_pairs
from prefkit.train.online.rounds import Round, round_folder
from prefkit.train.online.scored_groups import scored_groups
from prefkit.train.trainer import Trainer, over_heads
from prefkit.types import digest

NAME = "main"
REWARD = "reward"


def pair_settings(recipe: Recipe, online: Online, where: str) -> Pair:
    """Return the `pair` entry that online.pair names, with the rewards' weights by default. Raises UsageError."""
    if online.pair is not None and online.pair not in recipe.pair:
        raise UsageError(
            f"{where}.pair: {online.pair!r} is not in the recipe; `pair:` has {', '.join(recipe.pair) or 'none'}."
        )
    pair = recipe.pair[online.pair] if online.pair is not None else Pair(options={"k": 1})
    weights = {name: weight for name, weight in (pair.weights or online.rewards).items() if weight}
    return replace(pair, weights=weights, generators=[])


@dataclass
class PairChooser:
    """Chooses pairs of a round's samples by their scores, with the same code as `prefkit pair`.

    settings: the recipe entry in `pair`; None pairs a group's best sample by reward with its worst. samples: number of
    samples per group. directions: by score name, -1 if lower is better, else 1. Images are not read, so the keys
    `duplicates` and `degenerate` have no effect.
    """

    strategy: Any
    settings: Pair | None
    directions: Mapping[str, float]
    samples: int

    @classmethod
    def of(cls, recipe: Recipe, online: Online, signs: Mapping[str, float], where: str) -> PairChooser:
        """Return the recipe's chooser. Raises UsageError for unusable settings, PluginError for a broken strategy."""
        pair = pair_settings(recipe, online, where)
        name = online.pair or "best against worst"
        strategy = plugin_options.make("strategy", pair.use, pair.options, f"pair.{name}")
        pair = settled(pair, strategy, name)
        if hasattr(strategy, "compared"):
            raise UsageError(
                f"{where}.pair: {pair.use} needs comparisons by people or judges, but a round's samples are new. Use a "
                "strategy that uses scores, such as topk_bottomk."
            )
        if by_aspects(strategy):
            raise UsageError(
                f"{where}.pair: {pair.use} needs the aspects of stored scores, which a round's samples lack. Use a "
                "strategy that uses scores, such as topk_bottomk."
            )
        needs = getattr(strategy, "needs", 2)
        if not 2 <= needs <= online.samples:
            raise UsageError(
                f"{where}.pair: {pair.use} needs {needs} samples per request, but online.samples is {online.samples}. "
                "Change online.samples or the strategy."
            )
        unknown = [name for name in pair.ties if name not in pair.weights]
        if unknown:
            raise UsageError(
                f"pair.{name}.ties contains {', '.join(unknown)}, but only {', '.join(pair.weights)} make the pairs. "
                f"Remove {', '.join(unknown)} from `ties`."
            )
        # a trial with a separate strategy, on random scores of two requests, finds errors before anything is sampled
        trial = plugin_options.make("strategy", pair.use, pair.options, f"pair.{name}")
        rng, count = np.random.default_rng(0), 2 * online.samples
        scores = {name: rng.random(count) for name in pair.weights}
        choose_by(pair, trial, scores, signs, pair.weights, np.repeat([0, 1], online.samples))
        return cls(strategy, None if online.pair is None else pair, signs, online.samples)

    def choose(self, round_: Round) -> list[tuple[int, int, float]]:
        """Return (winner's index, loser's index, score gap) of each chosen pair, in the same order in every process."""
        columns, signs, pair = round_.scores, self.directions, self.settings
        if pair is None:
            columns, signs = {REWARD: round_.rewards}, {REWARD: 1.0}
            pair = Pair(options={"k": 1}, weights={REWARD: 1.0}, normalise="none", tie=0.0)
        groups = np.arange(len(round_.samples)) // self.samples
        scores = np.stack([columns[name] for name in pair.weights], axis=1)
        rows = np.flatnonzero(~lacking(scores, groups, pair.missing))
        seeds = np.array([sample.seed for sample in round_.samples], np.uint64)  # a hash of run, request and sample
        rows = rows[np.lexsort((seeds[rows], groups[rows]))]  # so that ties do not depend on the order of the samples
        known = {name: columns[name][rows] for name in pair.weights}
        pairs = choose_by(pair, self.strategy, known, signs, pair.weights, groups[rows]).pairs
        if pair.top_pairs is not None and len(pairs) > pair.top_pairs:
            pairs = top_pairs(pairs, pair.top_pairs, seeds[rows[pairs.win]])
        return list(zip(rows[pairs.win].tolist(), rows[pairs.lose].tolist(), pairs.score_gap.tolist(), strict=True))


class PairLearner:
    """Learns from each round's pairs or groups with any offline objective; `trainer` computes the losses."""

    records = False

    def __init__(self, trainer: Trainer, online: Online, pair: Pair, recipe: Recipe) -> None:
        self.trainer, self.online, self.pair, self.recipe = trainer, online, pair, recipe
        self.objective, self.optimizer, self.conditions = trainer.objective, trainer.optimizer, MemoryCache()

    def learn(self, round_: Round, update: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Make `updates` x `epochs` optimizer steps on global batches of the round's groups; return the mean metrics.

        update: function that makes the optimizer step, called after each gradient computation. Raises UsageError if a
        list objective cannot rank the pairs' images.
        """
        trainer = self.trainer
        store = Store(round_folder(trainer.folder, round_.number))
        groups, counts = self._groups(round_, store)
        if not groups:
            return counts
        trainer.data = self._data(store, groups)
        sums: dict[str, float] = {}
        steps = self.online.updates * self.online.epochs
        for step in range(steps):
            metrics = trainer.accumulate(trainer.micro_batches(step))
            for key, value in (metrics | update()).items():
                sums[key] = sums.get(key, 0.0) + value
            if hasattr(self.objective, "observe"):
                self.objective.observe(over_heads(metrics))
        return {key: value / steps for key, value in sums.items()} | counts

    def _groups(self, round_: Round, store: Store) -> tuple[list[Any], dict[str, float]]:
        """Return the groups that the objective learns from, the same in every process, and their number as a metric."""
        if getattr(self.objective, "needs_advantage", False):
            groups = scored_groups(self.objective, round_, store, self.online.samples, self.online.advantage_clip)
            return groups, {"groups": len(groups)}

        def make_pairs() -> bool:
            try:
                run_pair(store, replace(self.recipe, pair={NAME: self.pair}), NAME)
            except UsageError as error:
                warn(f"round {round_.number}: {error}")
                return False
            return True

        if not self.trainer.processes.group.lead(make_pairs):
            return [], {"pairs": 0}
        pairs = self._pairs(store)
        return groups_of(self.objective, pairs, "of the round"), {"pairs": len(pairs)}

    def _pairs(self, store: Store) -> list[PairRow]:
        """Return the round's pairs; their ids and order depend only on prompts and candidate ids."""
        pairs = []
        for pair in read_pairs(PairSource.find(store, NAME)):
            images = tuple(replace(image, key=str(image.candidate)) for image in pair.images)
            id = digest(pair.prompt, sorted(image.key for image in images))
            pairs.append(replace(pair, id=id, images=images))
        return sorted(pairs, key=lambda pair: pair.id)

    def _data(self, store: Store, groups: list[Any]) -> PairData:
        """Return the groups with latents and conditions in memory."""
        wanted = {image.key for group in groups for image in group.images}
        latents = MemoryCache()
        for candidate in store.iter_candidates():
            if candidate.id in wanted and candidate.payload is not None:
                image = candidate.pil()
                tree = {"latents": safetensors.torch.load(candidate.payload)["latents"].float()}
                latents.append({candidate.id: tree}, {candidate.id: [image.height, image.width]})
        requests = {request.request_id: request for request in store.requests()}
        seed = self.trainer.config.seed
        data = PairData(groups, latents, self.conditions, requests, seed=seed)  # type: ignore[arg-type]
        fill_conditions(data, self.trainer.family, (0, 1))
        return data


def empty_data() -> PairData:
    """Return empty data, which a trainer has before its first round."""
    return PairData([], MemoryCache(), MemoryCache(), {})  # type: ignore[arg-type]


class MemoryCache:
    """Cache in CPU memory, with the interface of data.cache.Cache."""

    def __init__(self) -> None:
        self.trees: dict[str, Tree] = {}
        self.notes: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.trees

    def append(self, items: Mapping[str, Tree], notes: Mapping[str, Any] | None = None) -> None:
        self.trees |= {key: to_device(tree, "cpu") for key, tree in items.items()}
        self.notes |= notes or {}

    def get(self, key: str) -> Tree:
        return self.trees[key]
