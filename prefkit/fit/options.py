"""Option checks that several fits share."""

from __future__ import annotations

from typing import Any

from prefkit.errors import UsageError


def check_positive(fit: str, options: Any, *names: str) -> None:
    """Raise UsageError if an option in `names` is below 1."""
    low = [name for name in names if getattr(options, name) < 1]
    if low:
        raise UsageError(f"{fit}: {' and '.join(low)} must be at least 1.")


def check_fractions(fit: str, options: Any) -> None:
    """Raise UsageError unless validation_share and test_share are above 0 and leave some data for training."""
    if min(options.validation_share, options.test_share) <= 0 or options.validation_share + options.test_share >= 1:
        raise UsageError(f"{fit}: validation_share and test_share must be above 0, and their sum below 1.")
