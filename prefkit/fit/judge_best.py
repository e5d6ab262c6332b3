"""The best weights of a run of transformers' Trainer, kept in memory and put back when it ends.

Its own `load_best_model_at_end` reads a checkpoint by plain names, where `save_pretrained` has written the published ones: of a
vision-language model not one name fits, all are reported missing, and the last weights stay (transformers 5.23).
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


def best_weights(patience: int) -> TrainerCallback:
    """Stops after so many evaluations in training without a better `eval_loss`, and restores the trained weights of the best."""
    return _Best(patience)


class _Best(TrainerCallback):
    def __init__(self, patience: int) -> None:
        self.patience, self.waited = patience, 0
        self.loss, self.kept = float("inf"), {}  # type: ignore[var-annotated]

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loss = given["metrics"]["eval_loss"]
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.kept = {n: p.detach().to("cpu", copy=True) for n, p in _trained(given["model"])}
        else:
            self.waited += 1
            control.should_training_stop = self.waited >= self.patience

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in _trained(given["model"]):
                parameter.copy_(self.kept[name])


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
