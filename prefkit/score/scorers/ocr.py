"""Agreement of the text in the image with the requested text: 1 - edit distance / length, as in Flow-GRPO (arXiv 2505.05470).

    value = max(0, 1 - d / len(requested))

d is the Levenshtein distance between the recognized and the requested text, both without spaces and in lower case; it
is 0 if the recognized text contains the requested text. The requested text is the parts of the prompt in double quotes,
or with `asked: text` the request's column `text`. An image without text scores 0 and is not a failure. The package
rapidocr (pip install rapidocr onnxruntime) reads the text offline, with the PP-OCR weights that it contains; if it is
not installed, its predecessor rapidocr-onnxruntime is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefkit.errors import UsageError
from prefkit.score.embed.weights import verified_as
from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    import numpy as np

#: function of a BGR image [H, W, 3] uint8 that returns lines of text with their confidences
Reader = Callable[["np.ndarray"], Iterable[tuple[str, float]]]
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
PACKAGES = ("rapidocr", "rapidocr-onnxruntime")  # the first that is installed is used
INSTALL = "pip install rapidocr onnxruntime"
#: SHA-256 of the text detector, the text recognizer and the direction classifier
VERIFIED = {
    "PP-OCRv6 small, rapidocr 3.10.0": (
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "PP-OCRv4, rapidocr-onnxruntime 1.4.4": (
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
}


@dataclass(frozen=True)
class OcrOptions:
    #: quoted (the parts of the prompt in double quotes) | text (the request's column `text`)
    asked: Literal["quoted", "text"] = "quoted"
    #: lines of text with a lower confidence are ignored
    min_confidence: float = 0.5


class Ocr:
    Options = OcrOptions
    scope = "absolute"

    def __init__(self, options: OcrOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", "prompt"} | ({"text"} if options.asked == "text" else set()))
        self.reader: Reader

    def spec(self) -> ScorerSpec:
        """Raises UsageError if the OCR package is not installed."""
        package = installed_package()
        files = weight_files(package)
        return ScorerSpec(
            "ocr",
            "1",
            weights=f"{package} {distribution(package).version}: {', '.join(file.stem for file in files)}",
            preprocessing="RGB uint8 turned to BGR",
            formula=f"max(0, 1 - edits / length), {self.options.asked}, confidence {self.options.min_confidence:g}",
            range=(0.0, 1.0),
            licence="Apache-2.0",
            verified=verified_as(VERIFIED, files),
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the OCR package is not installed or lacks a file."""
        package = installed_package()
        try:
            self.reader = _rapidocr() if package == "rapidocr" else _rapidocr_onnxruntime()
        except ImportError as error:
            raise UsageError(f"ocr: {package} could not be imported: {error}. Run: {INSTALL}") from error

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [self._score(c) for c in batch]

    def _score(self, candidate: Candidate) -> Score:
        asked = asked_for(candidate, self.options.asked)
        if not plain(asked):
            return Score(None, error="the request has no text: none in double quotes, or an empty column `text`")
        read = self._read(candidate)
        return Score(agreement(asked, read), text=read)

    def _read(self, candidate: Candidate) -> str:
        import numpy as np

        lines = self.reader(np.asarray(candidate.pil())[:, :, ::-1])
        return " ".join(text for text, confidence in lines if float(confidence) >= self.options.min_confidence)


def installed_package() -> str:
    """Return the first of PACKAGES that is installed. Raises UsageError if none is."""
    for package in PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            continue
        return package
    raise UsageError(f"ocr: neither {' nor '.join(PACKAGES)} is installed. Run: {INSTALL}")


def weight_files(package: str) -> list[Path]:
    """Return the ONNX files that came with an OCR package, without files that it has downloaded since."""
    contents = distribution(package).files or []
    return sorted(Path(str(file.locate())) for file in contents if file.suffix == ".onnx")


def _rapidocr() -> Reader:
    """Return a reader that uses rapidocr 3. Explicit paths prevent rapidocr from downloading missing files."""
    import onnxruntime  # noqa: F401  # rapidocr imports it at the first image
    from rapidocr import RapidOCR

    paths = {kind: [f for f in weight_files("rapidocr") if f"_{kind}_" in f.stem] for kind in ("det", "cls", "rec")}
    if wrong := [kind for kind, files in paths.items() if len(files) != 1 or not files[0].is_file()]:
        raise UsageError(
            f"ocr: rapidocr {distribution('rapidocr').version} does not contain one ONNX file for {', '.join(wrong)}. "
            "Run: pip install --force-reinstall rapidocr"
        )
    chosen: dict[str, Any] = {f"{kind.title()}.model_path": str(files[0]) for kind, files in paths.items()}
    engine = RapidOCR(params=chosen | {"Global.log_level": "critical"})

    def read(bgr: np.ndarray) -> Iterable[tuple[str, float]]:
        found = engine(bgr)
        return zip(found.txts or (), found.scores or ())

    return read


def _rapidocr_onnxruntime() -> Reader:
    from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR()
    return lambda bgr: [(text, confidence) for _, text, confidence in engine(bgr)[0] or []]


def asked_for(candidate: Candidate, where: str) -> str:
    if where == "text":
        return str(candidate.extra["text"])
    return " ".join(straight or curly for straight, curly in QUOTED.findall(candidate.prompt))


def plain(text: str) -> str:
    return "".join(text.split()).casefold()


def agreement(asked: str, read: str) -> float:
    """Return 1 - edit distance / length, in 0..1; 1 if `read` contains `asked`."""
    asked, read = plain(asked), plain(read)
    return 1.0 if asked in read else max(0.0, 1.0 - edits(asked, read) / len(asked))


def edits(a: str, b: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


plugin = Ocr
