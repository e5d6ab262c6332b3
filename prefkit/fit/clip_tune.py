"""Tune an image-text model on preferences: scores, loss, training loop, and export to the model's library."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prefkit.errors import UsageError
from prefkit.fit.preferences import Preference, Preferences

if TYPE_CHECKING:
    from prefkit.score.embed.encoder import Encoder

Prompt = Callable[[Preference], str]
LIBRARY_CONFIG, LIBRARY_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class Scores(nn.Module):
    """Returns exp(logit_scale) * cos(image, text) for each row's two images and T texts: [B, 2, T].

    Inputs: pixels [2B, 3, H, W] (image 0 of all rows, then image 1 of all rows) and token ids [T * B, L].
    """

    def __init__(self, network: Any, library: str) -> None:
        super().__init__()
        self.network, self.library = network, library

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        if self.library == "transformers":
            images = self.network.get_image_features(pixel_values=pixels)
            texts = self.network.get_text_features(input_ids=ids)
        else:
            images, texts = self.network.encode_image(pixels), self.network.encode_text(ids)
        rows = len(pixels) // 2
        images, texts = _unit(images), _unit(texts)
        images, texts = images.view(2, rows, -1), texts.view(-1, rows, texts.shape[-1])
        return torch.einsum("ibd,tbd->bit", images, texts) * self.network.logit_scale.float().exp()


def _unit(output: Any) -> Tensor:
    rows = (
        output if isinstance(output, Tensor) else output.pooler_output
    )  # transformers 5 wraps the projected embedding
    return nn.functional.normalize(rows.float(), dim=-1)


def losses(scores: Tensor, p: Tensor, explicit: float) -> Tensor:
    """Return the loss of each pair, [B], for scores [B, 2, T] and p [B], the probability that image 0 is better.

        -p log softmax(s)_0 - (1 - p) log softmax(s)_1                                        s: scores with the prompt

    PickScore's loss with a soft label (arXiv 2305.01569, eq. 2-3). With `explicit` above 0, T = 3 (prompt, explicit
    prompt, superficial prompt), and `explicit` times SciScore's second term (arXiv 2504.13129) is added: the better
    image should match the explicit prompt, the worse image the superficial prompt. For 0 < p < 1 the term is the
    expectation over which image is better.
    """
    first = torch.stack([p, 1 - p], dim=1)  # probabilities that image 0 and image 1 are better
    loss = -(first * scores[..., 0].log_softmax(dim=1)).sum(1)
    if explicit:
        matches = scores[..., 1:].log_softmax(dim=2)  # [B, image, explicit | superficial]
        loss = loss - explicit * (first * matches[..., 0] + (1 - first) * matches[..., 1]).sum(1)
    return loss


def caption(row: Preference) -> str:
    return row.caption


def wording(row: Preference, column: str, drawn: random.Random) -> str:
    """Return one wording of the row's text in `column`, drawn at random; the prompt if the row has none."""
    return drawn.choice(row.texts.get(column) or (row.caption,))


class Batches:
    """Turns row indices into a batch of `Scores` inputs. Prompts are cut at the context length, as in the scorers.

    prompts: functions row -> text, for the T texts of `Scores`.
    """

    def __init__(self, data: Preferences, inner: Any, library: str, weights: Sequence[float]) -> None:
        self.data, self.inner, self.library, self.weights = data, inner, library, weights

    def __call__(self, numbers: Sequence[int], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        rows = [self.data.rows[n] for n in numbers]
        images = [self.data.open(row.images[side]) for side in (0, 1) for row in rows]
        texts = [prompt(row) for prompt in prompts for row in rows]
        if self.library == "transformers":
            pixels = self.inner.processor(images=images, return_tensors="pt").pixel_values
            padding: dict[str, Any] = {"padding": "max_length", "max_length": self.inner.length, "truncation": True}
            ids = self.inner.tokenizer(texts, return_tensors="pt", **padding).input_ids
        else:
            pixels = torch.stack([self.inner.transform(image) for image in images])
            ids = self.inner.tokenizer(texts)
        p, weight = torch.tensor([row.p for row in rows]), torch.tensor([self.weights[n] for n in numbers])
        return {"pixels": pixels, "ids": ids, "p": p, "weight": weight}


class Tuning:
    """One tuning run with accelerate; the options or `accelerate launch` set device, precision and processes."""

    def __init__(self, options: Any, encoder: Encoder, data: Preferences, texts: Sequence[str]) -> None:
        from accelerate import Accelerator

        self.options, self.data, self.encoder = options, data, encoder
        self.accelerator = Accelerator(
            cpu=options.device == "cpu",
            mixed_precision=options.precision,
            gradient_accumulation_steps=options.accumulate,
        )
        inner = self.inner = _load(encoder, str(self.accelerator.device))
        self.model: Any = Scores(inner.model, encoder.library)
        self.model.requires_grad_(True)
        self.batches, self.texts = Batches(data, inner, encoder.library, _weights(data.rows, options.weighting)), texts

    def _loader(self, rows: Sequence[int], prompts: Sequence[Prompt], **options: Any) -> Any:
        numbers: Any = list(rows)
        collate = partial(self.batches, prompts=prompts)
        return torch.utils.data.DataLoader(numbers, self.options.batch_size, collate_fn=collate, **options)

    def scores(self, rows: Sequence[int], further: Sequence[Prompt] = ()) -> Tensor:
        """Score images 0 and 1 of each row with its prompt and further texts: [N, 2, T] float32 on the CPU.

        The result is complete in every process.
        """
        self.model.eval()
        parts = []
        with torch.inference_mode():
            for batch in self.accelerator.prepare_data_loader(self._loader(rows, [caption, *further])):
                with self.accelerator.autocast():
                    scores = self.model(batch["pixels"], batch["ids"])
                parts.append(self.accelerator.gather_for_metrics(scores).float().cpu())
        return torch.cat(parts)

    def train(self, rows: Sequence[int], validation: Sequence[int]) -> dict[str, Any]:
        """Train for `steps` steps, or until `patience` validations in a row find no lower loss. Loads the best."""
        o, accelerator = self.options, self.accelerator
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=o.learning_rate)
        drawn = random.Random(o.seed)
        texts = [partial(wording, column=name, drawn=drawn) for name in (o.implicit, *self.texts)]
        loader = self._loader(rows, texts, shuffle=True, generator=torch.Generator().manual_seed(o.seed))
        self.model, optimizer, loader = accelerator.prepare(self.model, optimizer, loader)
        best, course, step, since_best = self._loss(validation), [], 0, 0
        best_weights, best_step = self._state(), 0
        torch.manual_seed(o.seed)
        while step < o.steps and since_best < o.patience:
            for batch in loader:
                step += self._step(batch, optimizer, step)
                if not accelerator.sync_gradients or (step % o.validate_every and step < o.steps):
                    continue
                loss = self._loss(validation)
                course.append({"step": step, "validation_loss": loss})
                since_best += 1
                if loss < best:
                    best, best_step, since_best, best_weights = loss, step, 0, self._state()
                if step >= o.steps or since_best >= o.patience:
                    break
        accelerator.unwrap_model(self.model).load_state_dict(best_weights)
        return {"steps": step, "best_step": best_step, "validation_loss": best, "course": course}

    def _step(self, batch: dict[str, Tensor], optimizer: Any, step: int) -> int:
        """Train on one batch. Returns 1 if the optimizer has stepped, 0 while gradients accumulate."""
        o, accelerator = self.options, self.accelerator
        self.model.train()
        with accelerator.accumulate(self.model):
            warmup, decay = (step + 1) / max(1, o.warmup), (o.steps - step) / max(1, o.steps - o.warmup)
            for group in optimizer.param_groups:
                group["lr"] = o.learning_rate * min(warmup, decay)
            with accelerator.autocast():
                scores = self.model(batch["pixels"], batch["ids"])
            rows = losses(scores.float(), batch["p"], o.explicit_weight)
            loss = rows.sum() if o.reduction == "sum" else (rows * batch["weight"]).sum() / batch["weight"].sum()
            if not math.isfinite(float(loss.detach())):
                raise UsageError(
                    f"clip_preference: the loss is {float(loss.detach())} at step {step}; lower --learning_rate."
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), o.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        return int(accelerator.sync_gradients)

    def _loss(self, rows: Sequence[int]) -> float:
        p = torch.tensor([self.data.rows[n].p for n in rows])
        return float(losses(self.scores(rows).double(), p.double(), 0.0).mean())

    def _state(self) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write the model in the format of its library, so that the library loads it by path."""
        from prefkit.score.embed import networks

        model, inner = self.accelerator.unwrap_model(self.model).network, self.inner
        if self.encoder.library == "transformers":
            for part in (model, inner.tokenizer, inner.processor):
                part.save_pretrained(folder)
            return
        from safetensors.torch import save_model

        name = self.encoder.name
        if source := networks.folder_of(self.encoder):
            for file in source.iterdir():
                if file.suffix in (".json", ".txt", ".model"):
                    shutil.copyfile(file, folder / file.name)
        else:
            import open_clip

            preprocessing = {"mean": model.visual.image_mean, "std": model.visual.image_std}
            preprocessing |= {
                k: v for k, v in model.visual.preprocess_cfg.items() if k in ("interpolation", "resize_mode")
            }
            config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocessing}
            (folder / LIBRARY_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_model(model, str(folder / LIBRARY_WEIGHTS))


def _load(encoder: Encoder, device: str) -> Any:
    """Load a separate copy of the network, because `Encoder.load` returns the copy that scorers share."""
    from prefkit.score.embed import networks

    return networks.opened(encoder, device, "float32")


def _weights(rows: Sequence[Preference], weighting: str) -> list[float]:
    """Return each row's weight: 1, or 1 / the number of its prompt's pairs, so that all prompts count the same."""
    counts = Counter(row.caption for row in rows)
    return [1.0 if weighting == "pair" else 1 / counts[row.caption] for row in rows]
