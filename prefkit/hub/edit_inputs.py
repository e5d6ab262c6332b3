"""The input images of edits: those from which a run's pipelines made their candidates (model.inputs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from prefkit.errors import UsageError
from prefkit.images import shown
from prefkit.paths import nfc
from prefkit.store import Store
from prefkit.types import INPUT_ID, Request


class EditInputs:
    """Finds the input images of the requests of `run`; None: pairs without a run, which have no input images."""

    def __init__(self, run: Store | None) -> None:
        self.run = run

    @cached_property
    def columns(self) -> list[str]:
        """The columns of the requests from which the generators' pipelines took arguments."""
        specs = [self.run.candidates(name).spec() or {} for name in self.run.names("candidates")] if self.run else []
        fields = [field for spec in specs for field in spec.get("inputs", {}).values()]
        return list(dict.fromkeys(nfc(field.removeprefix("extra.")) for field in fields))

    @cached_property
    def _requests(self) -> dict[str, Request]:
        return {r.request_id: r for r in self.run.requests()} if self.run is not None and self.columns else {}

    def ids(self, row: Mapping[str, Any]) -> list[str]:
        """Return the ids of the input images of a pair's row, in the order of model.inputs; [] for an unknown request."""
        request = self._requests.get(str(row.get("request_id")))
        values = [request.extra.get(column) for column in self.columns] if request is not None else []
        names = [name for value in values for name in (value if isinstance(value, list) else [value])]
        return [name for name in names if isinstance(name, str) and INPUT_ID.fullmatch(name)]

    def check(self, row: Mapping[str, Any], pair: str) -> None:
        """Raise UsageError if the run lacks the request of a pair's row. pair: the pair in the message."""
        rid = row.get("request_id")
        if self.run is not None and self.columns and rid not in self._requests:
            raise UsageError(
                f"{pair} has the request {rid}, which is not in the run {self.run.folder}, so its input image "
                f"({', '.join(self.columns)}) is unknown. Remove the pair, or make the pairs again with `prefkit pair`."
            )

    @property
    def most(self) -> int:
        """The largest number of input images of a request."""
        return max((len(self.ids({"request_id": rid})) for rid in self._requests), default=0)

    def image(self, name: str) -> bytes:
        """Return the encoded input image, converted so that every decoder returns the pixels that pipelines saw.

        Raises UsageError if the run lacks it.
        """
        return shown(self._image(name))

    @cached_property
    def _image(self) -> Callable[[str], bytes]:
        assert self.run is not None  # without a run no pair has input ids
        return self.run.input_images()
