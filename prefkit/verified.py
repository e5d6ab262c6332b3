"""Claims that a scorer was verified with published weights: the texts of `ScorerSpec.verified`.

A claim holds for certain weight files only. The module of a scorer that was verified has a constant

    VERIFIED = {"NAME OF THE WEIGHTS, PACKAGE VERSION": ("SHA-256 of a file", ...)}

The scorer's spec makes the claim only if the loaded files have these hashes (`verified_as` in
prefkit/score/embed/weights.py). tests/weights/ holds the tests on which each entry is based.
"""

from __future__ import annotations

from collections.abc import Sequence

NO_WEIGHTS = "no weights"  # the claim of a scorer without weights


def claim(what: str, hashes: Sequence[str]) -> str:
    """Return the claim for weight files with these SHA-256 hashes, such as "MiniLM, sha256 53aa5117"."""
    return f"{what}, sha256 {' '.join(value[:8] for value in hashes)}"


def shown(claimed: str) -> str:
    """Format a claim for tables: "needs none" (no weights), "yes: CLAIM" or "no". Older runs stored a bool."""
    if claimed in (NO_WEIGHTS, True):
        return "needs none"
    return f"yes: {claimed}" if claimed else "no"
