"""Agreement of the text in the image with the requested text: 1 - edit distance / length, as in Flow-GRPO (arXiv 2505.05470).

    value = max(0, 1 - d / len(requested)), d the Levenshtein distance between the text read and the text requested,

both without spaces and in lower case; d = 0 if the text read contains the text requested. The requested text is the
request's `text`, or with `asked: quoted` the parts of the prompt in double quotes. An image without text scores 0, which is
a reading, not a failure. Read offline by rapidocr-onnxruntime (pip install rapidocr-onnxruntime).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.score.embed.weights import verified_as
from prefkit.types import Candidate, Score, ScorerSpec

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
PACKAGE = "rapidocr-onnxruntime"
#: SHA-256 of the text detector, the text recognizer and the direction classifier
VERIFIED = {
    "PP-OCRv4, rapidocr-onnxruntime 1.4.4": (
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    )
}


@dataclass(frozen=True)
class OcrOptions:
    #: quoted (the parts of the prompt in double quotes) | text (the request's column `text`)
    asked: Literal["quoted", "text"] = "quoted"
    #: readings with a lower confidence of the OCR model are dropped
    min_confidence: float = 0.5


class Ocr:
    Options = OcrOptions
    scope = "absolute"

    def __init__(self, options: OcrOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", "prompt"} | ({"text"} if options.asked == "text" else set()))
        self.reader: Any = None

    def spec(self) -> ScorerSpec:
        """Raises UsageError if the OCR package is not installed."""
        try:
            installed = version(PACKAGE)
        except PackageNotFoundError as error:
            raise UsageError(f"ocr: {PACKAGE} is not installed: pip install {PACKAGE}.") from error
        return ScorerSpec(
            "ocr",
            "1",
            weights=f"{PACKAGE} {installed}",
            preprocessing="RGB uint8 turned to BGR",
            formula=f"max(0, 1 - edits / length), {self.options.asked}, confidence {self.options.min_confidence:g}",
            range=(0.0, 1.0),
            licence="Apache-2.0",
            verified=verified_as(VERIFIED, weight_files()),
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the OCR package is not installed."""
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise UsageError(f"ocr: {PACKAGE} could not be imported: {error}. pip install {PACKAGE}.") from error
        self.reader = RapidOCR()

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._score(c) for c in batch]

    def _score(self, candidate: Candidate) -> Score:
        asked = asked_for(candidate, self.options.asked)
        if not plain(asked):
            return Score(None, error="the request has no text (none in double quotes, or an empty `text`)")
        read = self._read(candidate)
        return Score(agreement(asked, read), text=read)

    def _read(self, candidate: Candidate) -> str:
        import numpy as np

        lines, _ = self.reader(np.asarray(candidate.pil())[:, :, ::-1])
        return " ".join(text for _, text, confidence in lines or [] if float(confidence) >= self.options.min_confidence)


def weight_files() -> list[Path]:
    """Return the ONNX files of the installed OCR package, which is not imported for this."""
    module = find_spec("rapidocr_onnxruntime")
    folders = module.submodule_search_locations if module is not None else None
    return sorted(file for folder in folders or () for file in Path(folder).glob("models/*.onnx"))


def asked_for(candidate: Candidate, where: str) -> str:
    if where == "text":
        return str(candidate.extra["text"])
    return " ".join(straight or curly for straight, curly in QUOTED.findall(candidate.prompt))


def plain(text: str) -> str:
    return "".join(text.split()).casefold()


def agreement(asked: str, read: str) -> float:
    """1 - edit distance / length, in 0..1; 1 if `read` contains `asked`."""
    asked, read = plain(asked), plain(read)
    return 1.0 if asked in read else max(0.0, 1.0 - edits(asked, read) / len(asked))


def edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


plugin = Ocr
