"""The rows that stages exchange, the protocols that plug-ins implement, and the Arrow schemas of stored rows.

Importing this module loads little more than the standard library: schemas are built on demand.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefkit.images import native, rgb

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from PIL.Image import Image


#: the value of a request's column that holds an image: the SHA-256 of the image, which is in the inputs/ table
INPUT_ID = re.compile("[0-9a-f]{64}")


def digest(*parts: Any, length: int = 20) -> str:
    """Hash JSON-able parts to a hex id. All ids and fingerprints are made by this function."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def caption_key(text: str) -> str:
    """Normalise a prompt's case, Unicode form (NFKC) and spacing. Prompts with equal keys count as the same prompt."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(prompt: str, test_share: float) -> str:
    """Return "test" or "train": a hash of the `caption_key` assigns the fraction `test_share` of prompts to "test"."""
    number = int.from_bytes(hashlib.sha256(caption_key(prompt).encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "test" if number / 2**64 < test_share else "train"


@dataclass(frozen=True)
class Request:
    """A prompt for a generator. `extra` holds the columns of its row that are not fields of this class."""

    request_id: str
    prompt: str
    split: str = "train"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An image for a request.

    The image is either `image`, encoded bytes (PNG or lossless WebP), or a file outside the run, given by `path` and
    `sha256`. If the candidate failed, `error` is the reason. `payload` is a safetensors blob: an image's final latents
    in the scheduler's layout and the model's dtype, or a mesh (mesh/payload.py). A mesh may have no image; `sha256` is
    then the hash of the payload.
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
    # set by readers that decode ahead; sha256 is then the hash of the bytes that were decoded
    decoded: Image | None = field(default=None, compare=False, repr=False)
    # returns the encoded input image with a given id; None if the request has no images
    inputs: Callable[[str], bytes] | None = field(default=None, compare=False, repr=False)

    def pil(self) -> Image:
        """Return the image as upright RGB uint8. Raises OSError or ValueError if it is damaged."""
        if self.decoded is not None:
            return self.decoded
        source = self.image if self.image is not None else self.path
        if source is None:
            raise ValueError(f"candidate {self.id} holds no image")
        return rgb(source)

    def native(self) -> Image:
        """Return `pil()`, but in the original mode if that mode resizes differently from RGB (see images.native)."""
        source = self.image if self.image is not None else self.path
        image = native(source) if source is not None else None
        return self.pil() if image is None else image

    def input_images(self, column: str) -> list[Candidate]:
        """Return the input images in a column of the request, each as a candidate whose id is the image's SHA-256.

        Returns [] if the column holds no images. Raises UsageError for an image that the run does not have.
        """
        value = self.extra.get(column)
        names = value if isinstance(value, (list, tuple)) else [value]
        if self.inputs is None or not all(isinstance(name, str) and INPUT_ID.fullmatch(name) for name in names):
            return []
        return [
            Candidate(name, self.request_id, i, 0, image=self.inputs(name), sha256=name) for i, name in enumerate(names)
        ]

    def value(self, column: str) -> Any:
        """Return the value of a column of the request (None if missing), with RGB images in place of their ids."""
        images = [image.pil() for image in self.input_images(column)]
        value = self.extra.get(column)
        return value if not images else images if isinstance(value, (list, tuple)) else images[0]


@dataclass(frozen=True)
class Score:
    """The score of a candidate. If scoring failed, `value` is None, never 0, and `error` is the reason. An aspect
    called `which_...` is a class index, so its values have no order."""

    value: float | None
    aspects: Mapping[str, float] | None = None
    text: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ScorerSpec:
    """The definition of a score. Two specs that differ in any field but `verified` define two different scores.

    verified: the published weights with which the scorer was verified, and their hashes (see prefkit/verified.py);
    "no weights" if the scorer has none, "" if it was not verified.
    """

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
    verified: str = ""
    evaluation_only: bool = False


@dataclass(frozen=True)
class Comparison:
    """A judge's verdict on two candidates. outcome: 'a', 'b', 'tie' or None (failed).

    judge: a model, or an annotator's hashed name. probability: that a is better. order: the order in which the two were
    shown, 'ab' or 'ba', or 'both' for a verdict combined from both orders. time: Unix time in seconds, if known.
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
    """The random time and noise of each group in a batch, shared by all samples of the group.

    time:  [G] float64 or int64, in the units of the family's schedule (index, or sigma in 0..1)
    noise: [G, ...] float32, one standard normal tensor per group in the latents' layout
    """

    time: torch.Tensor
    noise: torch.Tensor


@dataclass
class Errors:
    """The network's prediction errors on the samples of a batch, for one head (one named output of the family).

    mean:     [B] float32, the mean over ALL elements of weight * residual^2
    residual: [B, ...] float32 = weight * (prediction - target), proportional to the gradient of `mean` with respect to the
              prediction; None unless the objective needs it
    """

    mean: torch.Tensor
    residual: torch.Tensor | None = None


@dataclass
class Groups:
    """The grouping of a batch's samples: a pair is a group of 2, a list is a group of m, a single is a group of 1.

    Every field is [B], one value per sample. index: the sample's group, 0..G-1. rank: 0 for the best of its group.
    label: 1 for a winner (or desirable sample), 0 for a loser. score_gap and p (soft label: probability that the winner
    wins) are equal within a group.
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
    """Scores the images of candidates. The constructor only stores options; `load` loads weights."""

    Options: type
    requires: frozenset[str]
    scope: str

    def spec(self) -> ScorerSpec: ...
    def load(self, device: str, dtype: str) -> None: ...
    def score(self, batch: Sequence[Candidate]) -> list[Score]: ...


@runtime_checkable
class Strategy(Protocol):
    """Chooses pairs (win, lose, gap) of a request's N candidates. value [N]: combined scores; scores [N, S].

    A missing score is NaN. Optional methods: `fit(table)` is called once with the scores of the whole run (a ScoreTable
    of prefkit/pair); `block(value, scores)` handles many requests with equally many candidates at once.
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
    """Supports one kind of model: adds noise to its data and computes the network's prediction errors.

    A family whose data has no pixels, such as meshes, sets `from_payload = True`. It then gets all candidates of all
    generators, with their payloads.
    """

    net: Any

    def latents(self, candidates: Sequence[Candidate]) -> list[Any]: ...
    def conditions(self, requests: Sequence[Request], size: tuple[int, int]) -> list[Any]: ...
    def draw(self, group: str, visit: int, like: Any) -> Draw: ...
    def residuals(self, net: Any, latents: Any, draw: Draw, condition: Any) -> dict[str, torch.Tensor]: ...
    def decode(self, latents: Any) -> list[Image]: ...


def _schema(columns: str) -> pa.Schema:
    """Build an Arrow schema from `"name:type name:type"`."""
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
