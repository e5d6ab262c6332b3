"""Tuning an image-text network on preferences: scores, their loss, the loop, and writing it as its library reads it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prefkit.errors import UsageError
from prefkit.fit.preferences import Preference, Preferences

if TYPE_CHECKING:
    from prefkit.score.embed.encoder import Encoder

LIBRARY_CONFIG, LIBRARY_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class Scores(nn.Module):
    """pixels [2B, 3, H, W] (image 0 of each row, then image 1) and token ids [T * B, L] -> [B, 2, T]: exp(logit_scale) * cos of
    each image with each of the row's T texts."""

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
        seen, said = _unit(images), _unit(texts)
        seen, said = seen.view(2, rows, -1), said.view(-1, rows, said.shape[-1])
        return torch.einsum("ibd,tbd->bit", seen, said) * self.network.logit_scale.float().exp()


def _unit(found: Any) -> Tensor:
    rows = found if isinstance(found, Tensor) else found.pooler_output  # transformers 5 wraps the projected embedding
    return nn.functional.normalize(rows.float(), dim=-1)


def losses(scores: Tensor, p: Tensor, explicit: float) -> Tensor:
    """[B] of scores [B, 2, T] and p [B], the probability that image 0 is the better one.

        -p log softmax(s)_0 - (1 - p) log softmax(s)_1                                   s of the (implicit) prompt

    PickScore's loss with a soft label (arXiv 2305.01569, eq. 2-3). With `explicit` above 0, T = 3: plus explicit times SciScore's
    second term (arXiv 2504.13129): over {explicit, superficial prompt}, the better image is to fit the explicit one and the
    worse the superficial; where p is no certainty, in expectation over which is which.
    """
    first = torch.stack([p, 1 - p], dim=1)  # of image 0 and 1
    found = -(first * scores[..., 0].log_softmax(dim=1)).sum(1)
    if explicit:
        fits = scores[..., 1:].log_softmax(dim=2)  # [B, image, explicit | superficial]
        found = found - explicit * (first * fits[..., 0] + (1 - first) * fits[..., 1]).sum(1)
    return found


class Batches:
    """Collates (row number) into what `Scores` takes; prompts beyond the context length are cut, as the scorers do."""

    def __init__(
        self, data: Preferences, inner: Any, library: str, texts: Sequence[str], weights: Sequence[float]
    ) -> None:
        self.data, self.inner, self.library, self.texts, self.weights = data, inner, library, texts, weights

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.data.rows[n] for n in numbers]
        images = [self.data.open(row.images[side]) for side in (0, 1) for row in rows]
        texts = [row.caption for row in rows] + [row.texts[name] for name in self.texts for row in rows]
        if self.library == "transformers":
            pixels = self.inner.processor(images=images, return_tensors="pt").pixel_values
            how: dict[str, Any] = {"padding": "max_length", "max_length": self.inner.length, "truncation": True}
            ids = self.inner.tokenizer(texts, return_tensors="pt", **how).input_ids
        else:
            pixels = torch.stack([self.inner.transform(image) for image in images])
            ids = self.inner.tokenizer(texts)
        p, weight = torch.tensor([row.p for row in rows]), torch.tensor([self.weights[n] for n in numbers])
        return {"pixels": pixels, "ids": ids, "p": p, "weight": weight}


class Tuning:
    """One fit under accelerate: devices, precision and processes are what `accelerate launch` says, or the options."""

    def __init__(self, options: Any, encoder: Encoder, data: Preferences, texts: Sequence[str]) -> None:
        from accelerate import Accelerator

        self.o, self.data, self.encoder = options, data, encoder
        self.accelerator = Accelerator(
            cpu=options.device == "cpu",
            mixed_precision=options.precision,
            gradient_accumulation_steps=options.accumulate,
        )
        inner = self.inner = _opened(encoder, str(self.accelerator.device))
        self.model: Any = Scores(inner.model, encoder.library)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.batches = Batches(data, inner, encoder.library, texts, _weights(data.rows, options.weighting))

    def scores(self, numbers: Sequence[int]) -> Tensor:
        """[N, 2] float32 on the CPU: of image 0 and 1 with the prompt, in order, on every process."""
        self.model.eval()
        rows: Any = torch.utils.data.DataLoader(
            list(numbers),  # type: ignore[arg-type]
            self.o.batch_size,
            collate_fn=self.batches,
        )
        found = []
        with torch.inference_mode():
            for batch in self.accelerator.prepare_data_loader(rows):
                with self.accelerator.autocast():
                    scores = self.model(batch["pixels"], batch["ids"])[..., 0]
                found.append(self.accelerator.gather_for_metrics(scores).float().cpu())
        return torch.cat(found)

    def train(self, numbers: Sequence[int], validation: Sequence[int]) -> dict[str, Any]:
        """Until the validation loss has not improved `patience` times, or `steps`; the best weights are then in the model."""
        o, accelerator = self.o, self.accelerator
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=o.learning_rate)
        rows: Any = torch.utils.data.DataLoader(
            list(numbers),  # type: ignore[arg-type]
            o.batch_size,
            shuffle=True,
            collate_fn=self.batches,
            generator=torch.Generator().manual_seed(o.seed),
        )
        self.model, optimizer, rows = accelerator.prepare(self.model, optimizer, rows)
        best, course, step, waited = self._loss(validation), [], 0, 0
        kept, at = self._state(), 0
        torch.manual_seed(o.seed)
        while step < o.steps and waited < o.patience:
            for batch in rows:
                step += self._step(batch, optimizer, step)
                if not accelerator.sync_gradients or (step % o.validate_every and step < o.steps):
                    continue
                course.append({"step": step, "validation_loss": self._loss(validation)})
                if course[-1]["validation_loss"] < best:
                    best, at, waited, kept = course[-1]["validation_loss"], step, 0, self._state()
                else:
                    waited += 1
                if step >= o.steps or waited >= o.patience:
                    break
        accelerator.unwrap_model(self.model).load_state_dict(kept)
        return {"steps": step, "best_step": at, "validation_loss": best, "course": course}

    def _step(self, batch: dict[str, Tensor], optimizer: Any, step: int) -> int:
        """1 where the optimizer has moved, 0 while gradients accumulate."""
        o, accelerator = self.o, self.accelerator
        self.model.train()
        with accelerator.accumulate(self.model):
            for group in optimizer.param_groups:  # linear warm-up, then linearly down to nothing
                group["lr"] = o.learning_rate * min(
                    (step + 1) / max(1, o.warmup), (o.steps - step) / max(1, o.steps - o.warmup)
                )
            with accelerator.autocast():
                scores = self.model(batch["pixels"], batch["ids"])
            each = losses(scores.float(), batch["p"], o.explicit_weight)
            loss = each.sum() if o.reduction == "sum" else (each * batch["weight"]).sum() / batch["weight"].sum()
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

    def _loss(self, numbers: Sequence[int]) -> float:
        p = torch.tensor([self.data.rows[n].p for n in numbers])
        return float(losses(self.scores(numbers)[..., None].double(), p.double(), 0.0).mean())

    def _state(self) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """As its library reads it from a path."""
        model, inner = self.accelerator.unwrap_model(self.model).network, self.inner
        if self.encoder.library == "transformers":
            model.save_pretrained(folder)
            inner.tokenizer.save_pretrained(folder)
            inner.processor.save_pretrained(folder)
            return
        from safetensors.torch import save_model

        name = self.encoder.name
        if name.startswith("local-dir:"):
            source = Path(name.removeprefix("local-dir:")).expanduser()
            for file in source.iterdir():
                if file.suffix in (".json", ".txt", ".model"):
                    shutil.copyfile(file, folder / file.name)
        else:
            import open_clip

            how = {"mean": model.visual.image_mean, "std": model.visual.image_std}
            how |= {k: v for k, v in model.visual.preprocess_cfg.items() if k in ("interpolation", "resize_mode")}
            described = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": how}
            (folder / LIBRARY_CONFIG).write_text(json.dumps(described, indent=2), encoding="utf-8")
        save_model(model, str(folder / LIBRARY_WEIGHTS))


def _opened(encoder: Encoder, device: str) -> Any:
    """A network of its own: `Encoder.load` would share it with scorers, which must not change under them."""
    from prefkit.score.embed import networks

    if encoder.library == "transformers":
        return networks.Transformers(encoder.name, encoder.processor, device, "float32")
    return networks.OpenClip(encoder.name, encoder.pretrained, encoder.resize, device, "float32")


def _weights(rows: Sequence[Preference], weighting: str) -> list[float]:
    """1, or one over the pairs of the row's prompt, so that each prompt counts the same."""
    if weighting == "pair":
        return [1.0] * len(rows)
    often: dict[str, int] = {}
    for row in rows:
        often[row.caption] = often.get(row.caption, 0) + 1
    return [1 / often[row.caption] for row in rows]
