"""Checks of the scorer contract, the same for functions, classes, other processes and servers: attributes, specs, scores."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefkit.errors import PluginError
from prefkit.plugin_guard import described, guarded
from prefkit.types import Score, ScorerSpec

SCOPES = ("absolute", "within_request")
TEXTS = (str, bytes, bytearray, memoryview)


def check_attributes(scorer: Any, who: str) -> None:
    """Raises PluginError for an invalid scope, `requires`, `batch` or `concurrency`."""
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
    """The spec of a scorer. Raises PluginError if spec() returns anything else or tries to end the program."""
    who = f"scorer {type(scorer).__qualname__}"
    with guarded(who, "failed in spec()"):
        spec: Any = scorer.spec()
    if not isinstance(spec, ScorerSpec):
        raise PluginError(f"{who}: spec() returned {described(spec)}; it must return a ScorerSpec.")
    return spec


def scores_of(returned: Any, count: int, who: Callable[[], str]) -> list[Score]:
    """The return value of a scorer class as a list. Raises PluginError unless it is a sequence of `count` Scores."""
    description = described(returned)
    if isinstance(returned, Sequence):
        if not all(isinstance(score, Score) for score in returned):
            description += " of other things"
        elif len(returned) == count:
            return list(returned)
        else:
            description = f"{len(returned)} Score{'s' * (len(returned) != 1)}"
    candidates = f"{count} candidate{'s' * (count != 1)}"
    raise PluginError(f"{who()} returned {description} for {candidates}; it must return one Score for each.")


def checked(score: Score, who: str = "the scorer") -> Score:
    """A copy with a finite value or an error. A value of another type (such as the text "7") is an error, and a score
    with an error has no value."""
    error, aspects, value = _text(score.error), _aspects(score.aspects), None
    if not error and score.value is None:
        error = f"{who} gave no value and no reason"
    elif not error:
        value, problem = read_number(score.value)
        error = f"{who} returned {problem}" if problem else None
    if value is not None and aspects is None and score.aspects is not None:
        value, error = None, f"{who} returned aspects that are not numbers: {described(score.aspects)}"
    return Score(value, aspects, _text(score.text), error)


def _aspects(aspects: Any) -> dict[str, float] | None:
    """None if `aspects` is not a mapping or if one value is not a number."""
    if not isinstance(aspects, Mapping):
        return None
    values = {str(name): read_number(value)[0] for name, value in aspects.items()}
    return None if None in values.values() else values  # type: ignore[return-value]


def _text(value: Any) -> str | None:
    """A text that a table can store: UTF-8 has no lone surrogates."""
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def read_number(value: Any) -> tuple[float | None, str]:
    """(a finite float, "") or (None, a description of the value).

    A number is whatever `float` accepts: int, float, Decimal, Fraction, an array or tensor of one element. Texts, bools,
    complex numbers, times and integers beyond the range of a float are not numbers.
    """
    problem = f"{shown(value)} ({described(value)}), which is not a number"
    if _is_time(value):
        return None, problem
    try:
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, (*TEXTS, bool)) or (
            isinstance(plain, numbers.Complex) and not isinstance(plain, numbers.Real)
        ):
            return None, problem
        number = float(plain)
    except OverflowError:
        return None, f"{described(value)} that is too large"
    except Exception:  # `item` and `__float__` of a plug-in's class may raise anything
        return None, problem
    return (number, "") if math.isfinite(number) else (None, str(number))


def row_of(values: Any, count: int, who: str) -> list[Any]:
    """`values` as a list of `count` entries, in order.

    Accepts a list, a tuple or another sequence, a 1-D array or tensor, and a pandas Series by position. Raises PluginError
    for anything else: dicts and sets have no reliable order, texts and generators are mistakes.
    """
    entries = _entries(values)
    if entries is None:
        raise PluginError(f"{who} returned {described(values)}; it must return a list with one number per image.")
    if len(entries) != count:
        plural = "s" * (len(entries) != 1)
        raise PluginError(f"{who} returned {len(entries)} value{plural} for {count} images; it must return one each.")
    return entries


def _entries(values: Any) -> list[Any] | None:
    dimensions = getattr(values, "ndim", None)
    if isinstance(dimensions, int) and callable(getattr(values, "tolist", None)):
        return list(values.tolist()) if dimensions == 1 and not _is_time(values) else None
    return list(values) if isinstance(values, Sequence) and not isinstance(values, TEXTS) else None


def _is_time(value: Any) -> bool:
    """True for numpy's and pandas' datetime64 and timedelta64."""
    return getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")


def shown(value: Any) -> str:
    """At most 50 characters of a value, even if its own repr raises."""
    try:
        return repr(str(value)[:50]) if not isinstance(value, (str, bytes)) else repr(value[:50])
    except Exception:
        return "something"
