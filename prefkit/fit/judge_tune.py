"""Tuning a multimodal judge: a task (ratings or pairs), TRL's trainer for it, and what the judge says before and after."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.errors import UsageError
from prefkit.fit.judge_data import Examples, check_tokens, level, read_ratings, read_scores
from prefkit.fit.preferences import clustered, read_preferences, split_by_text
from prefkit.score.judge.compare import FIRST, SECOND, TEMPLATE, compare
from prefkit.score.judge.question import Question, reads_as
from prefkit.score.judge.ratings import expected, scale_of
from prefkit.score.judge.templates import RATING, fill
from prefkit.types import Candidate, caption_key


class RatingTask:
    """Ratings, by SFT."""

    name = "ratings"

    def __init__(self, options: Any, backend: Any) -> None:
        self.o, self.backend = options, backend
        self.scale = scale_of(options.scale, "mllm")
        self.template = options.template or RATING
        self.rows, self.content = (
            read_ratings(options.ratings) if options.ratings else read_scores(options.run, options.scores)
        )
        self.prompts = [row.candidate.prompt for row in self.rows]
        self.labels = [level(row.rating, self.scale) for row in self.rows]  # before any model is loaded

    def answers(self) -> tuple[str, ...]:
        return self.scale.labels

    def examples(self, processor: Any, numbers: Sequence[int]) -> Examples:
        return Examples(processor, [self._question(n) for n in numbers], [(self.labels[n],) for n in numbers])

    def _question(self, number: int) -> Question:
        candidate, labels = self.rows[number].candidate, self.scale.labels
        given = {"prompt": candidate.prompt, "aspect": "", "scale": ", ".join(labels)}
        given |= {"worst": labels[0], "best": labels[-1]}
        return Question((candidate, fill(self.template, given)))

    def judge(self, numbers: Sequence[int]) -> dict[str, list[float]]:
        """The expected level of each, as the scorer mllm works it out."""
        values = []
        for start in range(0, len(numbers), self.o.batch_size):
            asked = [self._question(n) for n in numbers[start : start + self.o.batch_size]]
            replies = self.backend.masses(asked, self.scale.labels)
            values += [expected(reply.masses, self.scale.values)[0] or 0.0 for reply in replies]
        return {"value": values}

    def measured(self, numbers: Sequence[int], before: Any, after: Any) -> dict[str, Any]:
        ratings, texts = np.array([self.rows[n].rating for n in numbers]), [self.prompts[n] for n in numbers]
        found: dict[str, Any] = {}
        for name, said in (("", after), ("_before", before)):
            values = np.array(said["value"])
            found |= {f"pearson{name}": correlation(values, ratings, texts, ranks=False)}
            found |= {f"spearman{name}": correlation(values, ratings, texts, ranks=True)}
            found |= {f"absolute_error{name}": clustered(np.abs(values - ratings), texts)}
        return found


class PairTask:
    """Pairs, by DPO on the answer to a comparison."""

    name = "pairs"

    def __init__(self, options: Any, backend: Any) -> None:
        self.o, self.backend = options, backend
        self.template = options.template or TEMPLATE
        data = read_preferences("mllm", options.pairs, options.run, options.votes)
        self.data, self.content = data, data.content
        self.rows = [row for row in data.rows if row.p != 0.5]  # DPO has no ties
        self.prompts = [row.caption for row in self.rows]
        if not self.rows:
            raise UsageError("mllm: all pairs are ties; nothing can be learned from them.")

    def answers(self) -> tuple[str, ...]:
        return FIRST, SECOND

    def examples(self, processor: Any, numbers: Sequence[int]) -> Examples:
        questions, answers = [], []
        for n in numbers:
            a, b = self._candidates(n)
            text = fill(self.template, {"prompt": a.prompt, "aspect": ""})
            for shown, first in (((a, b), self.rows[n].p > 0.5), ((b, a), self.rows[n].p < 0.5)):
                questions.append(Question(("Image A:", shown[0], "Image B:", shown[1], text)))
                answers.append((FIRST, SECOND) if first else (SECOND, FIRST))
        return Examples(processor, questions, answers)

    def _candidates(self, number: int) -> tuple[Candidate, Candidate]:
        row = self.rows[number]
        a, b = (
            Candidate(f"{number}-{side}", "", side, 0, row.caption, self.data.encoded(row.images[side]))
            for side in (0, 1)
        )
        return a, b

    def judge(self, numbers: Sequence[int]) -> dict[str, list[float]]:
        """right: share of the two orders in which the better image won; flip: 1 where the orders contradict each other."""
        right, flip = [], []
        for start in range(0, len(numbers), self.o.batch_size):
            part = list(numbers[start : start + self.o.batch_size])
            pairs = [self._candidates(n) for n in part]
            shown = compare(self.backend, pairs, "mllm", template=self.template, min_mass=0.0).shown
            for i, n in enumerate(part):
                best = "a" if self.rows[n].p > 0.5 else "b"
                said = [verdict.outcome for verdict in shown[2 * i : 2 * i + 2]]
                right.append(sum({best: 1.0, "tie": 0.5}.get(str(one), 0.0) for one in said) / 2)
                flip.append(float(set(said) == {"a", "b"}))
        return {"right": right, "flip": flip}

    def measured(self, numbers: Sequence[int], before: Any, after: Any) -> dict[str, Any]:
        texts = [self.prompts[n] for n in numbers]
        found: dict[str, Any] = {}
        for name, said in (("", after), ("_before", before)):
            found |= {
                f"accuracy{name}": clustered(said["right"], texts),
                f"flips{name}": clustered(said["flip"], texts),
            }
        gain = [b - a for a, b in zip(before["right"], after["right"])]
        return found | {"gain": clustered(gain, texts)}


def correlation(x: np.ndarray, y: np.ndarray, texts: Sequence[str], ranks: bool) -> dict[str, Any]:
    """Pearson's, or Spearman's, with a 95 % percentile bootstrap interval over prompts; null where one side is constant."""
    _, group = np.unique([caption_key(text) for text in texts], return_inverse=True)
    own = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([own[g] for g in rng.integers(0, len(own), len(own))]) for _ in range(1000)]
    values = [v for rows in drawn if (v := _pearson(x[rows], y[rows], ranks)) is not None]
    mean = _pearson(x, y, ranks)
    low, high = np.quantile(values, [0.025, 0.975]).tolist() if values and mean is not None else (None, None)
    return {"mean": mean, "low": low, "high": high, "n": len(x)}


def _pearson(x: np.ndarray, y: np.ndarray, ranks: bool) -> float | None:
    if ranks:
        import pandas as pd

        x, y = pd.Series(x).rank().to_numpy(), pd.Series(y).rank().to_numpy()
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


class Tuning:
    """One fit: the parts, TRL's trainer on them, and the measurements."""

    def __init__(self, options: Any, task: RatingTask | PairTask, backend: Any) -> None:
        from accelerate import PartialState

        self.o, self.task, self.backend = options, task, backend
        self.parts = split_by_text("mllm", task.prompts, options.validation_share, options.test_share, options.seed)
        self.state = PartialState(cpu=options.device == "cpu")
        self.main = self.state.is_main_process
        backend.load(str(self.state.device), options.dtype)
        check_tokens(backend.processor, task.answers(), reads_as)

    def run(self) -> dict[str, Any]:
        import time

        train, validation, test = self.parts
        before = self.task.judge(test)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._trainer(scratch, train, validation)
            start = float(trainer.evaluate()["eval_loss"])
            begun = time.monotonic()
            steps = trainer.train().global_step
            seconds = time.monotonic() - begun
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.backend.model = (model.merge_and_unload() if self.o.lora_rank else model).eval()
        self.backend.processor.tokenizer.padding_side = "left"
        after = self.task.judge(test)
        course = [
            {"epoch": h["epoch"], "validation_loss": h["eval_loss"]}
            for h in trainer.state.log_history
            if "eval_loss" in h
        ]
        return {
            "asked": {"template": self.task.template, "answers": list(self.task.answers())},
            "counts": {"rows": len(self.task.rows), "prompts": len(set(self.task.prompts))}
            | {"train": len(train), "validation": len(validation), "test": len(test)},
            "training": {"trainer": type(trainer).__name__, "steps": steps, "course": course}
            | {"loss_before": start, "seconds_per_step": round(seconds / max(1, steps), 3)},
            "validation": self.task.measured(test, before, after),
        }

    def _trainer(self, scratch: str, train: Sequence[int], validation: Sequence[int]) -> Any:
        from transformers import PrinterCallback

        from prefkit.fit.judge_best import best_weights

        o, processor = self.o, self.backend.processor
        rows, held = (self.task.examples(processor, part).dataset() for part in (train, validation))
        kind, config, more = self._kind()
        arguments = config(
            output_dir=scratch,
            per_device_train_batch_size=o.batch_size,
            per_device_eval_batch_size=o.batch_size,
            gradient_accumulation_steps=o.accumulate,
            num_train_epochs=o.epochs,
            learning_rate=o.learning_rate,
            warmup_steps=o.warmup_share,
            eval_strategy="epoch",
            save_strategy="no",
            bf16=o.dtype == "bfloat16",
            gradient_checkpointing=o.checkpointing,
            use_cpu=o.device == "cpu",
            seed=o.seed,
            max_length=None,  # cutting a question would cut its image
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            **more,
        )
        given: dict[str, Any] = {"processing_class": processor, "peft_config": self._adapters()}
        given |= {"callbacks": [best_weights(o.patience)], "train_dataset": rows, "eval_dataset": held}
        trainer = kind(model=self.backend.model, args=arguments, **given)
        trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is the verb's
        return trainer

    def _kind(self) -> tuple[Any, Any, dict[str, Any]]:
        import trl

        if isinstance(self.task, PairTask):
            return trl.DPOTrainer, trl.DPOConfig, {"beta": self.o.beta}
        return trl.SFTTrainer, trl.SFTConfig, {"completion_only_loss": True}

    def _adapters(self) -> Any:
        if not self.o.lora_rank:
            return None
        from peft import LoraConfig

        targets: Any = self.o.lora_targets.split(",") if "," in self.o.lora_targets else self.o.lora_targets
        alpha = self.o.lora_alpha or 2 * self.o.lora_rank
        return LoraConfig(r=self.o.lora_rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")

    def save(self, folder: Path) -> None:
        self.backend.model.save_pretrained(folder)
        self.backend.processor.save_pretrained(folder)

    def wait(self) -> None:
        self.state.wait_for_everyone()
