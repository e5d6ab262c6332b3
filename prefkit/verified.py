"""Claims that a scorer was verified with published weights: the texts of `ScorerSpec.verified`.

A claim belongs to weight files. A scorer whose weights were verified has a constant

    VERIFIED = {"NAME OF THE WEIGHTS, PACKAGE VERSION": ("SHA-256 of a file", ...)}

in its file, and its spec has the claim only if the files that it loads have these hashes (`verified_as` in
prefkit/score/embed/weights.py). tests/weights/ holds the tests behind each entry.
"""

from __future__ import annotations

from collections.abc import Sequence

NO_WEIGHTS = "no weights"  # the claim of a scorer that has none


def claim(what: str, hashes: Sequence[str]) -> str:
    """Return the claim for weight files with these SHA-256 hashes, such as "MiniLM, sha256 53aa5117"."""
    return f"{what}, sha256 {' '.join(value[:8] for value in hashes)}"


def shown(claimed: str) -> str:
    """Return "needs none", "yes: CLAIM" or "no"."""
    if claimed == NO_WEIGHTS:
        return "needs none"
    return f"yes: {claimed}" if claimed else "no"
