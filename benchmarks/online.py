"""A round of online training against its bare forward and backward passes, in one process.

    OMP_NUM_THREADS=1 python benchmarks/online.py [--rounds 4] [--samples 32] [--steps 6]

bound    the denoiser's forwards of the sampling, and forward and backward of every step that is learned from, on the same
         batches and with the same LoRA; nothing else
images   the bound, and the VAE's decoding of the samples, which every loop with image rewards needs
round    the complete round, with decoding, rewards, storage and the optimizer
plain    the same round with the habits of ddpo-pytorch, on the same batches: prompts encoded for every batch, rewards
         computed one by one after the sampling, log-probabilities and a micro-step for every time step; nothing
         is stored
small    plain, on the batches of ddpo-pytorch's compressibility: 8 samples in sampling, 4 in training

The variants alternate, a round of each. Times are CPU seconds over all threads, which other work on the machine affects
less than wall time; medians over the rounds, and of the ratios in each.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from prefkit.config import Choice, Generate, Lora, Model, Online, Recipe, Requests, Score, Train
from prefkit.models.load.pipeline import load_pipeline
from prefkit.output import table
from prefkit.score.scorer_set import ScorerSet
from prefkit.store import Store
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.noise import SMALLEST_STD, Noise, Times, gaussian
from prefkit.train.online.rollout import set_recordable_scheduler, step_times
from prefkit.train.online.rounds import RoundWriter
from prefkit.train.optimizers import PolicyOptimizer
from prefkit.train.policy import make_policy
from prefkit.train.run import run_train

Seconds = dict[str, float]


def recipe_of(folder: Path, rounds: int, samples: int, steps: int) -> Recipe:
    online = Online(rewards={"size": 1.0}, rounds=rounds, requests=samples // 8, samples=8, watch_every=0)
    train = Train(objective=Choice("ddpo"), lora=Lora(16), batch_size=samples, warmup=0, online=online, device="cpu")
    return Recipe(
        run=str(folder),
        model=Model(base="tiny"),
        requests=Requests(source="tiny"),
        generate={"own": Generate(steps=steps, guidance=1.0, device="cpu")},
        score={"size": Score(use="jpeg", options={"direction": "expand"})},
        train={"up": train},
    )


class Clock:
    """CPU seconds by part, of the thread that does it."""

    def __init__(self) -> None:
        self.parts: Seconds = {}

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.parts[part] = self.parts.get(part, 0.0) + time.thread_time() - begun

        return timed

    def whole(self, call: Callable[[], Any]) -> Seconds:
        """The parts of one call, and what is left of it, over all threads."""
        self.parts = {}
        begun = time.process_time()
        call()
        total = time.process_time() - begun
        return {**self.parts, "the rest": total - sum(self.parts.values()), "all": total}


class Bare:
    """The denoiser alone, and the plain loop around it."""

    def __init__(self, config: Train, samples: int, steps: int) -> None:
        self.pipe, self.samples, self.steps = load_pipeline("tiny"), samples, steps
        self.net, self.clock = self.pipe.unet, Clock()
        self.tokens = self.pipe.text_encoder.config.max_position_embeddings
        self.policy = make_policy(self.net, config, frozen=False)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=config.learning_rate)
        set_recordable_scheduler(self.pipe, "epsilon")
        self.noise = Noise.of(None, None, self.pipe.scheduler, "epsilon")
        self.backward = self.clock.around("denoiser", torch.Tensor.backward)
        self.forward = self.clock.around("denoiser", lambda *given: self.net(*given).sample)
        self.reward = self.clock.around("rewards, in turn", jpeg_size)
        self.decode = self.clock.around("decoding", self.pipe.vae.decode)
        self.encode = self.clock.around("prompts", self._encode)

    def bound(self, learned: int) -> None:
        """learned: steps of each sample that are learned from."""
        x, text = (
            torch.randn(self.samples, 4, 16, 16),
            torch.randn(self.samples, self.tokens, self.net.config.cross_attention_dim),
        )
        time_ = torch.full((self.samples,), 500)
        with torch.no_grad():
            for _ in range(self.steps):
                self.net(x, time_, text)
        for _ in range(learned):
            self.net(x, time_, text).sample.square().mean().backward()
        self.optimizer.zero_grad()

    def images(self, learned: int) -> None:
        self.bound(learned)
        with torch.no_grad():
            self.pipe.vae.decode(torch.randn(self.samples, 4, 16, 16))

    def _encode(self, prompts: list[str]) -> torch.Tensor:
        given = self.pipe.tokenizer(
            prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        return self.pipe.text_encoder(given.input_ids)[0]

    def _step(self, number: int, x: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timestep = self.pipe.scheduler.timesteps[number]
        now, then, _, _ = step_times(self.pipe.scheduler, "epsilon", timestep, number)
        whole = torch.ones(len(x))
        mean, std, _ = self.noise.step(x, output, Times(whole * now, whole * then), whole.bool())
        return mean, std.view(-1, 1, 1, 1)

    def plain(self, prompts: list[str], sampled: int, trained: int) -> None:
        """sampled, trained: samples in a batch of sampling and of training."""
        self.pipe.scheduler.set_timesteps(self.steps)
        parts = [self._chains(prompts[i : i + sampled]) for i in range(0, self.samples, sampled)]
        states, logged, text, pixels = (torch.cat(one) for one in zip(*parts, strict=True))
        rewards = np.array([self.reward(one) for one in pixels.numpy()])
        advantage = torch.tensor((rewards - rewards.mean()) / (rewards.std() + 1e-8), dtype=torch.float32)
        for i in range(0, self.samples, trained):
            part = slice(i, i + trained)
            self._learn(states[part], logged[part], text[part], advantage[part], trained / self.samples)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _chains(self, prompts: list[str]) -> tuple[torch.Tensor, ...]:
        """States [B, S + 1, ...], log-probabilities [B, S] (NaN = none), text [B, L, D], pixels [B, H, W, 3]."""
        count, times = len(prompts), self.pipe.scheduler.timesteps
        states, logged = [torch.randn(count, 4, 16, 16)], []
        with torch.no_grad():
            text = self.encode(prompts)
            for number in range(self.steps):
                output = self.forward(states[-1], times[number].expand(count), text)
                mean, std = self._step(number, states[-1], output)
                states.append(mean + std * torch.randn_like(mean))
                known = gaussian(states[-1], mean, std).mean((1, 2, 3))
                logged.append(torch.where(std.flatten() > SMALLEST_STD, known, torch.nan))
            image = self.decode(states[-1] / self.pipe.vae.config.scaling_factor).sample
        pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return torch.stack(states, 1), torch.stack(logged, 1), text, pixels

    def _learn(
        self, states: torch.Tensor, logged: torch.Tensor, text: torch.Tensor, advantage: torch.Tensor, share: float
    ) -> None:
        steps = [number for number in range(self.steps) if logged[:, number].isfinite().all()]
        for number in np.random.permutation(steps):
            time_ = self.pipe.scheduler.timesteps[number].expand(len(states))
            mean, std = self._step(number, states[:, number], self.forward(states[:, number], time_, text))
            ratio = (gaussian(states[:, number + 1], mean, std).mean((1, 2, 3)) - logged[:, number]).exp()
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean()
            self.backward(loss * share / len(steps))


def learned_of(loop: OnlineTrainer) -> int:
    """Steps with a density: a schedule that ends above no noise has one in its last step, too."""
    scheduler, steps = loop.rollout.pipe.scheduler, []
    for number, timestep in enumerate(scheduler.timesteps):
        now, then, _, one = step_times(scheduler, "epsilon", timestep, number)
        x, times = torch.zeros(1, 1), Times(torch.tensor([now]), torch.tensor([then]), one)
        steps.append(loop.rollout.noise.step(x, x, times, torch.ones(1, dtype=torch.bool))[1].item() > SMALLEST_STD)
    return sum(steps)


def jpeg_size(pixels: np.ndarray) -> float:
    from PIL import Image

    Image.fromarray(pixels).save(held := io.BytesIO(), "JPEG", quality=95)
    return held.tell() / 1000


def measure(rounds: int, samples: int, steps: int, folder: Path) -> dict[str, list[Seconds]]:
    recipe = recipe_of(folder, rounds + 1, samples, steps)
    bare, clock, whole = Bare(recipe.train["up"], samples, steps), Clock(), OnlineTrainer.round
    found: dict[str, list[Seconds]] = {"bound": [], "images": [], "round": [], "plain": [], "small": []}
    for place, name, part in (
        (ScorerSet, "score", "rewards, beside"),
        (RoundWriter, "create", "storage"),
        (RoundWriter, "write", "storage"),
        (PolicyOptimizer, "step", "optimizer"),
        (PolicyOptimizer, "backward", "denoiser"),
    ):
        setattr(place, name, clock.around(part, getattr(place, name)))

    def timed(loop: OnlineTrainer, number: int) -> dict[str, float]:
        shown: dict[str, float] = {}
        pipe = loop.rollout.pipe
        if number == 0:  # warms up
            pipe.vae.decode = clock.around("decoding", pipe.vae.decode)
            pipe.unet.forward = clock.around("denoiser", pipe.unet.forward)
        prompts = [r.prompt for r in loop.requests[:samples]]
        turn = {
            "round": clock.whole(lambda: shown.update(whole(loop, number))),
            "bound": bare.clock.whole(lambda: bare.bound(learned_of(loop))),
            "images": bare.clock.whole(lambda: bare.images(learned_of(loop))),
            "plain": bare.clock.whole(lambda: bare.plain(prompts, samples, samples)),
            "small": bare.clock.whole(lambda: bare.plain(prompts, 8, 4)),
        }
        for what, seconds in turn.items() if number else ():
            found[what].append(seconds)
        return shown

    OnlineTrainer.round = timed  # type: ignore[method-assign]
    run_train(Store.create(folder), recipe, "up")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 4), ("samples", 32), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    known = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(known.rounds, known.samples, known.steps, Path(folder))
    bounds = {what: [turn["all"] for turn in found[what]] for what in ("bound", "images")}
    rows = []
    for what, turns in found.items():
        for part in turns[0] if what not in bounds else ["all"]:
            took = [turn.get(part, 0.0) for turn in turns]
            to = {f"to the {name}": round(median(map(truediv, took, all_)), 3) for name, all_ in bounds.items()}
            rows.append({"": what, "part": part, "CPU seconds": round(median(took), 3), **to})
    print(table(rows))


if __name__ == "__main__":
    main()
