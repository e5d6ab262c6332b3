"""Train the embedded judge, a small image-text-to-text model that rates, verifies and compares pictures of the wardrobe.

    python pipelines/tiny/judge.py --work WORK --out WORK/judge --seed 0 [--threads 1]

1. Pictures (judge_pictures.py), sampled with the embedded generator and stored in WORK.
2. The ResNet, with linear heads for item, colour, background, pattern and quality.
3. The projector and the Llama, on the frozen ResNet's features: short questions, the long ones of `mllm` and `vqascore`, and
   comparisons of two pictures (judge_questions.py). The loss counts the answer alone. The projector starts from the heads,
   and the decoder with std 1 / sqrt(128) instead of .02, with which a prototype answered yes and no by chance.

OUT is a folder for transformers' AutoModelForImageTextToText. Takes 26 CPU-minutes with bf16: 7 for the pictures, 4 for the
ResNet, 15 for the decoder. A second call with the same WORK starts from the stored pictures and the stored ResNet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from judge_model import ANSWER, CLASSES, IMAGE, Heads, judge, processor, start_from_heads
from judge_pictures import AMOUNT, Pictures, made, scene_at
from judge_questions import LEVELS, Question, comparison, long, short
from machine import Machine, rate
from transformers import PreTrainedTokenizerFast
from vae import pixels

from prefkit.tiny import PIPELINE
from prefkit.tiny.captions import training_caption

CLEAR = 0.45  # severity up to which the content of a picture is trained
#: pictures of each kind in a step
MIX = {"clean": 12, "latent": 14, "blur": 6, "patches": 8, "few": 6, "good": 6, "pixelate": 6, "warp": 6}
#: weight of the quality. With 1 and without the squared error, Spearman's correlation on blurred renders stayed at .84
QUALITY = 8
SHORT, LONG, PAIRS = 96, 32, 24  # questions in a step of the decoder
IMAGES_OF_ONE, IMAGES_OF_TWO = f"{IMAGE * 4}", f"Image A: {IMAGE * 4} Image B: {IMAGE * 4}"


def chosen(pictures: Pictures, rng: np.random.Generator) -> np.ndarray:
    """Draw the indices of one step's pictures."""
    return np.concatenate([rng.choice(_of(pictures, kind), n) for kind, n in MIX.items()])


@lru_cache
def _of(pictures: Pictures, kind: str) -> np.ndarray:
    return pictures.of(kind)


def optimizer_of(groups: Any, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)


def advance(optimizer: torch.optim.Optimizer, loss: torch.Tensor, step: int, steps: int) -> None:
    """Do one optimizer step. Each group's learning rate follows the schedule of machine.rate from its own `peak`."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        group["lr"] = rate(step, steps, group["peak"], 100)
    optimizer.step()


def augmented(images: np.ndarray, rng: np.random.Generator, device: str) -> torch.Tensor:
    """Shift by up to 2 px, scale by 1 +- .04 and tint by +- .04: float [B, 3, 64, 64] in -1..1."""
    real = pixels(images, device)
    y, x = rng.integers(5, size=2)
    real = F.pad(real, (2, 2, 2, 2), mode="replicate")[:, :, y : y + 64, x : x + 64]
    gain, tint = rng.uniform(0.96, 1.04, (len(images), 1, 1, 1)), rng.uniform(-0.04, 0.04, (len(images), 3, 1, 1))
    return (real * torch.from_numpy(gain).float().to(device) + torch.from_numpy(tint).float().to(device)).clamp(-1, 1)


def tower_loss(logits: dict[str, torch.Tensor], pictures: Pictures, rows: np.ndarray) -> torch.Tensor:
    """Cross-entropies of the content of clear pictures, plus QUALITY x (cross-entropy + squared error of the rating)."""
    device = logits["quality"].device
    severity = torch.from_numpy(pictures.severity[rows]).to(device)
    value, levels = 4 - 4 * severity, torch.arange(5, device=device)
    target = (1 - (value[:, None] - levels).abs()).clamp(min=0)
    error = F.mse_loss((logits["quality"].softmax(-1) * levels).sum(-1), value)
    loss = QUALITY * (F.cross_entropy(logits["quality"], target) + error)
    scenes, clear = torch.from_numpy(pictures.scenes[rows]).to(device), severity < CLEAR
    for column, name in enumerate(list(CLASSES)[:4]):
        loss = loss + F.cross_entropy(logits[name][clear], scenes[clear, column])
    return loss


def train_tower(model: Any, pictures: Pictures, steps: int, seed: int, machine: Machine) -> Heads:
    """Train the ResNet with its heads, and return the heads."""
    tower, heads = model.model.vision_tower.to(memory_format=torch.channels_last).train(), Heads().to(machine.device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = optimizer_of([{"params": parameters, "peak": 2e-3}], 2e-3)
    log = Log(steps)
    for step in range(steps):
        rng = np.random.default_rng([seed, 5, step])
        rows = chosen(pictures, rng)
        images = augmented(pictures.images[rows], rng, machine.device).to(memory_format=torch.channels_last)
        with machine.autocast():
            seen = tower(images).last_hidden_state
        loss = tower_loss(heads(seen.float()), pictures, rows)
        advance(optimizer, loss, step, steps)
        log(step, loss)
    tower.eval()
    return heads


@torch.inference_mode()
def features(model: Any, images: np.ndarray, machine: Machine) -> torch.Tensor:
    """Return the ResNet's last map of each image, as the model flattens it: [N, 4, 512] float16."""
    seen = []
    for part in np.array_split(images, max(len(images) // 256, 1)):
        with machine.autocast():
            last = model.model.vision_tower(pixels(part, machine.device)).last_hidden_state
        seen.append(last.flatten(2).transpose(1, 2).half())
    return torch.cat(seen)


class Decoder:
    """Loss of the decoder on questions about pictures whose features are known."""

    def __init__(self, model: Any, words: PreTrainedTokenizerFast, seen: torch.Tensor) -> None:
        self.model, self.words, self.seen = model, words, seen
        self.image = words.convert_tokens_to_ids(IMAGE)
        self.levels = torch.tensor(words.convert_tokens_to_ids(list(LEVELS)))
        self.tokenized = lru_cache(200_000)(lambda text: words(text, add_special_tokens=False).input_ids)

    def rows(self, question: Question, pictures: int) -> tuple[list[int], list[int]]:
        """Return the token ids of the question and of its answer, as the processor's chat template writes them."""
        shown = IMAGES_OF_ONE if pictures == 1 else IMAGES_OF_TWO
        start = [self.words.bos_token_id, *self.tokenized(shown), *self.tokenized(question.text)]
        return [*start, *self.tokenized(ANSWER)], [*self.tokenized(question.answer), self.words.eos_token_id]

    def loss(self, questions: Sequence[Question], pictures: np.ndarray) -> torch.Tensor:
        """Sum over the questions of the mean cross-entropy of an answer's tokens. pictures: [questions, 1 or 2]."""
        device = self.seen.device
        rows = [self.rows(q, pictures.shape[1]) for q in questions]
        most = max(len(asked) + len(answer) for asked, answer in rows) - 1
        ids = torch.full((len(rows), most), self.words.pad_token_id)
        at, target, row = [], [], []
        for i, (asked, answer) in enumerate(rows):
            ids[i, : len(asked) + len(answer) - 1] = torch.tensor([*asked, *answer[:-1]])
            at += range(len(asked) - 1, len(asked) + len(answer) - 1)
            target, row = [*target, *answer], [*row, *[i] * len(answer)]
        inner = self.model.model
        ids = ids.to(device)
        embedded = inner.get_input_embeddings()(ids)
        shown = inner.multi_modal_projector(self.seen[pictures.ravel()].float())
        embedded = embedded.masked_scatter((ids == self.image)[..., None], shown.to(embedded.dtype))
        hidden = inner.language_model(
            inputs_embeds=embedded, attention_mask=(ids != self.words.pad_token_id).long(), use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden[row, at]).float().log_softmax(-1)
        lengths = torch.tensor([len(rows[i][1]) for i in row], device=device)
        return (self._losses(logits, questions, row, target) / lengths).sum()

    def _losses(
        self, logits: torch.Tensor, questions: Sequence[Question], row: Sequence[int], target: Sequence[int]
    ) -> torch.Tensor:
        losses = -logits.gather(1, torch.tensor(target, device=logits.device)[:, None])[:, 0]
        first = [n for n, i in enumerate(row) if (n == 0 or row[n - 1] != i) and questions[i].levels]
        if first:
            soft = torch.tensor([questions[row[n]].levels for n in first], device=logits.device)
            told = logits[first][:, self.levels.to(logits.device)]
            values = torch.arange(len(LEVELS), device=logits.device)
            error = ((told.softmax(-1) - soft) * values).sum(-1).square()  # of the expected rating
            rated = error - (soft * told).sum(-1)
            losses = losses.index_put((torch.tensor(first, device=logits.device),), rated)
        return losses


def train_decoder(model: Any, decoder: Decoder, pictures: Pictures, steps: int, seed: int, machine: Machine) -> None:
    """Train the projector and the Llama; projector and embeddings learn at .3 of the rate of the layers."""
    layers = [p for n, p in model.model.language_model.named_parameters() if "embed_tokens" not in n]
    slow = [*model.model.multi_modal_projector.parameters(), model.get_input_embeddings().weight]
    optimizer = optimizer_of([{"params": layers, "peak": 1e-3}, {"params": slow, "peak": 3e-4}], 1e-3)
    log = Log(steps)
    for step in range(steps):
        rng = np.random.default_rng([seed, 6, step])
        rows = chosen(pictures, rng)
        loss = torch.zeros(())
        for draw, n in ((short, SHORT), (long, LONG)):
            asked = rng.choice(rows, n)
            questions = [
                draw(scene_at(pictures, i), pictures.severity[i], bool(pictures.severity[i] < CLEAR), rng)
                for i in asked
            ]
            with machine.autocast():
                loss = loss + decoder.loss(questions, asked[:, None])
        pairs = rng.choice(rows, (PAIRS, 2))
        captions = [training_caption(scene_at(pictures, i), rng) for i in pairs[:, 0]]
        compared = [comparison(text, *pictures.severity[pair]) for text, pair in zip(captions, pairs)]
        with machine.autocast():
            loss = (loss + decoder.loss(compared, pairs)) / (SHORT + LONG + PAIRS)
        advance(optimizer, loss, step, steps)
        log(step, loss)


class Log:
    """Prints the mean loss of every 100 steps, with the CPU time so far."""

    def __init__(self, steps: int) -> None:
        self.steps, self.began, self.losses = steps, time.process_time(), []

    def __call__(self, step: int, loss: torch.Tensor) -> None:
        self.losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0 or step + 1 == self.steps:
            mean, spent = np.mean(self.losses), time.process_time() - self.began
            print(f"step {step + 1}/{self.steps}  loss {mean:.3f}  {spent:.0f} CPU-s", flush=True)
            self.losses = []


def stored_pictures(file: Path, seed: int, machine: Machine) -> Pictures:
    """Return the training pictures, made once."""
    if not file.exists():
        pictures = made(AMOUNT, str(PIPELINE), seed, machine)
        np.savez(file, **vars(pictures))
    with np.load(file) as stored:
        return Pictures(**stored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=3000)
    parser.add_argument("--decoder-steps", type=int, default=3600)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    machine = Machine(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    pictures = stored_pictures(args.work / f"pictures-{args.seed}.npz", args.seed, machine)
    asking = processor()
    model = judge(asking.tokenizer).to(machine.device)
    print(f"{len(pictures)} pictures; {machine}; {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    tower, file = model.model.vision_tower, args.work / f"tower-{args.seed}.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        heads = Heads().to(machine.device)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        tower.eval()
    else:
        heads = train_tower(model, pictures, args.tower_steps, args.seed, machine)
        torch.save({"tower": tower.state_dict(), "heads": heads.state_dict()}, file)
    start_from_heads(model, heads, asking.tokenizer)
    # the backward pass of fused attention is slower on a CPU
    model.model.language_model.set_attn_implementation("eager")
    decoder = Decoder(model, asking.tokenizer, features(model, pictures.images, machine))
    train_decoder(model, decoder, pictures, args.decoder_steps, args.seed, machine)
    model.half().save_pretrained(args.out)
    asking.save_pretrained(args.out)
    print(f"{args.out} written")


if __name__ == "__main__":
    main()
