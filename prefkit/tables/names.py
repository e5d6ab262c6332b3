"""Ids that are compared, as text in Unicode's composed form (NFC)."""

from __future__ import annotations

from typing import Any

from prefkit.paths import nfc


def id_text(value: Any) -> str:
    """An id as text: 7 and 7.0 are '7' (a column of whole numbers with gaps holds floats), '007' stays '007'."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return nfc(str(value))
