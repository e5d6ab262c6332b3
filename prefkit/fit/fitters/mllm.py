"""A multimodal judge tuned on ratings or on pairs with TRL, for the scorer mllm and for comparisons.

    ratings   `trl.SFTTrainer` trains the judge to answer the scorer's question (its `template` and `scale`) with the
              level nearest to the rating. Metrics on test prompts: Pearson and Spearman correlation of the scorer's
              expected value with the ratings, and mean absolute error
    pairs     `trl.DPOTrainer` trains the judge to prefer the better image, A or B, in a comparison, with each pair in
              both orders. Metrics on test prompts: accuracy over both orders (a pair with contradicting verdicts counts
              as half) and the fraction of contradictions

Metrics are computed before and after tuning, with 95 % bootstrap intervals over prompts. `lora_rank` adds adapters
(peft), which are merged into the written weights; 0 tunes all weights. Validation prompts decide when to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prefkit.distributed import group
from prefkit.errors import UsageError
from prefkit.fit.options import check_fractions, check_positive


@dataclass(frozen=True)
class MllmFit:
    #: .csv, .jsonl or .parquet with the columns image (path relative to the table's folder), prompt and rating
    ratings: str = ""
    #: alternative: folder of a pair dataset (RUN/pairs/NAME)
    pairs: str = ""
    #: alternative: folder of a run, with `scores` (used as ratings) or `votes` (used as pairs)
    run: str = ""
    #: name of the run's scores to use as ratings
    scores: str = ""
    #: name of the run's comparisons to use as pairs
    votes: str = ""
    #: folder or Hub id of the image-text-to-text model to start from
    model: str = ""
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None
    #: run code from the model's repository
    trust_remote_code: bool = False
    #: template of the question (set it for the scorer too); empty = default for scores (ratings) or comparisons (pairs)
    template: str = ""
    #: levels of the ratings from worst to best; set the same levels for the scorer
    scale: tuple[str, ...] = ("1", "2", "3", "4", "5")
    #: rank of the adapters; 0 tunes all weights
    lora_rank: int = 16
    #: scale of the adapters; null = twice the rank
    lora_alpha: int | None = None
    #: modules that get an adapter: all-linear, or names separated by commas
    lora_targets: str = "all-linear"
    #: beta of DPO (only for pairs)
    beta: float = 0.1
    learning_rate: float = 1e-4
    #: examples per batch and process
    batch_size: int = 4
    #: batches per optimizer step
    accumulate: int = 4
    #: maximum number of epochs
    epochs: int = 3
    #: fraction of the steps for warm-up
    warmup_share: float = 0.05
    #: epochs without a lower validation loss before training stops
    patience: int = 1
    #: fraction of the prompts for validation
    validation_share: float = 0.1
    #: fraction of the prompts for testing
    test_share: float = 0.1
    #: dtype of the model: float32 | bfloat16 (adapters stay float32)
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: gradient checkpointing: recompute activations in the backward pass to save memory
    checkpointing: bool = False
    #: cpu; null = the device that accelerate detects
    device: Literal["cpu"] | None = None
    seed: int = 0
    #: folder to write; empty = fitted/mllm
    out: str = ""

    def __post_init__(self) -> None:
        check_positive("mllm", self, "batch_size", "accumulate", "epochs", "patience")
        check_fractions("mllm", self)
        if self.lora_rank < 0:
            raise UsageError("mllm: lora_rank must be at least 0.")


class MllmFitter:
    Options = MllmFit
    shared = True  # all processes of a launch tune together

    def __init__(self, options: MllmFit) -> None:
        sources = [bool(options.ratings), bool(options.pairs), bool(options.scores), bool(options.votes)]
        if sum(sources) != 1 or bool(options.run) != bool(options.scores or options.votes):
            raise UsageError(
                "mllm: give one of --ratings TABLE, --pairs FOLDER, --run RUN --scores NAME or --run RUN --votes NAME."
            )
        if not options.model:
            raise UsageError("mllm: --model is not set. Give the image-text-to-text model to tune.")
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it already exists. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.judge_tune import PairTask, RatingTask, Tuning
        from prefkit.score.judge.local import LocalBackend
        from prefkit.score.judge.question import JudgeOptions

        o = self.options
        backend = LocalBackend(JudgeOptions(o.model, o.revision, o.trust_remote_code))
        task = (RatingTask if o.ratings or o.scores else PairTask)(o, backend)
        folder = FitFolder("mllm", o.out, o, {task.name: task.content, "model": backend.about()["revision"]})
        present = group().lead(folder.present)
        if present is not None:
            return present
        tuning = Tuning(o, task, backend)
        results = tuning.run()
        spec = folder.write(results, tuning.save) if tuning.main else results
        tuning.wait()
        return spec


plugin = MllmFitter
