"""GenEval's rules (2310.11513, evaluate_images.py): which clauses of a request hold, given the detected objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
KEYS = {"class", "count", "color", "position"}
#: relation -> (axis, sign) of the vector from the other object's centre to this object's centre
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
SLACK = 0.1  # fraction of the objects' sizes by which their centres must be apart
MAX_OBJECTS = 16  # per class; the most confident ones count


class Found(NamedTuple):
    """A detected object. box: left, top, right, bottom in pixels; mask: bool [height, width] of the image, or None."""

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


def clauses_of(extra: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Return the clauses in a request's column, [] if it has none. Raises ValueError for an invalid clause."""
    clauses = extra.get(column) or []
    if not isinstance(clauses, list) or (column == "include" and not clauses):
        raise ValueError(f'{column} is not a list of clauses such as {{"class": "cup", "count": 2}}')
    for number, clause in enumerate(clauses):
        if not isinstance(clause, dict) or not isinstance(clause.get("class"), str) or clause.keys() - KEYS:
            raise ValueError(
                f"{column} clause {number} must be an object with class and, optionally, {', '.join(sorted(KEYS))}"
            )
        count, colour, position = clause.get("count", 1), clause.get("color"), clause.get("position")
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{column} clause {number}: count is {count!r}; it must be a whole number from 1")
        if colour is not None and colour not in COLOURS:
            raise ValueError(f"{column} clause {number}: color is {colour!r}; it must be one of {', '.join(COLOURS)}")
        if position is not None:
            other = position[1] if isinstance(position, list) and len(position) == 2 else None
            valid = isinstance(other, int) and 0 <= other < len(clauses) and other != number
            if not valid or position[0] not in tuple(RELATIONS):
                raise ValueError(
                    f"{column} clause {number}: position is {position!r}; it must be [relation, index of another clause], "
                    f"with a relation out of {', '.join(RELATIONS)}"
                )
    return clauses


def kept(found: Sequence[Found], threshold: float, max_overlap: float) -> list[Found]:
    """Return the objects of one class that count: the MAX_OBJECTS most confident above the threshold, best first.

    Objects whose intersection over union with a more confident one is `max_overlap` or more are left out, unless it is 1.
    """
    ranked = sorted((one for one in found if one.confidence > threshold), key=lambda one: -one.confidence)
    chosen: list[Found] = []
    for one in ranked[:MAX_OBJECTS]:
        if max_overlap == 1 or all(overlap(other.box, one.box) < max_overlap for other in chosen):
            chosen.append(one)
    return chosen


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, whose last pixels belong to them."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0.0) * max(bottom - top + 1, 0.0)

    corners = (max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    union = area(*box) + area(*other) - area(*corners)
    return area(*corners) / union if union else 0.0


def evaluate(
    include: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]],
    objects: Mapping[str, Sequence[Found]],
    colour_of: Callable[[Found, str], str],
) -> dict[str, bool | None]:
    """Return {aspect: whether it holds}; None: it cannot be judged, because objects of the clause were not found.

    objects: class of a clause -> the objects that count, most confident first. colour_of(object, class) -> one of COLOURS.
    Colour and position are judged on the `count` most confident objects. An image is correct if all aspects are True.
    """
    results: dict[str, bool | None] = {}
    groups = [_first(clause, objects) for clause in include]
    for number, (clause, mine) in enumerate(zip(include, groups)):
        name, count = f"{number} {clause['class']}", clause.get("count", 1)
        results[f"{name} count"] = mine is not None
        if clause.get("color"):
            right = [colour_of(one, clause["class"]) == clause["color"] for one in mine or ()]
            results[f"{name} color"] = None if mine is None else sum(right) >= count
        if clause.get("position"):
            relation, other = clause["position"]
            others = groups[other]
            known = mine is not None and others is not None
            sides = [related(a.box, b.box, relation) for a in mine or () for b in others or ()]
            results[f"{name} position"] = all(sides) if known else None
    for number, clause in enumerate(exclude):
        rest = objects.get(clause["class"], ())
        results[f"exclude {number} {clause['class']}"] = len(rest) < clause.get("count", 1)
    return results


def _first(clause: Mapping[str, Any], objects: Mapping[str, Sequence[Found]]) -> Sequence[Found] | None:
    """Return the `count` most confident objects of the clause's class, None if there are fewer."""
    count, mine = clause.get("count", 1), objects.get(clause["class"], ())
    return mine[:count] if len(mine) >= count else None


def related(box: Sequence[float], other: Sequence[float], relation: str) -> bool:
    """True if the centre of `box` is on that side of the centre of `other`.

    Each component of the vector between the centres is shortened by SLACK of the two objects' sizes; it must then be more
    than half the length of the whole vector.
    """
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [(box[i + 2] - box[i]) + (other[i + 2] - other[i]) for i in (0, 1)]
    shorter = [math.copysign(max(abs(o) - SLACK * size, 0.0), o) for o, size in zip(offset, sizes)]
    if all(abs(value) < 1e-3 for value in shorter):
        return False
    axis, sign = RELATIONS[relation]
    return sign * shorter[axis] / math.hypot(*offset) > 0.5
