"""What a judge learns from: rated images, or pairs shown side by side, as TRL's trainers take them.

The prompt of an example is what the judge's scorer will ask, drawn through the model's own chat template up to where its answer
begins; the answer is a level (or A, B) and the end token. So what is trained is the very token that is read when scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.fit.tables import numbers, read_table
from prefkit.paths import named, read_regular
from prefkit.score.judge.question import Question
from prefkit.score.judge.ratings import Scale
from prefkit.types import Candidate, digest

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Rated:
    """An image with its prompt and the mean of its ratings."""

    candidate: Candidate
    rating: float


def read_ratings(path: str) -> tuple[list[Rated], str]:
    """A table of image (path from the table's folder), prompt and rating -> rows, and a digest of them. Several ratings of one
    image with one prompt become their mean. Raises UsageError."""
    import hashlib

    table = read_table("mllm.ratings", path, ("image", "prompt", "rating"), ids=("image",))
    base = Path(path).expanduser().parent
    table["prompt"] = table["prompt"].map(str)
    table["rating"] = numbers(table, "rating", f"mllm.ratings: {path}")
    means = table.groupby(["image", "prompt"], sort=True)["rating"].mean()
    found, content = [], []
    for n, (image, prompt, rating) in enumerate(means.reset_index().itertuples(index=False)):
        try:
            file = named(base, str(image))
            sha = hashlib.sha256(read_regular(file)).hexdigest()
        except (OSError, ValueError) as error:
            raise UsageError(f"mllm.ratings: {path} names an image that cannot be read: {error}.") from error
        candidate = Candidate(str(n), str(prompt), 0, 0, str(prompt), path=str(file), sha256=sha)
        found.append(Rated(candidate, float(rating)))
        content.append([sha, str(prompt), float(rating)])
    return found, digest(content)


def read_scores(run: str, alias: str) -> tuple[list[Rated], str]:
    """The scores that a run has under this name. Raises UsageError."""
    from prefkit.store import Store
    from prefkit.store.reader import CandidateReader

    store = Store(Path(run).expanduser())
    if alias not in store.names("scores"):
        known = ", ".join(store.names("scores")) or "none"
        raise UsageError(f"mllm.scores: {run} has no scores {alias!r} (it has {known}).")
    prompts = {request.request_id: request.prompt for request in store.requests()}
    decided = store.decisions()
    refused = set(decided.loc[decided["verdict"].isin(("reject", "remove")), "id"])
    reader = CandidateReader(store)
    frame = store.scores(alias).frame(["id", "value"]).dropna(subset=["value"]).sort_values("id")
    found, content = [], []
    for cid, value in frame.itertuples(index=False):
        if cid in refused or cid not in reader:
            continue
        row = reader[cid]
        prompt, image = prompts[row["request_id"]], reader.image(cid)
        found.append(Rated(Candidate(cid, row["request_id"], 0, 0, prompt, image, sha256=row["sha256"]), float(value)))
        content.append([row["sha256"], prompt, float(value)])
    return found, digest(content)


def level(rating: float, scale: Scale) -> str:
    """The label of the nearest level; halfway the lower one. Raises UsageError for a rating beyond the ends of the scale."""
    if not scale.values[0] <= rating <= scale.values[-1]:
        raise UsageError(f"mllm: a rating of {rating:g} is beyond the scale {', '.join(scale.labels)}; set --scale.")
    return scale.labels[min(range(len(scale.values)), key=lambda i: abs(scale.values[i] - rating))]


class Examples:
    """Questions with their answers -> rows of a datasets.Dataset whose images are decoded when a batch needs them."""

    def __init__(self, processor: Any, questions: Sequence[Question], answers: Sequence[tuple[str, ...]]) -> None:
        self.processor, self.questions, self.answers = processor, questions, answers

    def dataset(self) -> datasets.Dataset:
        """Columns prompt, images, and completion (one answer) or chosen and rejected (two)."""
        import datasets

        table = datasets.Dataset.from_dict({"row": list(range(len(self.questions)))})
        table.set_transform(self._rows)
        return table

    def _rows(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        names = ("completion",) if len(self.answers[0]) == 1 else ("chosen", "rejected")
        end = self.processor.tokenizer.eos_token
        found: dict[str, list[Any]] = {name: [] for name in ("prompt", "images", *names)}
        for n in batch["row"]:
            parts = self.questions[n].parts
            found["prompt"].append(asked(self.processor, self.questions[n]))
            found["images"].append([part.pil() for part in parts if not isinstance(part, str)])
            for name, answer in zip(names, self.answers[n]):
                found[name].append(answer + end)
        return found


def asked(processor: Any, question: Question) -> str:
    """The text of the question up to where the answer begins, as the scorer's back end puts it to the model."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in question.parts]
    talk = [{"role": "user", "content": content}]
    return processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)


def check_tokens(processor: Any, labels: Sequence[str], reads: Callable[[str, str], bool]) -> None:
    """Raises UsageError for an answer that is not one token where it will be read."""
    for label in labels:
        ids = processor.tokenizer(label, add_special_tokens=False).input_ids
        if len(ids) != 1 or not reads(processor.tokenizer.decode(ids), label):
            raise UsageError(
                f"mllm: {label!r} is {len(ids)} tokens of this model; take levels of one token, such as 1 to 9."
            )
