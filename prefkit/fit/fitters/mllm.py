"""A multimodal judge tuned on ratings or on pairs, for the scorer mllm and for comparisons, through TRL.

    ratings   `trl.SFTTrainer`: the question of the scorer mllm (its `template` and `scale`), answered with the level nearest to
              the rating. Reported on held-out prompts: correlation with the ratings (Pearson; Spearman), mean absolute error,
              and how often two images' order is right, by the scorer's own expected value
    pairs     `trl.DPOTrainer`: the question of a comparison, each pair in both orders, A against B. Reported on held-out prompts:
              accuracy in both orders (a pair judged one way and then the other counts as half) and how often the verdict flips

Both before and after tuning, with 95 % bootstrap intervals over prompts. Adapters by `lora_rank` (peft), merged into what is
written; 0 tunes all weights. Prompts to validate with stop it early and are apart from those of the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prefkit.distributed import group
from prefkit.errors import UsageError


@dataclass(frozen=True)
class MllmFit:
    #: .csv, .jsonl or .parquet with the columns image (path from the table's folder), prompt and rating
    ratings: str = ""
    #: or: folder of a pair dataset (RUN/pairs/NAME)
    pairs: str = ""
    #: or: run folder, with `scores` (ratings) or `votes` (pairs)
    run: str = ""
    #: which of the run's scores are the ratings
    scores: str = ""
    #: which of the run's comparisons are the pairs
    votes: str = ""
    #: folder or Hub id of the image-text-to-text model to start from
    model: str = ""
    #: Hub revision
    revision: str | None = None
    #: run code that comes with the model
    trust_remote_code: bool = False
    #: the question; give the scorer the same. Empty = that of the scorer (ratings), of a comparison (pairs)
    template: str = ""
    #: levels from worst to best; give the scorer the same
    scale: tuple[str, ...] = ("1", "2", "3", "4", "5")
    #: of the adapters; 0 tunes all weights
    lora_rank: int = 16
    #: null = twice the rank
    lora_alpha: int | None = None
    #: modules with an adapter; all-linear, or names separated by commas
    lora_targets: str = "all-linear"
    #: of DPO (pairs)
    beta: float = 0.1
    learning_rate: float = 1e-4
    #: examples a batch and process
    batch_size: int = 4
    #: batches whose gradients make one step
    accumulate: int = 4
    #: at most
    epochs: int = 3
    #: share of the steps in which the learning rate rises
    warmup_share: float = 0.05
    #: epochs without a better validation loss before it stops
    patience: int = 1
    #: share of the prompts
    validation_share: float = 0.1
    #: share of the prompts
    test_share: float = 0.1
    #: float32 | bfloat16 (with adapters: these stay float32)
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: compute activations again in the backward pass, for less memory
    checkpointing: bool = False
    #: cpu, or null = what accelerate finds
    device: Literal["cpu"] | None = None
    seed: int = 0
    #: folder to write; empty = fitted/mllm
    out: str = ""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.epochs, self.patience) < 1 or self.lora_rank < 0:
            raise UsageError("mllm: batch_size, accumulate, epochs and patience are at least 1, lora_rank at least 0.")
        if (
            not (0 < self.validation_share < 1 and 0 < self.test_share < 1)
            or self.validation_share + self.test_share >= 1
        ):
            raise UsageError("mllm: validation_share and test_share lie above 0 and together below 1.")


class MllmFitter:
    Options = MllmFit
    shared = True  # all processes of a launch tune together

    def __init__(self, options: MllmFit) -> None:
        given = [bool(options.ratings), bool(options.pairs), bool(options.scores), bool(options.votes)]
        if sum(given) != 1 or bool(options.run) != bool(options.scores or options.votes):
            raise UsageError(
                "mllm: give one of --ratings TABLE, --pairs FOLDER, --run with --scores, --run with --votes."
            )
        if not options.model:
            raise UsageError("mllm: which image-text-to-text model shall be tuned? Set --model.")
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it is there. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.judge_tune import PairTask, RatingTask, Tuning
        from prefkit.score.judge.local import LocalBackend
        from prefkit.score.judge.question import JudgeOptions

        o = self.options
        backend = LocalBackend(JudgeOptions(o.model, o.revision, o.trust_remote_code))
        kind = RatingTask if o.ratings or o.scores else PairTask
        task = kind(o, backend)
        folder = FitFolder("mllm", o.out, o, {kind.name: task.content, "model": backend.about()["revision"]})
        present = group().lead(folder.present)
        if present is not None:
            return present
        tuning = Tuning(o, task, backend)
        found = tuning.run()
        spec = found if not tuning.main else folder.write(found, tuning.save)
        tuning.wait()
        return spec


plugin = MllmFitter
