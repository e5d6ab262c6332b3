"""The rows that stages exchange, the protocols of plug-ins, and the Arrow schemas of stored rows.

Importing this module loads little more than the standard library: schemas are built on demand.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefkit.images import native, rgb

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from PIL.Image import Image


def digest(*parts: Any, length: int = 20) -> str:
    """Hash JSON-able parts to a hex id. All ids and fingerprints are made by this function."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def caption_key(text: str) -> str:
    """A prompt normalised for case, Unicode form (NFKC) and spacing; prompts with equal keys count as one prompt."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(prompt: str, test_share: float) -> str:
    """ "test" for this fraction of prompts, by a hash of the prompt's `caption_key`; else "train"."""
    number = int.from_bytes(hashlib.sha256(caption_key(prompt).encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "test" if number / 2**64 < test_share else "train"


@dataclass(frozen=True)
class Request:
    """A prompt for a generator. `extra` holds further columns of the application."""

    request_id: str
    prompt: str
    split: str = "train"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An image for a request.

    `image` holds encoded bytes (PNG or lossless WebP), or `path` and `sha256` name a file outside the run, or `error` is the
    reason for a missing image. `payload` is a safetensors blob with the final latents, in the scheduler's layout and the
    model's dtype.
    """

    id: str
    request_id: str
    index: int
    seed: int
    prompt: str = ""
    image: bytes | None = None
    path: str | None = None
    sha256: str | None = None
    payload: bytes | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    # set by readers that decode ahead; sha256 is then the hash of the decoded bytes
    decoded: Image | None = field(default=None, compare=False, repr=False)

    def pil(self) -> Image:
        """The image as RGB uint8, upright. Raises OSError or ValueError if it is damaged."""
        if self.decoded is not None:
            return self.decoded
        source = self.image if self.image is not None else self.path
        if source is None:
            raise ValueError(f"candidate {self.id} holds no image")
        return rgb(source)

    def native(self) -> Image:
        """`pil()`, but in the image's original mode if that mode is resized differently (see images.native)."""
        source = self.image if self.image is not None else self.path
        image = native(source) if source is not None else None
        return self.pil() if image is None else image


@dataclass(frozen=True)
class Score:
    """The score of a candidate. A failure has the value None, never 0, and an `error`. An aspect called `which_...` is the
    index of a class: values are equal or different, and have no order."""

    value: float | None
    aspects: Mapping[str, float] | None = None
    text: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ScorerSpec:
    """The definition of a score. Different specs are different scores."""

    name: str
    version: str
    weights: str | None = None
    revision: str | None = None
    preprocessing: str = ""
    formula: str = ""
    dtype: str = "float32"
    higher_is_better: bool = True
    range: tuple[float | None, float | None] = (None, None)
    scope: str = "absolute"
    licence: str = ""
    verified: bool = False
    evaluation_only: bool = False


@dataclass(frozen=True)
class Comparison:
    """A pairwise verdict of a judge (a model, or an annotator's salted name): outcome is 'a', 'b', 'tie' or None (failed).

    probability: that a is better. order: 'ab' or 'ba', as shown, or 'both' for the joined verdict of two orders.
    time: seconds since 1970, if known.
    """

    id_a: str
    id_b: str
    outcome: str | None
    judge: str
    probability: float | None = None
    order: str = "ab"
    aspect: str = ""
    error: str | None = None
    time: float | None = None


@dataclass
class Draw:
    """A draw of time and noise, shared by all members of a group. One entry per group in a batch.

    time:  [G] float64 or int64, in the units of the family's schedule (index, or sigma in 0..1)
    noise: [G, ...] float32, one standard normal tensor per group in the latents' layout
    """

    time: torch.Tensor
    noise: torch.Tensor


@dataclass
class Errors:
    """The network's errors on each sample, for one head.

    mean:     [B] float32, the mean over ALL elements of weight * residual^2
    residual: [B, ...] float32 = weight * (prediction - target), proportional to the gradient of `mean` with respect to the
              prediction; None unless the objective needs it
    """

    mean: torch.Tensor
    residual: torch.Tensor | None = None


@dataclass
class Groups:
    """The groups of samples: a pair is a group of 2, a list a group of m, a single a group of 1.

    Every field is [B], in the order of the samples; `index` is the group's index in 0..G-1. rank 0 is the best of its group.
    label is 1 for a winner (or desirable), 0 for a loser. score_gap and p (soft label: probability that the winner wins) are
    equal within a group.
    """

    index: torch.Tensor
    rank: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    score_gap: torch.Tensor
    p: torch.Tensor


Metrics = dict[str, float]


@runtime_checkable
class Generator(Protocol):
    def generate(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Candidate]: ...


@runtime_checkable
class Scorer(Protocol):
    """PIL images in, numbers out. The constructor only stores options; `load` loads weights."""

    Options: type
    requires: frozenset[str]
    scope: str

    def spec(self) -> ScorerSpec: ...
    def load(self, device: str, dtype: str) -> None: ...
    def score(self, batch: Sequence[Candidate]) -> list[Score]: ...


@runtime_checkable
class Strategy(Protocol):
    """One request's scores in, pairs out: value [N], scores [N, S], NaN = missing -> (win, lose, gap).

    Optional: `fit(table)`, called once with the whole run's scores (a ScoreTable of prefkit/pair), and `block(value,
    scores)`, many requests of one size at once.
    """

    Options: type

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]: ...


@runtime_checkable
class Objective(Protocol):
    """The loss of one head, independent of images, schedules and prediction types."""

    Options: type
    shape: str  # "pair" | "list" | "single"
    reference: str  # "none" | "frozen" | "ema"
    needs_residual: bool

    def loss(
        self, policy: Errors, reference: Errors | None, groups: Groups
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...


class Family(Protocol):
    """A kind of model: how data is corrupted, and the network's errors on it.

    A Tree is a nested dict/list/tuple of tensors, None and scalars.
    """

    net: Any

    def latents(self, candidates: Sequence[Candidate]) -> list[Any]: ...
    def conditions(self, requests: Sequence[Request], size: tuple[int, int]) -> list[Any]: ...
    def draw(self, group: str, visit: int, like: Any) -> Draw: ...
    def residuals(self, net: Any, latents: Any, draw: Draw, condition: Any) -> dict[str, torch.Tensor]: ...
    def decode(self, latents: Any) -> list[Image]: ...


def _schema(columns: str) -> pa.Schema:
    """An Arrow schema from `"name:type name:type"`."""
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in (column.split(":") for column in columns.split())])


def request_schema() -> pa.Schema:
    return _schema("request_id:string prompt:string split:string extra:string")


def candidate_schema() -> pa.Schema:
    return _schema(
        "id:string request_id:string index:int32 seed:int64 image:binary path:string sha256:string payload:binary "
        "extra:string error:string"
    )


def score_schema() -> pa.Schema:
    return _schema("id:string value:float64 aspects:string text:string error:string")


def comparison_schema() -> pa.Schema:
    return _schema(
        "id:string id_a:string id_b:string outcome:string judge:string order:string aspect:string error:string "
        "probability:float64 time:float64"
    )


def input_schema() -> pa.Schema:
    return _schema("id:string bytes:binary")
