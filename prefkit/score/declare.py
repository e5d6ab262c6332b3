"""The decorator `@prefkit.scorer(...)` for scorer functions. A function without the decorator gets its defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from prefkit.errors import UsageError
from prefkit.score.contract import SCOPES

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Decorator for a scorer function `(images, prompts, **context) -> list of numbers`, which it does not change.

    name            name in spec.json; default: file.py:function
    version         any text; the hash of the function's file is appended to it
    range           lowest and highest value, None for no bound
    requires        image, prompt, payload or names of request columns; arguments without a default are added
    scope           within_request: each call gets one request; values of different requests are not comparable
    licence         licence of the weights; if it forbids commercial use or forces copyleft, the user must accept it
    evaluation_only True: `pair` and training refuse the score
    batch           maximum number of images per call
    concurrency     number of concurrent calls (in threads), for a function that waits for a remote machine
    Raises UsageError for invalid values.
    """

    name: str = ""
    version: str = ""
    range: tuple[float | None, float | None] = (None, None)
    higher_is_better: bool = True
    requires: Sequence[str] = ("image", "prompt")
    scope: Literal["absolute", "within_request"] = "absolute"
    licence: str = ""
    evaluation_only: bool = False
    batch: int | None = None
    concurrency: int = 1

    def __post_init__(self) -> None:
        low, high = self.range
        if low is not None and high is not None and low >= high:
            raise UsageError(f"@scorer(range={self.range}): the lowest value must come first and be below the highest.")
        if self.scope not in SCOPES:
            raise UsageError(f"@scorer(scope={self.scope!r}): choose {' or '.join(SCOPES)}.")
        if (self.batch is not None and self.batch < 1) or self.concurrency < 1:
            raise UsageError("@scorer: batch and concurrency must be at least 1.")
        if isinstance(self.requires, str):
            raise UsageError(f"@scorer(requires={self.requires!r}): it must be a list of names.")

    def __call__(self, function: Function) -> Function:
        function.__prefkit_scorer__ = self  # type: ignore[attr-defined]
        return function


scorer = Declaration


def declared(function: Callable[..., Any]) -> Declaration:
    return getattr(function, "__prefkit_scorer__", Declaration())
