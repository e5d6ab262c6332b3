"""`@prefkit.scorer(...)`: what a bare function says of itself as a scorer. Without it, the defaults below hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from prefkit.errors import UsageError
from prefkit.score.contract import SCOPES

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Declared:
    name: str = ""
    version: str = ""
    range: tuple[float | None, float | None] = (None, None)
    higher_is_better: bool = True
    requires: tuple[str, ...] = ("image", "prompt")
    scope: str = "absolute"
    licence: str = ""
    evaluation_only: bool = False
    batch: int | None = None
    concurrency: int = 1


def scorer(
    *,
    name: str = "",
    version: str = "",
    range: tuple[float | None, float | None] = (None, None),
    higher_is_better: bool = True,
    requires: Sequence[str] = ("image", "prompt"),
    scope: Literal["absolute", "within_request"] = "absolute",
    licence: str = "",
    evaluation_only: bool = False,
    batch: int | None = None,
    concurrency: int = 1,
) -> Callable[[Function], Function]:
    """Declare what a function `(images, prompts, **context) -> list of numbers` means. The function stays as it is.

    name            in spec.json; default: file.py:function
    version         yours; the hash of the function's file is added to it either way
    range           lowest and highest value, None where there is no bound
    requires        of image, prompt, payload and columns of the requests; arguments of the function are added
    scope           within_request: called with all candidates of a request, since values compare only there
    licence         of its weights; one that forbids commercial use or forces copyleft wants `accept_license`
    evaluation_only kept out of the weights that `pair` takes by default
    batch           most images in a call
    concurrency     calls at once, from threads; for a function that waits for another machine
    Raises UsageError for invalid values.
    """
    low, high = range
    if low is not None and high is not None and low >= high:
        raise UsageError(f"@scorer(range={range}): the lowest value comes first.")
    if scope not in SCOPES:
        raise UsageError(f"@scorer(scope={scope!r}): choose {' or '.join(SCOPES)}.")
    if (batch is not None and batch < 1) or concurrency < 1:
        raise UsageError("@scorer: batch and concurrency are at least 1.")
    if isinstance(requires, str):
        raise UsageError(f"@scorer(requires={requires!r}): a list of names is needed.")
    says = Declared(
        name, str(version), (low, high), higher_is_better, tuple(requires), scope, licence, evaluation_only, batch,
        concurrency,
    )  # fmt: skip

    def declare(function: Function) -> Function:
        function.__prefkit_scorer__ = says  # type: ignore[attr-defined]
        return function

    return declare


def declared(function: Callable[..., Any]) -> Declared:
    return getattr(function, "__prefkit_scorer__", Declared())
