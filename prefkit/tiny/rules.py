"""Which colours go together: a rule with no taste of its own, so that compatibility can be told exactly.

Black, white and brown go with everything. Two other colours go together where their hues, as angles in OKLab's
(a, b) plane, are analogous (at most 45 degrees apart, which includes the colour itself) or complementary (at least
150 degrees apart). Beside red these are red, orange and pink; drawn blindly from all ten colours, 63 % go with a
colour that is not neutral, and all go with a neutral one.
"""

from __future__ import annotations

from functools import cache

from prefkit.tiny.domain import COLOURS

NEUTRAL = frozenset({"black", "white", "brown"})
ANALOGOUS, COMPLEMENTARY = 45.0, 150.0  # degrees


@cache
def compatible(colour: str, other: str) -> bool:
    """Whether the two colours go together; the order does not matter. Raises KeyError for an unknown colour."""
    if NEUTRAL & {colour, other}:
        return True
    apart = abs(_hue(colour) - _hue(other))
    apart = min(apart, 360 - apart)
    return apart <= ANALOGOUS or apart >= COMPLEMENTARY


@cache
def _hue(colour: str) -> float:
    """Degrees, 0 to 360."""
    import numpy as np

    from prefkit.tiny.art import to_oklab

    _, a, b = to_oklab(np.array(COLOURS[colour]))
    return float(np.degrees(np.arctan2(b, a)) % 360)
