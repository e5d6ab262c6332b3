"""Checks of a scorer's attributes, spec and scores, for every kind of scorer: function, class, process or server."""

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
    """Raise PluginError for an invalid `scope`, `requires`, `batch` or `concurrency`."""
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
    """Return the scorer's spec. Raises PluginError if `spec()` does not return a ScorerSpec or tries to exit."""
    who = f"scorer {type(scorer).__qualname__}"
    with guarded(who, "failed in spec()"):
        spec: Any = scorer.spec()
    if not isinstance(spec, ScorerSpec):
        raise PluginError(f"{who}: spec() returned {described(spec)}; it must return a ScorerSpec.")
    return spec


def scores_of(returned: Any, count: int, who: Callable[[], str]) -> list[Score]:
    """Return what `score()` returned as a list. Raises PluginError unless it is a sequence of `count` Scores."""
    description = described(returned)
    if isinstance(returned, Sequence):
        if not all(isinstance(score, Score) for score in returned):
            description += " of items that are not all Scores"
        elif len(returned) == count:
            return list(returned)
        else:
            description = f"{len(returned)} Score{'s' * (len(returned) != 1)}"
    candidates = f"{count} candidate{'s' * (count != 1)}"
    raise PluginError(f"{who()} returned {description} for {candidates}; it must return one Score for each.")


def checked(score: Score, who: str = "the scorer") -> Score:
    """Return a copy of the score with a finite value or an error. An error replaces a value that is not a number."""
    error, aspects, value = _text(score.error), _aspects(score.aspects), None
    if not error and score.value is None:
        error = f"{who} returned neither a value nor an error"
    elif not error:
        value, problem = read_number(score.value)
        error = f"{who} returned {problem}" if problem else None
    if value is not None and aspects is None and score.aspects is not None:
        value, error = None, f"{who} returned aspects that are not numbers: {described(score.aspects)}"
    return Score(value, aspects, _text(score.text), error)


def _aspects(aspects: Any) -> dict[str, float] | None:
    """Return the aspects as floats; None if `aspects` is not a mapping or one of its values is not a number."""
    if not isinstance(aspects, Mapping):
        return None
    values = {str(name): read_number(value)[0] for name, value in aspects.items()}
    return None if None in values.values() else values  # type: ignore[return-value]


def _text(value: Any) -> str | None:
    """Return the value as text that a table can store: lone surrogates, which UTF-8 cannot encode, are replaced."""
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def read_number(value: Any) -> tuple[float | None, str]:
    """Return (value as a finite float, ""), or (None, a description of the value) if it is not a number.

    A number is any value that `float` accepts (int, float, Decimal, Fraction, an array or tensor with one element),
    except texts, bools, complex numbers, times, and integers too large for a float.
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
    """Return `values` as a list of `count` entries, in order.

    `values` may be a list, tuple or other sequence, a 1-D array or tensor, or a pandas Series, whose index is ignored.
    Raises PluginError for anything else: dicts and sets have no reliable order, and a text or generator is a mistake.
    """
    entries = _entries(values)
    if entries is None:
        raise PluginError(f"{who} returned {described(values)}; it must return a list with one number per image.")
    if len(entries) != count:
        plural = "s" * (len(entries) != 1)
        raise PluginError(
            f"{who} returned {len(entries)} value{plural} for {count} images; it must return one per image."
        )
    return entries


def _entries(values: Any) -> list[Any] | None:
    dimensions = getattr(values, "ndim", None)
    if isinstance(dimensions, int) and callable(getattr(values, "tolist", None)):
        return list(values.tolist()) if dimensions == 1 and not _is_time(values) else None
    return list(values) if isinstance(values, Sequence) and not isinstance(values, TEXTS) else None


def _is_time(value: Any) -> bool:
    """True if the value has the dtype datetime64 or timedelta64 of numpy or pandas."""
    return getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")


def shown(value: Any) -> str:
    """Return at most 50 characters of a value, for messages; works even if the value's own repr raises."""
    try:
        return repr(str(value)[:50]) if not isinstance(value, (str, bytes)) else repr(value[:50])
    except Exception:
        return "something"
