"""The trainings that one call makes, and the groups that each of them will visit: caches are made for no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefkit.config import Choice, Train, plugin_options
from prefkit.train.data.augment import Augmentation
from prefkit.train.data.batches import order
from prefkit.train.data.groups import groups_of
from prefkit.train.data.pairs import PairRow
from prefkit.train.monitor import validation


@dataclass(frozen=True)
class Job:
    """One training. flip: each training pair's labels are swapped with probability 1/2, by its id and train.seed."""

    name: str
    config: Train
    flip: bool = False

    def groups(self, objective: Any, pairs: Sequence[PairRow]) -> list[Any]:
        """What its objective is shown of the training pairs."""
        return groups_of(objective, pairs, self.config.pairs, self.config.seed if self.flip else None)


def jobs_of(name: str, config: Train, controls: bool) -> list[Job]:
    """The training itself and, with controls, under the same budget: SFT on the winners, and randomly flipped pairs.

    Controls are not watched: what they do to the scores is theirs to show, and eval's to measure.
    """
    jobs = [Job(name, config)]
    if controls:
        jobs.append(Job(f"{name}-sft", replace(config, objective=Choice("sft"), watch=[])))
        jobs.append(Job(f"{name}-flipped", replace(config, watch=[]), flip=True))
    return jobs


def visited(jobs: Sequence[Job], pairs: Sequence[PairRow], processes: int) -> list[Any]:
    """Groups, in their views, that these trainings look at from their first step to their last, and the pairs kept aside.

    The stream of groups is a function of the position, so this is known beforehand; with more `steps` there are more.
    """
    found: list[Any] = []
    for job in jobs:
        config = job.config
        training, held = validation.split(pairs, config.validation)
        groups = job.groups(load_objective(job.name, config), training)
        length = config.steps * config.batch_size * config.accumulation * processes
        views = Augmentation(config.flip, config.seed)
        if not views.flip:  # the first permutation already holds every group
            length = min(length, len(groups))
        seen = sorted({order(len(groups), config.seed, position) for position in range(length)})
        found += unique(views.at(groups[index], visit) for index, visit in seen)
        found += held
    return found


def unique(groups: Iterable[Any]) -> list[Any]:
    """Without those that show the same images again."""
    return list({(group.id, *(image.key for image in group.images)): group for group in groups}.values())


def load_objective(name: str, config: Train) -> Any:
    return plugin_options.make("objective", config.objective.use, config.objective.options, f"train.{name}.objective")
