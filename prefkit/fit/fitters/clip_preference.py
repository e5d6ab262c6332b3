"""A CLIP model tuned on preferences between two images of a prompt, for the scorers pickscore, sciscore and clip.

The loss is PickScore's (Kirstain et al., arXiv 2305.01569): the cross-entropy between the label and the softmax of
the two images' scores exp(logit_scale) * cos(image, prompt). The label is soft if the data has probabilities (a
column p, or a vote's probability; a tie is 0.5). `explicit_weight` adds SciScore's term (arXiv 2504.13129, which uses
weight 0.25 and `reduction: sum`): the better image should match the row's explicit prompt, the worse image its
superficial prompt.

Prompts are split into training, validation and test. Only the validation loss decides when to stop; the test prompts
are evaluated twice, before and after tuning. The metric is the accuracy on the pairs that are not ties (equal scores
count as half), with 95 % bootstrap intervals over prompts. Pairs with explicit and superficial prompts also get controls:
a linear bag of words, which sees no image; the prompt without its condition; the explicit prompt, as a ceiling. accelerate
manages devices, precision and processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.fit.options import check_fractions, check_positive


@dataclass(frozen=True)
class ClipPreferenceFit:
    #: pair dataset: RUN/pairs/NAME, or a folder of Parquet files with jpg_0, jpg_1, label_0, label_1 and caption
    pairs: str = ""
    #: alternative to pairs: folder of a run with comparisons; needs `votes`
    run: str = ""
    #: name of the run's comparisons to use
    votes: str = ""
    #: CLIP to start from. transformers: folder or Hub id; open_clip: architecture, local-dir:FOLDER, or tiny
    model: str = ""
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: folder or Hub id of the tokenizer and image processor (transformers only); null = from the model
    processor: str | None = None
    #: open_clip tag or checkpoint file, if the model is an architecture
    pretrained: str | None = None
    #: library that loads the model: transformers | open_clip
    library: Literal["transformers", "open_clip"] = "transformers"
    #: weight of SciScore's explicit term; 0 omits it
    explicit_weight: float = 0.0
    #: column (pairs) or request key (votes) with the explicit prompt
    explicit: str = "explicit"
    #: column (pairs) or request key (votes) with the superficial prompt
    superficial: str = "superficial"
    #: column or key with further wordings of the prompt, as a list; each training step draws one of them, and one of a
    #: list of explicit or superficial prompts. Evaluations use the first
    implicit: str = "implicit"
    #: column or key with the prompt without its condition, for a control; where it is missing, the words that prompt,
    #: explicit and superficial prompt share
    subject: str = "subject"
    #: column or key by whose values (such as law) the test accuracy is also reported; null = none
    by: str | None = None
    #: splits of the run's requests that are the test pairs (votes only); empty = `test_share` of the prompts
    test_splits: list[str] = field(default_factory=list)
    #: reduction of the loss over a batch: mean | sum (as in SciScore)
    reduction: Literal["mean", "sum"] = "mean"
    #: weight of a pair's loss: pair (1) | prompt (1 / its prompt's pairs, as in PickScore; needs reduction: mean)
    weighting: Literal["pair", "prompt"] = "pair"
    learning_rate: float = 3e-6
    #: weight decay of weight matrices; gains, biases and the logit scale have none
    weight_decay: float = 0.3
    #: pairs per batch and process
    batch_size: int = 16
    #: batches per optimizer step
    accumulate: int = 1
    #: maximum number of optimizer steps; the learning rate falls linearly to 0 at the last one
    steps: int = 2000
    #: steps of linear warm-up
    warmup: int = 100
    #: maximum gradient norm
    clip_norm: float = 1.0
    #: steps between validations
    validate_every: int = 50
    #: validations without a lower loss before training stops
    patience: int = 5
    #: fraction of the prompts for validation
    validation_share: float = 0.1
    #: fraction of the prompts for testing
    test_share: float = 0.1
    #: mixed precision: no | bf16 | fp16
    precision: Literal["no", "bf16", "fp16"] = "no"
    #: cpu; null = the device that accelerate detects
    device: Literal["cpu"] | None = None
    seed: int = 0
    #: folder to write; empty = fitted/clip_preference
    out: str = ""

    def __post_init__(self) -> None:
        positive = ("batch_size", "accumulate", "steps", "validate_every", "patience")
        check_positive("clip_preference", self, *positive)
        check_fractions("clip_preference", self)
        if self.reduction == "sum" and self.weighting == "prompt":
            raise UsageError("clip_preference: `weighting: prompt` needs `reduction: mean`; change one of the two.")
        if self.test_splits and self.pairs:
            raise UsageError("clip_preference: test_splits needs --run and --votes: pairs have no splits.")


class ClipPreferenceFitter:
    Options = ClipPreferenceFit

    def __init__(self, options: ClipPreferenceFit) -> None:
        if not options.model:
            raise UsageError("clip_preference: --model is not set. Give the CLIP model to tune.")
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it already exists. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.preferences import read_preferences
        from prefkit.score.embed.encoder import Encoder
        from prefkit.score.fitted import describe

        o = self.options
        texts = (o.explicit, o.superficial) if o.explicit_weight else ()
        further = [name for name in (o.implicit, o.explicit, o.superficial, o.subject, o.by) if name]
        data = read_preferences("clip_preference", o.pairs, o.run, o.votes, texts, further)
        if o.by and not any(o.by in row.texts for row in data.rows):
            raise UsageError(
                f"clip_preference.by: no pair has a text under {o.by!r}. Name another column, or omit --by."
            )
        encoder = Encoder(o.model, o.pretrained, library=o.library, processor=o.processor, revision=o.revision)
        folder = FitFolder("clip_preference", o.out, o, {"pairs": data.content}, describe(encoder))
        present = folder.present()
        return present if present is not None else self._fit(folder, data, encoder, texts)

    def _fit(self, folder: Any, data: Any, encoder: Any, texts: tuple[str, ...]) -> dict[str, Any]:
        from prefkit.fit.clip_tune import Tuning
        from prefkit.fit.preferences import split_preferences
        from prefkit.fit.wording.controls import Controls, accuracy

        o = self.options
        captions = [row.caption for row in data.rows]
        shares = (o.validation_share, o.test_share)
        train, validation, test = split_preferences("clip_preference", data.rows, o.test_splits, shares, o.seed)
        if all(data.rows[n].p == 0.5 for n in train):
            raise UsageError("clip_preference: all training pairs are ties. Add pairs with a winner.")
        tuning = Tuning(o, encoder, data, texts)
        controls = Controls(o.explicit, o.superficial, o.subject)
        prompts = [controls.explicit_prompt, controls.bare_prompt]
        before = [tuning.scores(part, prompts) for part in (validation, test)]
        started = time.monotonic()
        course = tuning.train(train, validation)
        course["seconds_per_step"] = round((time.monotonic() - started) / course["steps"], 3)
        after = [tuning.scores(part, prompts) for part in (validation, test)]
        measures = controls.measures(data.rows, (train, validation, test), before[1], after[1])
        results = {
            "counts": {"pairs": len(captions), "prompts": len(set(captions))}
            | {"train": len(train), "validation": len(validation), "test": len(test)}
            | {"ties": sum(row.p == 0.5 for row in data.rows)},
            "training": course,
            **controls.report([data.rows[n] for n in test], measures, o.by, split=len(o.test_splits) > 1),
        }
        held = [data.rows[n] for n in validation]
        results["validation"]["accuracy_validation"] = accuracy(held, after[0][..., 0])
        spec = folder.write(results, tuning.save) if tuning.accelerator.is_main_process else results
        tuning.accelerator.wait_for_everyone()
        return spec


plugin = ClipPreferenceFitter
