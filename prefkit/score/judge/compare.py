"""Comparison of two images by a judge that sees them in both orders. An image wins only if it wins both times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.errors import PluginError, UsageError
from prefkit.plugin_guard import described
from prefkit.score.contract import read_number
from prefkit.score.judge.question import Backend, Question, Reply
from prefkit.score.judge.templates import IMAGE, fill, placeholders, shown
from prefkit.types import Candidate, Comparison

FIRST, SECOND, EQUAL = "A", "B", "tie"
TEMPLATE = (
    "An image generator was asked for: {prompt}\nWhich of the two images above serves this better{aspect}? Answer with A, "
    "B or tie, and with that alone."
)
ASPECT = ", looking at nothing but {aspect}"
SWAPPED = {"a": "b", "b": "a", "tie": "tie"}


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of a judge. In every order, the outcomes "a" and "b" mean id_a and id_b.

    rows        one verdict per pair, with order "both"
    shown       two answers per pair, with orders "ab" and "ba"
    flip_rate   among pairs with a winner in both answers, the fraction with different winners; None without such pairs
    first_rate  among answers with a winner, the fraction won by the image shown first; None without such answers
    """

    rows: list[Comparison]
    shown: list[Comparison]
    flip_rate: float | None
    first_rate: float | None


def compare(
    backend: Backend,
    pairs: Sequence[tuple[Candidate, Candidate]],
    judge: str,
    *,
    template: str = TEMPLATE,
    aspect: str = "",
    answer: Literal["logprobs", "text"] = "logprobs",
    margin: float = 0.0,
    min_mass: float = 0.1,
) -> Verdicts:
    """Ask a loaded backend about each pair in both orders.

    logprobs: p(first) = P(A) / (P(A) + P(B)) at the first token; a tie if |p - 1/2| <= margin. Over both orders,
    p(a better) = (p_ab(first) + 1 - p_ba(first)) / 2. text: the answer must be A, B or tie.
    If the two answers differ, the pair is a tie; if one of them fails, the pair fails.
    Raises UsageError if the candidates of a pair have different prompts, or no request has a column of the template.
    """
    if IMAGE in placeholders(template):
        raise UsageError(
            "compare shows both images above the question, so its template cannot have {image}. Remove it."
        )
    for a, b in pairs:
        if a.prompt != b.prompt:
            raise UsageError(f"candidates {a.id} and {b.id} have different prompts, so they cannot be compared.")
    unknown = placeholders(template) - {"prompt", "aspect"}.union(*(pair[0].extra for pair in pairs))
    if pairs and unknown:
        raise UsageError(f"compare: the template names {{{min(unknown)}}}, but the requests have no such column.")
    orders = [(pair, order) for pair in pairs for order in ("ab", "ba")]
    questions = [_question(pair if order == "ab" else pair[::-1], template, aspect) for pair, order in orders]
    if answer == "logprobs":
        replies = backend.masses(questions, (FIRST, SECOND))
    else:
        replies = backend.texts(questions, max_tokens=16)
    shown = []
    for ((a, b), order), reply in zip(orders, replies):
        p, outcome, error = _of_tokens(reply, margin, min_mass) if answer == "logprobs" else _of_text(reply)
        if order == "ba":
            p, outcome = None if p is None else 1 - p, None if outcome is None else SWAPPED[outcome]
        shown.append(Comparison(a.id, b.id, outcome, judge, p, order, aspect, error))
    merged = [_merged(*shown[i : i + 2]) for i in range(0, len(shown), 2)]
    return Verdicts(merged, shown, *rates(shown))


def _question(pair: tuple[Candidate, Candidate], template: str, aspect: str) -> Question:
    clause = fill(ASPECT, {"aspect": aspect}) if aspect else ""
    _, *question = shown(template, pair[0], {"prompt": pair[0].prompt, "aspect": clause})
    return Question(("Image A:", pair[0], "Image B:", pair[1], *question))


def _of_tokens(reply: Reply, margin: float, min_mass: float) -> tuple[float | None, str | None, str | None]:
    """Return (probability that the first image is better, outcome in which a is the first image, error)."""
    if reply.masses is None:
        return None, None, reply.error or "no answer"
    total = sum(reply.masses)
    if total < min_mass or total == 0:
        return None, None, f"A and B have a total probability of {total:.3g}, less than {min_mass:g}"
    p = reply.masses[0] / total
    return p, "tie" if abs(p - 0.5) <= margin else "a" if p > 0.5 else "b", None


def _of_text(reply: Reply) -> tuple[float | None, str | None, str | None]:
    if reply.text is None:
        return None, None, reply.error or "no answer"
    answer = reply.text.strip().strip("*\"'`.!()").casefold().removeprefix("image ").strip()
    outcome = {FIRST.casefold(): "a", SECOND.casefold(): "b", EQUAL: "tie"}.get(answer)
    return None, outcome, None if outcome else f"the answer is not A, B or tie: {reply.text[:200]!r}"


def _merged(ab: Comparison, ba: Comparison) -> Comparison:
    error = ab.error or ba.error
    if error is not None:
        return Comparison(ab.id_a, ab.id_b, None, ab.judge, None, "both", ab.aspect, error)
    p = None if ab.probability is None or ba.probability is None else (ab.probability + ba.probability) / 2
    outcome = ab.outcome if ab.outcome == ba.outcome else "tie"
    return Comparison(ab.id_a, ab.id_b, outcome, ab.judge, p, "both", ab.aspect)


def check_verdicts(verdicts: Any, pairs: Sequence[tuple[str, str]], judge: str) -> None:
    """Raise PluginError unless `verdicts` are Verdicts with one row per pair, in order, and valid outcomes."""
    rows, shown = getattr(verdicts, "rows", None), getattr(verdicts, "shown", None)
    if not isinstance(rows, (list, tuple)) or not isinstance(shown, (list, tuple)):
        raise PluginError(f"judge {judge} returned {described(verdicts)}; it must return Verdicts with rows and shown.")
    if not all(isinstance(row, Comparison) for row in (*rows, *shown)):
        raise PluginError(f"judge {judge}: every verdict must be a Comparison.")
    if len(rows) != len(pairs):
        raise PluginError(f"judge {judge} gave {len(rows)} verdicts for {len(pairs)} pairs.")
    if [(row.id_a, row.id_b, row.order) for row in rows] != [(a, b, "both") for a, b in pairs]:
        raise PluginError(
            f"judge {judge}: `rows` must list the pairs in the sequence given, with the field `order` set to 'both'."
        )
    asked = set(pairs)
    for row in (*rows, *shown):
        known = row.outcome in (*SWAPPED, None) and row.order in ("ab", "ba", "both") and (row.id_a, row.id_b) in asked
        p = row.probability
        if not known or not (p is None or (read_number(p)[0] is not None and 0 <= p <= 1)):
            raise PluginError(
                f"judge {judge} gave outcome {row.outcome!r} with probability {p!r} for ({row.id_a}, {row.id_b}), order "
                f"{row.order!r}: an outcome must be 'a', 'b', 'tie' or None, and a probability must be in 0..1."
            )


def rates(shown: Sequence[Comparison]) -> tuple[float | None, float | None]:
    """Return (flip rate, first rate) of `Verdicts`. shown: two answers per pair, order "ab" before order "ba"."""
    decided = [c for c in shown if c.outcome in ("a", "b")]
    twice = [(ab, ba) for ab, ba in zip(shown[::2], shown[1::2]) if {ab.outcome, ba.outcome} <= {"a", "b"}]
    flips = sum(ab.outcome != ba.outcome for ab, ba in twice)
    first = sum(c.outcome == c.order[0] for c in decided)
    return (flips / len(twice) if twice else None), (first / len(decided) if decided else None)
