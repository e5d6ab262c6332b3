"""The allowed range of every number in a recipe or flag.

A range excludes meaningless values (a fraction of 3) and values with which a command would hang or run out of memory
(10^22 candidates).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from prefkit.errors import UsageError


class Bound(NamedTuple):
    """A range, inclusive by default. above=True excludes `low`, below=True excludes `high`."""

    low: float
    high: float
    above: bool = False
    below: bool = False


SHARE = Bound(0, 1)
POSITIVE = Bound(0, 1e38, above=True)  # up to float32
NOT_NEGATIVE = Bound(0, 1e12)
SEED = Bound(0, 2**32 - 1)  # the seeds that numpy's generators accept
STEPS = Bound(1, 10_000_000)
FROM_0 = Bound(0, 10_000_000)
BATCH = Bound(1, 65_536)
PIXELS = Bound(1, 65_536)
FEW = Bound(1, 10_000)
#: range of numbers in the options of a user's plug-in
ANY = Bound(-(2.0**63), 2.0**63)
#: range of numbers in prefkit's settings that GROUPS does not name
OTHER = Bound(-1e12, 1e12)

GROUPS: tuple[tuple[Bound, str], ...] = (
    (
        SHARE,
        "test_share max_failed timestep_fraction warmup_share min_confidence quantile min_mass "
        "label_smoothing ema dropout decay least",
    ),
    (POSITIVE, "learning_rate max_grad_norm clip_norm advantage_clip reward_timeout timeout"),
    (
        NOT_NEGATIVE,
        "weight_decay tie ties stop_drop beta sft noise_level min_gap prior max_drift price_in price_out temperature "
        "reg_factors reg_bias reg_visual negative_factors negative_bias explicit_weight kl limit clip clamp "
        "text_encoder_learning_rate",
    ),
    (SEED, "seed"),
    (
        STEPS,
        "steps rounds checkpoint_every validate_every epochs top_pairs max_requests max_pairs minimum buffer min_votes",
    ),
    (
        FROM_0,
        "warmup patience validation sample_every watch_requests watch_every window window_every refresh keep_rounds "
        "validation_users cold most",
    ),
    (BATCH, "batch_size accumulation accumulate samples requests updates sample_batch chunk"),
    (PIXELS, "height width hidden lora_rank lora_alpha rank"),
    (FEW, "n k k2 m seeds votes choices attempts tries in_flight base_steps"),
    (Bound(0, 10_000), "best_of"),
    (Bound(1, 100_000), "bootstrap max_tokens max_sequence_length"),
    (Bound(64, 65_536), "resolution"),
    (Bound(-15, 15), "decimals"),
    (Bound(1, 100), "quality"),
    (Bound(-1e6, 1e6), "guidance base_guidance adapters weights rewards"),
)
#: field name -> its range, in prefkit's settings and plug-ins
BOUNDS = {name: bound for bound, names in GROUPS for name in names.split()}
#: exceptions: (class, field) -> its range
OF_CLASS = {
    ("Recipe", "rounds"): Bound(1, 100),
    ("Generate", "steps"): FEW,
    ("Online", "steps"): FEW,
    ("Compare", "most"): STEPS,
    ("Train", "watch_requests"): STEPS,
    ("Train", "watch_every"): STEPS,
    ("Lora", "alpha"): POSITIVE,
    ("Lora", "dropout"): Bound(0, 1, below=True),
    ("Online", "ema"): Bound(0, 1, below=True),
    ("Train", "ema"): Bound(0, 1, below=True),
    ("Online", "timestep_fraction"): Bound(0, 1, above=True),
}


def of(kind: type, name: str) -> Bound:
    builtin = kind.__module__.startswith("prefkit.")
    return OF_CLASS.get((kind.__name__, name)) or (BOUNDS.get(name, OTHER) if builtin else ANY)


def broken(kind: type, name: str, value: Any) -> str | None:
    """Return why a number (also one in a list or mapping) is outside the range of the field `kind.name`, or None."""
    if isinstance(value, Mapping):
        errors = ((f"of {key}", broken(kind, name, item)) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        errors = ((f"[{i}]", broken(kind, name, item)) for i, item in enumerate(value))
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    else:
        return _outside(of(kind, name), value)
    return next((f"{where} {text}" for where, text in errors if text), None)


def check(settings: Any, where: str) -> None:
    """Check all numbers in `settings` except those in `options`. Raises UsageError for a number out of range."""
    for name in [field.name for field in dataclasses.fields(settings) if field.name != "options"]:
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            check(value, f"{where}.{name}")
        if error := broken(type(settings), name, value):
            raise UsageError(f"{where}.{name} {error}.")


def _outside(bound: Bound, value: float) -> str | None:
    low, high = _shown(bound.low), _shown(bound.high)
    if bound.low <= value <= bound.high and value not in (bound.low,) * bound.above + (bound.high,) * bound.below:
        return None
    if bound == SHARE:
        must = "it must be between 0 and 1"
    elif bound.below:
        must = f"it must be at least {low} and below {high}"
    elif not value < bound.high:  # NaN too
        must = f"it must be at most {high}"
    else:
        must = f"it must be above {low}" if bound.above else f"it must be at least {low}"
    return f"is {_shown(value)}: {must}"


def _shown(value: float) -> str:
    """Format a number for a message; a huge integer is shown by its number of digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 10**20 else f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
