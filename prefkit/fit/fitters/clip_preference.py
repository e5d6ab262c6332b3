"""A CLIP tuned on which of two images is better for its prompt, for the scorers pickscore, sciscore and clip.

As PickScore (Kirstain et al., arXiv 2305.01569): the softmax over the two scaled cosines exp(logit_scale) * cos(image, prompt)
against the label, soft where the data says how sure it is (a column p, or a vote's probability; a tie is 0.5). With
`explicit_weight` (SciScore, arXiv 2504.13129: 0.25, and `reduction: sum`) also over each row's explicit and superficial prompt:
the better image is to fit the explicit one, the worse the superficial.

Prompts are split into training, validation and test; the validation loss alone says when to stop, and the test prompts are
looked at twice: before tuning and after. Reported: accuracy on the pairs that are no ties (equal scores count as half), with 95 %
bootstrap intervals over prompts. Devices, precision and processes are accelerate's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import UsageError


@dataclass(frozen=True)
class ClipPreferenceFit:
    #: folder of a pair dataset (RUN/pairs/NAME, or any with jpg_0, jpg_1, label_0, label_1, caption as Parquet)
    pairs: str = ""
    #: or: run folder whose comparisons are the votes
    run: str = ""
    #: which of the run's comparisons
    votes: str = ""
    #: CLIP to start from; transformers: folder or Hub id; open_clip: architecture, local-dir:FOLDER, or tiny
    model: str = ""
    #: transformers: folder or Hub id of tokenizer and image processor, where they are not the model's own
    processor: str | None = None
    #: open_clip tag or checkpoint, where the model is an architecture
    pretrained: str | None = None
    #: transformers | open_clip
    library: Literal["transformers", "open_clip"] = "transformers"
    #: weight of SciScore's explicit term; 0 leaves it out
    explicit_weight: float = 0.0
    #: column (pairs) or request key (votes) of the explicit prompt
    explicit: str = "explicit"
    #: and of the superficial one
    superficial: str = "superficial"
    #: mean | sum over the batch (SciScore's)
    reduction: Literal["mean", "sum"] = "mean"
    #: pair | prompt (each prompt counts the same within a batch, as in PickScore; with mean)
    weighting: Literal["pair", "prompt"] = "pair"
    learning_rate: float = 3e-6
    #: of matrices; gains, biases and the scale are not decayed
    weight_decay: float = 0.3
    #: pairs a batch and process
    batch_size: int = 16
    #: batches whose gradients make one step
    accumulate: int = 1
    #: at most; the learning rate falls to nothing by then
    steps: int = 2000
    #: steps until the learning rate is reached
    warmup: int = 100
    #: largest norm of a gradient
    clip_norm: float = 1.0
    #: steps from one validation to the next
    validate_every: int = 50
    #: validations without a better loss before it stops
    patience: int = 5
    #: share of the prompts
    validation_share: float = 0.1
    #: share of the prompts
    test_share: float = 0.1
    #: no | bf16 | fp16
    precision: Literal["no", "bf16", "fp16"] = "no"
    #: cpu, or null = what accelerate finds
    device: Literal["cpu"] | None = None
    seed: int = 0
    #: folder to write; empty = fitted/clip_preference
    out: str = ""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.steps, self.validate_every, self.patience) < 1:
            raise UsageError(
                "clip_preference: batch_size, accumulate, steps, validate_every and patience are at least 1."
            )
        if (
            not (0 < self.validation_share < 1 and 0 < self.test_share < 1)
            or self.validation_share + self.test_share >= 1
        ):
            raise UsageError("clip_preference: validation_share and test_share lie above 0 and together below 1.")
        if self.reduction == "sum" and self.weighting == "prompt":
            raise UsageError("clip_preference: prompts are weighted within a mean; leave out weighting, or reduction.")


class ClipPreferenceFitter:
    Options = ClipPreferenceFit

    def __init__(self, options: ClipPreferenceFit) -> None:
        if not options.model:
            raise UsageError("clip_preference: which CLIP shall be tuned? Set --model.")
        if options.library == "open_clip" and options.model.startswith("hf-hub:"):
            raise UsageError("clip_preference: fetch the model first and give its folder as local-dir:FOLDER.")
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it is there. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.preferences import read_preferences
        from prefkit.score.embed.encoder import Encoder
        from prefkit.score.fitted import describe

        o = self.options
        texts = (o.explicit, o.superficial) if o.explicit_weight else ()
        data = read_preferences("clip_preference", o.pairs, o.run, o.votes, texts)
        encoder = Encoder(o.model, o.pretrained, library=o.library, processor=o.processor)
        folder = FitFolder("clip_preference", o.out, o, {"pairs": data.content}, describe(encoder))
        present = folder.present()
        return present if present is not None else self._fit(folder, data, encoder, texts)

    def _fit(self, folder: Any, data: Any, encoder: Any, texts: tuple[str, ...]) -> dict[str, Any]:
        import time

        from prefkit.fit.clip_tune import Tuning
        from prefkit.fit.preferences import split_by_text

        o = self.options
        captions = [row.caption for row in data.rows]
        train, validation, test = split_by_text("clip_preference", captions, o.validation_share, o.test_share, o.seed)
        if all(data.rows[n].p == 0.5 for n in train):
            raise UsageError("clip_preference: all pairs to train on are ties; nothing can be learned from them.")
        tuning = Tuning(o, encoder, data, texts)
        before = [right(data, part, tuning.scores(part)) for part in (validation, test)]
        begun = time.monotonic()
        course = tuning.train(train, validation)
        course["seconds_per_step"] = round((time.monotonic() - begun) / course["steps"], 3)
        after = [right(data, part, tuning.scores(part)) for part in (validation, test)]
        found = {
            "counts": {"pairs": len(captions), "prompts": len(set(captions))}
            | {"train": len(train), "validation": len(validation), "test": len(test)}
            | {"ties": sum(row.p == 0.5 for row in data.rows)},
            "training": course,
            "validation": measured(before[1], after[1])
            | {"accuracy_validation": measured(before[0], after[0])["accuracy"]},
        }

        def save(hidden: Path) -> None:
            tuning.save(hidden)

        spec = found if not tuning.accelerator.is_main_process else folder.write(found, save)
        tuning.accelerator.wait_for_everyone()
        return spec


def right(data: Any, numbers: list[int], scores: Any) -> dict[str, Any]:
    """Of the pairs that are no ties: 1 where the likelier image scores higher, 0.5 where both score the same."""
    kept = [i for i, n in enumerate(numbers) if data.rows[n].p != 0.5]
    gaps = (scores[:, 0] - scores[:, 1]).double().tolist()
    values = [0.5 if gaps[i] == 0 else float((gaps[i] > 0) == (data.rows[numbers[i]].p > 0.5)) for i in kept]
    return {"values": values, "texts": [data.rows[numbers[i]].caption for i in kept]}


def measured(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    from prefkit.fit.preferences import clustered

    gain = [b - a for a, b in zip(before["values"], after["values"])]
    return {
        "accuracy": clustered(after["values"], after["texts"]),
        "accuracy_before": clustered(before["values"], before["texts"]),
        "gain": clustered(gain, after["texts"]),
    }


plugin = ClipPreferenceFitter
