"""A rule for compatible colours, so that the compatibility of an outfit is known exactly.

Black, white and brown go with everything. Two other colours go together if their hues, as angles in OKLab's (a, b)
plane, are analogous (at most 45 degrees apart, which includes the colour itself) or complementary (at least 150
degrees apart). Red, for example, goes with red, orange and pink. The other seven colours go with 63 % on average.
"""

from __future__ import annotations

from functools import cache

from prefkit.tiny.domain import COLOURS

NEUTRAL = frozenset({"black", "white", "brown"})
ANALOGOUS, COMPLEMENTARY = 45.0, 150.0  # degrees


@cache
def compatible(colour: str, other: str) -> bool:
    """True if the two colours go together, in either order. Raises KeyError for an unknown colour."""
    if NEUTRAL & {colour, other}:
        return True
    difference = abs(_hue(colour) - _hue(other))
    difference = min(difference, 360 - difference)
    return difference <= ANALOGOUS or difference >= COMPLEMENTARY


@cache
def _hue(colour: str) -> float:
    """Return the hue angle of a colour in degrees, 0 to 360."""
    import numpy as np

    from prefkit.tiny.art import to_oklab

    _, a, b = to_oklab(np.array(COLOURS[colour]))
    return float(np.degrees(np.arctan2(b, a)) % 360)
