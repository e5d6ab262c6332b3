"""What a scorer has to be and to give back: checked for every scorer, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefkit.errors import PluginError
from prefkit.plugin_guard import described, guarded
from prefkit.score.numbers import read_number
from prefkit.types import Score, ScorerSpec

SCOPES = ("absolute", "within_request")


def check_attributes(scorer: Any, who: str) -> None:
    """Raises PluginError for a scope, a `requires` or a number of calls that nothing could go by."""
    scope, requires = getattr(scorer, "scope", None), getattr(scorer, "requires", None)
    if scope not in SCOPES:
        raise PluginError(f"{who}: scope is {scope!r}; it must be one of {', '.join(SCOPES)}.")
    if isinstance(requires, str) or not isinstance(requires, (set, frozenset, list, tuple)):
        raise PluginError(f"{who}: requires is {requires!r}; it must be a set of names, such as {{'image', 'prompt'}}.")
    for name in ("batch", "concurrency"):
        number = getattr(scorer, name, None)
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise PluginError(f"{who}: {name} is {number!r}; it must be a whole number above 0.")


def spec_of(scorer: Any) -> ScorerSpec:
    """Raises PluginError where a plug-in says something else than a ScorerSpec, or ends the program over it."""
    kind = type(scorer)
    with guarded(f"scorer {kind.__qualname__}", "could not say what it is, in spec()"):
        spec: Any = scorer.spec()
    if not isinstance(spec, ScorerSpec):
        raise PluginError(f"scorer {kind.__qualname__}: spec() returned {described(spec)}; a ScorerSpec is needed.")
    return spec


def scores_of(found: Any, count: int, who: Callable[[], str]) -> list[Score]:
    """What a class returned, as a list of `count` Scores. Raises PluginError, saying what came instead."""
    if isinstance(found, Sequence) and len(found) == count and all(isinstance(s, Score) for s in found):
        return list(found)
    had = described(found)
    if isinstance(found, Sequence):
        had = (
            f"{len(found)} Score{'s' * (len(found) != 1)}"
            if all(isinstance(s, Score) for s in found)
            else f"{had} of other things"
        )
    raise PluginError(f"{who()} returned {had} for {count} candidate{'s' * (count != 1)}; one Score each is needed.")


def checked(score: Score, who: str = "the scorer") -> Score:
    """A value that is not a finite number is a failure, never a guess: the text "7" too. A score with an error has no
    value, since it must not be paired on."""
    error, aspects, value = _text(score.error), _aspects(score.aspects), None
    if not error and score.value is None:
        error = f"{who} gave no value and no reason"
    elif not error:
        value, wrong = read_number(score.value)
        error = f"{who} returned {wrong}" if wrong else None
    if value is not None and aspects is None and score.aspects is not None:
        value, error = None, f"{who} returned aspects that are no numbers: {described(score.aspects)}"
    return Score(value, aspects, _text(score.text), error)


def _aspects(given: Any) -> dict[str, float] | None:
    """None where one of them is no number, or where they are no mapping."""
    if not isinstance(given, Mapping):
        return None
    values = {str(name): read_number(value)[0] for name, value in given.items()}
    return None if None in values.values() else values  # type: ignore[return-value]


def _text(given: Any) -> str | None:
    """As it can be stored: a table holds UTF-8, which has no lone surrogates."""
    return None if given is None else str(given).encode("utf-8", "replace").decode()
