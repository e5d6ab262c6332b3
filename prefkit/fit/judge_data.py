"""Training data for a judge: rated images, or pairs shown side by side, in the format of TRL's trainers.

The prompt of an example is the scorer's question, formatted with the model's chat template up to the start of the
answer. The answer is a level (or A or B), the token whose probability the scorer reads, and the end token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.fit.preferences import open_run, rejected_ids
from prefkit.fit.tables import numbers, read_table
from prefkit.paths import named, read_regular
from prefkit.score.judge.question import Question
from prefkit.score.judge.ratings import Scale
from prefkit.store.reader import CandidateReader
from prefkit.types import Candidate, digest

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Rated:
    """An image with its prompt and the mean of its ratings."""

    candidate: Candidate
    rating: float


def read_ratings(path: str) -> tuple[list[Rated], str]:
    """Read a table with the columns image (path relative to the table's folder), prompt and rating.

    Returns the rows and their digest. Ratings of the same image for the same prompt are averaged. Raises UsageError.
    """
    table = read_table("mllm.ratings", path, ("image", "prompt", "rating"), ids=("image",))
    base = Path(path).expanduser().parent
    table["prompt"] = table["prompt"].map(str)
    table["rating"] = numbers(table, "rating", f"mllm.ratings: {path}")
    means = table.groupby(["image", "prompt"], sort=True)["rating"].mean()
    rows = []
    for n, (image, prompt, rating) in enumerate(means.reset_index().itertuples(index=False)):
        try:
            file = named(base, str(image))
            sha = hashlib.sha256(read_regular(file)).hexdigest()
        except (OSError, ValueError) as error:
            raise UsageError(f"mllm.ratings: {path} names an image that cannot be read: {error}.") from error
        candidate = Candidate(str(n), str(prompt), 0, 0, str(prompt), path=str(file), sha256=sha)
        rows.append(Rated(candidate, float(rating)))
    return rows, _content(rows)


def read_scores(run: str, alias: str) -> tuple[list[Rated], str]:
    """Read a run's scores called `alias` as ratings. Returns the rows and their digest. Raises UsageError."""
    store = open_run("mllm.scores", run, "scores", alias)
    prompts = {request.request_id: request.prompt for request in store.requests()}
    rejected = rejected_ids(store)
    reader = CandidateReader(store)
    frame = store.scores(alias).frame(["id", "value"]).dropna(subset=["value"]).sort_values("id")
    rows = []
    for cid, value in frame.itertuples(index=False):
        if cid not in rejected and cid in reader:
            row, image = reader[cid], reader.image(cid)
            if image is None:  # a mesh that was not rendered
                continue
            request = row["request_id"]
            rows.append(
                Rated(Candidate(cid, request, 0, 0, prompts[request], image, sha256=row["sha256"]), float(value))
            )
    return rows, _content(rows)


def _content(rows: Sequence[Rated]) -> str:
    return digest([[row.candidate.sha256, row.candidate.prompt, row.rating] for row in rows])


def level(rating: float, scale: Scale) -> str:
    """Return the label of the level nearest to a rating (the lower on a tie). Raises UsageError outside the scale."""
    if not scale.values[0] <= rating <= scale.values[-1]:
        raise UsageError(f"mllm: a rating of {rating:g} is outside the scale {', '.join(scale.labels)}. Set --scale.")
    return scale.labels[min(range(len(scale.values)), key=lambda i: abs(scale.values[i] - rating))]


class Examples:
    """Questions and answers. `dataset` returns them as a datasets.Dataset that decodes images batch by batch."""

    def __init__(self, processor: Any, questions: Sequence[Question], answers: Sequence[tuple[str, ...]]) -> None:
        self.processor, self.questions, self.answers = processor, questions, answers

    def dataset(self) -> datasets.Dataset:
        """Return a dataset with columns prompt, images, and completion (one answer) or chosen and rejected (two)."""
        import datasets

        table = datasets.Dataset.from_dict({"row": list(range(len(self.questions)))})
        table.set_transform(self._rows)
        return table

    def _rows(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        names = ("completion",) if len(self.answers[0]) == 1 else ("chosen", "rejected")
        end = self.processor.tokenizer.eos_token
        columns: dict[str, list[Any]] = {name: [] for name in ("prompt", "images", *names)}
        for n in batch["row"]:
            columns["prompt"].append(prompt_text(self.processor, self.questions[n]))
            columns["images"].append([part.pil() for part in self.questions[n].parts if not isinstance(part, str)])
            for name, answer in zip(names, self.answers[n]):
                columns[name].append(answer + end)
        return columns


def prompt_text(processor: Any, question: Question) -> str:
    """Format the question with the chat template up to the start of the answer, as the scorer's back end does."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in question.parts]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def check_tokens(processor: Any, labels: Sequence[str], reads: Callable[[str, str], bool]) -> None:
    """Raise UsageError if the tokenizer does not encode every answer as a single token."""
    for label in labels:
        ids = processor.tokenizer(label, add_special_tokens=False).input_ids
        if len(ids) != 1 or not reads(processor.tokenizer.decode(ids), label):
            raise UsageError(
                f"mllm: {label!r} must be a single token, but has {len(ids)} in this model. Use levels such as 1 to 9."
            )
