"""The engine `local`: one worker, in this process, does all units in one call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefkit.engines import Keep, Work


class Local:
    remote, width = False, 1

    def spread(self, work: Work, units: Sequence[Any], keep: Keep) -> None:
        keep(units, work.worker(*work.arguments).do(units))

    def checking(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Do nothing."""
