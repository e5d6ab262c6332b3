"""Tune a multimodal judge on ratings or pairs with TRL, and measure the judge before and after."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from prefkit.errors import UsageError
from prefkit.fit.judge_data import Examples, check_tokens, level, read_ratings, read_scores
from prefkit.fit.preferences import read_preferences, split_by_text
from prefkit.fit.statistics import clustered, correlation
from prefkit.score.judge.compare import FIRST, SECOND, TEMPLATE, compare
from prefkit.score.judge.question import Question, reads_as
from prefkit.score.judge.ratings import expected, scale_of
from prefkit.score.judge.templates import RATING, fill
from prefkit.types import Candidate


class RatingTask:
    """Tuning on ratings by supervised fine-tuning (SFT)."""

    name = "ratings"

    def __init__(self, options: Any, backend: Any) -> None:
        self.batch_size, self.backend = options.batch_size, backend
        self.scale = scale_of(options.scale, "mllm")
        self.template = options.template or RATING
        self.rows, self.content = (
            read_ratings(options.ratings) if options.ratings else read_scores(options.run, options.scores)
        )
        self.prompts = [row.candidate.prompt for row in self.rows]
        self.labels = [level(row.rating, self.scale) for row in self.rows]  # may raise, so done before loading
        self.answers = self.scale.labels

    def trainer(self, options: Any) -> tuple[Any, Any]:
        """Return TRL's trainer class, and a function that creates its configuration for this task."""
        import trl

        return trl.SFTTrainer, lambda **shared: trl.SFTConfig(completion_only_loss=True, **shared)

    def examples(self, processor: Any, rows: Sequence[int]) -> Examples:
        return Examples(processor, [self._question(n) for n in rows], [(self.labels[n],) for n in rows])

    def _question(self, row: int) -> Question:
        candidate, labels = self.rows[row].candidate, self.scale.labels
        fields = {"prompt": candidate.prompt, "aspect": "", "scale": ", ".join(labels)}
        fields |= {"worst": labels[0], "best": labels[-1]}
        return Question((candidate, fill(self.template, fields)))

    def judge(self, rows: Sequence[int]) -> dict[str, list[float]]:
        """Return a dict with `value`: the expected level of each row, computed as in the scorer mllm."""
        values = []
        for start in range(0, len(rows), self.batch_size):
            questions = [self._question(n) for n in rows[start : start + self.batch_size]]
            replies = self.backend.masses(questions, self.scale.labels)
            values += [expected(reply.masses, self.scale.values)[0] or 0.0 for reply in replies]
        return {"value": values}

    def measured(self, rows: Sequence[int], before: Any, after: Any) -> dict[str, Any]:
        ratings, texts = np.array([self.rows[n].rating for n in rows]), [self.prompts[n] for n in rows]
        results: dict[str, Any] = {}
        for suffix, judged in (("", after), ("_before", before)):
            values = np.array(judged["value"])
            results[f"pearson{suffix}"] = correlation(values, ratings, texts, ranks=False)
            results[f"spearman{suffix}"] = correlation(values, ratings, texts, ranks=True)
            results[f"absolute_error{suffix}"] = clustered(np.abs(values - ratings), texts)
        return results


class PairTask:
    """Tuning on pairs by DPO: the judge learns to prefer the right answer to a comparison."""

    name = "pairs"
    answers = (FIRST, SECOND)

    def __init__(self, options: Any, backend: Any) -> None:
        self.batch_size, self.backend = options.batch_size, backend
        self.template = options.template or TEMPLATE
        self.data = read_preferences("mllm", options.pairs, options.run, options.votes)
        self.content = self.data.content
        self.rows = [row for row in self.data.rows if row.p != 0.5]  # DPO cannot use ties
        self.prompts = [row.caption for row in self.rows]
        if not self.rows:
            raise UsageError("mllm: all pairs are ties, so nothing can be learned. Add pairs with a winner.")

    def trainer(self, options: Any) -> tuple[Any, Any]:
        """Return TRL's trainer class, and a function that creates its configuration for this task."""
        import trl

        return trl.DPOTrainer, lambda **shared: trl.DPOConfig(beta=options.beta, **shared)

    def examples(self, processor: Any, rows: Sequence[int]) -> Examples:
        """Return the examples for training: each pair in both orders."""
        questions, answers = [], []
        for n in rows:
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

    def judge(self, rows: Sequence[int]) -> dict[str, list[float]]:
        """Return lists for all pairs: `right`, the fraction of the two orders in which the better image won (a tie is
        half), and `flip`, 1 if different images won in the two orders, else 0.
        """
        right, flip = [], []
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            pairs = [self._candidates(n) for n in part]
            verdicts = compare(self.backend, pairs, "mllm", template=self.template, min_mass=0.0).shown
            for i, n in enumerate(part):
                best = "a" if self.rows[n].p > 0.5 else "b"
                outcomes = [verdict.outcome for verdict in verdicts[2 * i : 2 * i + 2]]
                right.append(sum({best: 1.0, "tie": 0.5}.get(str(outcome), 0.0) for outcome in outcomes) / 2)
                flip.append(float(set(outcomes) == {"a", "b"}))
        return {"right": right, "flip": flip}

    def measured(self, rows: Sequence[int], before: Any, after: Any) -> dict[str, Any]:
        texts = [self.prompts[n] for n in rows]
        results: dict[str, Any] = {}
        for suffix, judged in (("", after), ("_before", before)):
            results[f"accuracy{suffix}"] = clustered(judged["right"], texts)
            results[f"flips{suffix}"] = clustered(judged["flip"], texts)
        gain = [b - a for a, b in zip(before["right"], after["right"])]
        return results | {"gain": clustered(gain, texts)}


class BestWeights(TrainerCallback):
    """Stops after `patience` evaluations without a lower `eval_loss`, and restores the weights with the lowest loss.

    Trainer's `load_best_model_at_end` cannot do this for a vision-language model: it saves parameters under names
    that it does not find again, so it reports all as missing and keeps the last weights (transformers 5.23).
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.evaluations_since_best, self.loss = patience, 0, float("inf")
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        loss = context["metrics"]["eval_loss"]
        if loss < self.loss:
            self.loss, self.evaluations_since_best = loss, 0
            trained = [(n, p) for n, p in context["model"].named_parameters() if p.requires_grad]
            self.weights = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained}
        else:
            self.evaluations_since_best += 1
            control.should_training_stop = self.evaluations_since_best >= self.patience

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        for name, parameter in context["model"].named_parameters():
            if parameter.requires_grad:
                parameter.copy_(self.weights[name])


class Tuning:
    """One run of the fit: split the rows, train with TRL, and measure the test rows before and after."""

    def __init__(self, options: Any, task: RatingTask | PairTask, backend: Any) -> None:
        from accelerate import PartialState

        self.options, self.task, self.backend = options, task, backend
        self.splits = split_by_text("mllm", task.prompts, options.validation_share, options.test_share, options.seed)
        self.state = PartialState(cpu=options.device == "cpu")
        self.main = self.state.is_main_process
        backend.load(str(self.state.device), options.dtype)
        check_tokens(backend.processor, task.answers, reads_as)

    def run(self) -> dict[str, Any]:
        train, validation, test = self.splits
        before = self.task.judge(test)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._trainer(scratch, train, validation)
            loss_before = float(trainer.evaluate()["eval_loss"])
            started = time.monotonic()
            steps = trainer.train().global_step
            seconds = time.monotonic() - started
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.backend.model = (model.merge_and_unload() if self.options.lora_rank else model).eval()
        self.backend.processor.tokenizer.padding_side = "left"
        after = self.task.judge(test)
        log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        return {
            "asked": {"template": self.task.template, "answers": list(self.task.answers)},
            "counts": {"rows": len(self.task.rows), "prompts": len(set(self.task.prompts))}
            | {"train": len(train), "validation": len(validation), "test": len(test)},
            "training": {
                "trainer": type(trainer).__name__,
                "steps": steps,
                "course": [{"epoch": entry["epoch"], "validation_loss": entry["eval_loss"]} for entry in log],
                "loss_before": loss_before,
                "seconds_per_step": round(seconds / max(1, steps), 3),
            },
            "validation": self.task.measured(test, before, after),
        }

    def _trainer(self, scratch: str, train: Sequence[int], validation: Sequence[int]) -> Any:
        o, processor = self.options, self.backend.processor
        trainer_class, config = self.task.trainer(o)
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
            max_length=None,  # truncating a question would truncate its image
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trainer_class(
            model=self.backend.model,
            args=arguments,
            processing_class=processor,
            peft_config=self._adapters(),
            callbacks=[BestWeights(o.patience)],
            train_dataset=self.task.examples(processor, train).dataset(),
            eval_dataset=self.task.examples(processor, validation).dataset(),
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is reserved for the result
        return trainer

    def _adapters(self) -> Any:
        from peft import LoraConfig

        o = self.options
        if not o.lora_rank:
            return None
        targets: Any = o.lora_targets.split(",") if "," in o.lora_targets else o.lora_targets
        alpha = o.lora_alpha or 2 * o.lora_rank
        return LoraConfig(r=o.lora_rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")

    def save(self, folder: Path) -> None:
        self.backend.model.save_pretrained(folder)
        self.backend.processor.save_pretrained(folder)

    def wait(self) -> None:
        self.state.wait_for_everyone()
