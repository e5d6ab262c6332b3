"""The rows that pass between rooms, and the Arrow schemas they are stored in.

Importing this module loads nothing heavier than the standard library: schemas are built on demand.
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
    """Hex id of JSON-able parts: the one way in which ids and fingerprints are made."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def caption_key(text: str) -> str:
    """A prompt without case, accents' form (NFKC) and spacing: prompts with equal keys count as one prompt."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(prompt: str, test_share: float) -> str:
    """ "test" for this share of prompts, by a hash of the prompt without case, accents' form and spacing."""
    number = int.from_bytes(hashlib.sha256(caption_key(prompt).encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "test" if number / 2**64 < test_share else "train"


@dataclass(frozen=True)
class Request:
    """What is asked of a generator once. `extra` is whatever the application adds to the prompt."""

    request_id: str
    prompt: str
    split: str = "train"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One answer to a request.

    `image` holds encoded bytes (PNG or lossless WebP), or `path` and `sha256` name a file that stays
    where it is, or `error` says why there is none. `payload` is a safetensors blob with what an image
    cannot give back (the final latents, in the scheduler's layout and the model's dtype).
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
    # filled in by readers that decode ahead; sha256 is then that of the bytes decoded
    decoded: Image | None = field(default=None, compare=False, repr=False)

    def pil(self) -> Image:
        """The image as RGB uint8, upright. Raises OSError or ValueError where it is damaged."""
        if self.decoded is not None:
            return self.decoded
        source = self.image if self.image is not None else self.path
        if source is None:
            raise ValueError(f"candidate {self.id} holds no image")
        return rgb(source)

    def native(self) -> Image:
        """As `pil`, but in the image's own mode where that resizes otherwise (see images.native)."""
        source = self.image if self.image is not None else self.path
        found = native(source) if source is not None else None
        return self.pil() if found is None else found


@dataclass(frozen=True)
class Score:
    """`value` None means failed, and `error` says why. A failure is never 0. An aspect called `which_...` is the number
    of a class: equal or different, without a size."""

    value: float | None
    aspects: Mapping[str, float] | None = None
    text: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ScorerSpec:
    """What a score means. Two specs that differ are two different scores."""

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

    probability: that a is better. order: 'ab' or 'ba', as shown, or 'both' where two orders were joined.
    time: seconds since 1970, where known.
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
    """One draw of time and noise, shared by all members of a group. One entry per group in a batch.

    time:  [G] float64 or int64, in the units of the family's schedule (index, or sigma in 0..1)
    noise: [G, ...] float32, one standard normal tensor per group in the latents' layout
    """

    time: torch.Tensor
    noise: torch.Tensor


@dataclass
class Errors:
    """How wrong the network is about each sample, for one head.

    mean:     [B] float32, the mean over ALL elements of weight * residual^2
    residual: [B, ...] float32 = weight * (prediction - target), up to a factor the gradient of `mean` with respect to the
              prediction; only where an objective asks for it
    """

    mean: torch.Tensor
    residual: torch.Tensor | None = None


@dataclass
class Groups:
    """Which samples belong together: a pair is a group of 2, a list of m, a single of 1.

    Every field is [B] and in the order of the samples; `index` is the group's number in 0..G-1.
    rank 0 is the best of its group. label is 1 for a winner (or desirable), 0 for a loser.
    score_gap and p (soft label: probability that the winner wins) repeat within a group.
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
    """PIL images in, numbers out. The constructor stores options; `load` does the work."""

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
    """Sees one head. Knows nothing of images, schedules or prediction types."""

    Options: type
    shape: str  # "pair" | "list" | "single"
    reference: str  # "none" | "frozen" | "ema"
    needs_residual: bool

    def loss(
        self, policy: Errors, reference: Errors | None, groups: Groups
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...


class Family(Protocol):
    """One kind of model: how data is corrupted and how wrong the network is about it.

    A Tree is a nested dict/list/tuple of tensors, None and scalars.
    """

    net: Any

    def latents(self, candidates: Sequence[Candidate]) -> list[Any]: ...
    def conditions(self, requests: Sequence[Request], size: tuple[int, int]) -> list[Any]: ...
    def draw(self, group: str, visit: int, like: Any) -> Draw: ...
    def residuals(self, net: Any, latents: Any, draw: Draw, condition: Any) -> dict[str, torch.Tensor]: ...
    def decode(self, latents: Any) -> list[Image]: ...


def request_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("request_id", pa.string()), ("prompt", pa.string()), ("split", pa.string()), ("extra", pa.string())]
    )


def candidate_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("request_id", pa.string()),
            ("index", pa.int32()),
            ("seed", pa.int64()),
            ("image", pa.binary()),
            ("path", pa.string()),
            ("sha256", pa.string()),
            ("payload", pa.binary()),
            ("extra", pa.string()),
            ("error", pa.string()),
        ]
    )


def score_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("value", pa.float64()),
            ("aspects", pa.string()),
            ("text", pa.string()),
            ("error", pa.string()),
        ]
    )


def comparison_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "id_a", "id_b", "outcome", "judge", "order", "aspect", "error")]
    return pa.schema([*texts, ("probability", pa.float64()), ("time", pa.float64())])


def input_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("bytes", pa.binary())])
