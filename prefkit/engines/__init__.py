"""Engines: who does the work of generate and score. `local` is this process, `ray` a pool of workers on a Ray cluster.

The work is a list of units: batches of candidates, or chunks of candidates to score. A worker loads its model once, does
units, appends the rows to the tables of the run, and returns counts. Units depend on ids alone, so it does not matter
which worker does a unit, or whether a unit is done twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from prefkit.engines.local import Local

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Work:
    """The work of a stage: `worker(*arguments)` loads the model, and its method `do(units)` returns a result."""

    label: str  # of the progress bar
    worker: Callable[..., Any]
    arguments: tuple[Any, ...]
    device: str | None  # `device` in the recipe; None: the best available one


@dataclass(frozen=True)
class Lost:
    """The result of a unit that ended every worker that tried it. reason: the error of its rows."""

    reason: str


#: keep(units, result of their `do`, or Lost)
Keep = Callable[[Sequence[Any], Any], None]


class Engine(Protocol):
    #: True if other processes do the work, perhaps on other machines
    remote: bool
    #: number of workers of the last `spread`
    width: int

    def spread(self, work: Work, units: Sequence[Any], keep: Keep) -> None:
        """Do all units, which have a length, and call `keep` with every result. Raises PrefkitError."""

    def checking(self) -> AbstractContextManager[None]:
        """Context of checks for which the devices of the workers count, not those of this machine."""

    def close(self) -> None:
        """End what `spread` has started."""


_current: Engine = Local()


def use(engine: Engine | None) -> None:
    """Close the current engine, and make `engine` the engine of all stages; None: this process."""
    global _current
    _current.close()
    _current = engine or Local()


def current() -> Engine:
    return _current


def for_workers(check: Callable[P, R]) -> Callable[P, R]:
    """Decorate a check of settings that the workers will use."""

    @functools.wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        with _current.checking():
            return check(*args, **kwargs)

    return checked
