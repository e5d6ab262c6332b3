"""Sampling with the pipeline's own call while every step is written down, and the same steps again under a network.

The pipeline keeps what is its own: encoding, packing, guidance's inputs, the order of calls. What the denoiser is given
beside sample and time is kept as the condition, what it returns is turned into a prediction here, by the same float32
lines in sampling and in training, and the pipeline's own combination is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import CaptureError, UsageError
from prefkit.models.capture.conditions import joined, signature
from prefkit.models.capture.maps import OUTPUT, same, stacked, tolerance_of
from prefkit.models.capture.record import bind, replaced
from prefkit.models.capture.wiring import Wiring
from prefkit.models.predict import forward_as, predict
from prefkit.models.sample import Sampled, Sampler
from prefkit.models.trees import Tree, map_tensors, to_device
from prefkit.train.online.noise import SMALLEST_STD, Noise, Step, Times, spread
from prefkit.types import digest

Condition = tuple[Tree | None, Tree]  # of one sample: negative (None without guidance), positive


@dataclass
class Chains:
    """The chains of N samples over S steps, on the CPU.

    states [N, S + 1, ...] float32; log_prob, std [N, S]; clock [S] (schedule time); now, then [S] (Times)
    conditions: one a sample; guidance: what the two halves were combined with; seeds: of the steps' noise
    """

    states: Tensor
    log_prob: Tensor
    std: Tensor
    clock: Tensor
    now: Tensor
    then: Tensor
    before_one: float
    conditions: list[Condition]
    guidance: float
    seeds: list[int]

    def learnable(self, sample: int) -> Tensor:
        """Numbers of the steps that have a density."""
        return (self.std[sample] > SMALLEST_STD).nonzero().flatten()

    def times(self, steps: Tensor) -> Times:
        return Times(self.now[steps], self.then[steps], self.before_one)

    def mean(self, rows: Sequence[int], steps: Tensor) -> Tensor:
        """The sampling policy's means [B, ...], from where the steps went and the noise that was added."""
        after = torch.stack([self.states[r, s + 1] for r, s in zip(rows, steps.tolist(), strict=True)])
        noise = torch.stack([step_noise(self.seeds[r], s, after[0]) for r, s in zip(rows, steps.tolist(), strict=True)])
        std = torch.stack([self.std[r, s] for r, s in zip(rows, steps.tolist(), strict=True)])
        return after - spread(std, after) * noise

    @classmethod
    def joined(cls, parts: Sequence[Chains]) -> Chains:
        first = parts[0]
        return cls(
            torch.cat([p.states for p in parts]),
            torch.cat([p.log_prob for p in parts]),
            torch.cat([p.std for p in parts]),
            first.clock,
            first.now,
            first.then,
            first.before_one,
            [c for p in parts for c in p.conditions],
            first.guidance,
            [s for p in parts for s in p.seeds],
        )


def step_noise(seed: int, step: int, like: Tensor) -> Tensor:
    """Of one sample and step, [...] float32 on the CPU: a function of (seed, step) alone."""
    generator = torch.Generator("cpu").manual_seed(int(digest("step", seed, step, length=16), 16) >> 1)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32)


class Rollout:
    """Samples with `pipe` and runs its steps again. settings: arguments of models.sample.Sampler.

    autocast: dtype in which the denoiser computes, in both passes, or None.
    """

    def __init__(
        self, pipe: Any, wiring: Wiring, noise: Noise, settings: Mapping[str, Any], autocast: Any = None
    ) -> None:
        self.pipe, self.wiring, self.noise, self.autocast = pipe, wiring, noise, autocast
        self.net = getattr(pipe, wiring.denoiser)
        self.sampler = Sampler(pipe, **settings)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def precise(self) -> Any:
        return torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext()

    def computing(self) -> Any:
        """with rollout.computing(): calls of the pipeline compute as training does."""
        return forward_as(self.net, self.precise)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], active: Tensor) -> tuple[list[Sampled], Chains]:
        """active: [B, S] bool, which steps of each sample are stochastic. Raises CaptureError where the pipeline does
        more than one call of its denoiser a step, or combines guidance in a way that is not known."""
        tape = _Tape(self, len(prompts), seeds, active)
        with ExitStack() as stack:
            stack.enter_context(self.computing())
            hook = self.net.register_forward_hook(tape.after_forward, with_kwargs=True)
            stack.callback(hook.remove)
            pre = self.net.register_forward_pre_hook(tape.before_forward, with_kwargs=True)
            stack.callback(pre.remove)
            stack.enter_context(replaced(self.pipe.scheduler, "step", tape.step))
            found = self.sampler.sample(prompts, seeds)
        return found, tape.chains()

    def transition(
        self, net: Any, chains: Chains, rows: Sequence[int], steps: Tensor, keep_mean: bool
    ) -> tuple[Step, Step]:
        """Steps `steps` [B] of the samples `rows` under `net`, and as they were taken.

        keep_mean: with the means of the sampling policy, too. One signature a call.
        """
        device = self.device
        before = torch.stack([chains.states[r, s] for r, s in zip(rows, steps.tolist(), strict=True)]).to(device)
        after = torch.stack([chains.states[r, s + 1] for r, s in zip(rows, steps.tolist(), strict=True)]).to(device)
        conditions = [chains.conditions[r] for r in rows]
        prediction = self.predict(net, before, chains.clock[steps].to(device), conditions, chains.guidance)
        cut = chains.times(steps)
        times = Times(cut.now.to(device), cut.then.to(device), cut.before_one)
        active = torch.ones(len(rows), dtype=torch.bool, device=device)
        mean, std, dt = self.noise.step(before, prediction, times, active)
        new = Step(after, mean, std, dt, self.noise.log_prob(after, mean, std))
        was = torch.stack([chains.log_prob[r, s] for r, s in zip(rows, steps.tolist(), strict=True)]).to(device)
        old_mean = chains.mean(rows, steps).to(device) if keep_mean else mean.detach()
        return new, Step(after, old_mean, std.detach(), dt, was)

    def predict(self, net: Any, x: Tensor, clock: Tensor, conditions: Sequence[Condition], guidance: float) -> Tensor:
        """[B, ...] float32, after guidance: the two halves go through the network as the pipeline sends them."""
        negatives = [negative for negative, _ in conditions if negative is not None]
        rows = [*negatives, *(positive for _, positive in conditions)]
        times = 2 if negatives else 1
        condition = to_device(joined(self.wiring.batch, rows), x.device)
        with self.precise():
            x, clock = torch.cat([x] * times), torch.cat([clock] * times)
            return guided(predict(net, self.wiring, x, clock, condition), len(conditions), guidance)

    def signature(self, condition: Condition) -> str:
        return signature(self.wiring, condition[1])


def guided(output: Tensor, count: int, guidance: float) -> Tensor:
    """Classifier-free guidance of [negative; positive], 2 * count samples, in float32; count samples are as they are."""
    output = output.float()
    if len(output) == count:
        return output
    negative, positive = output.chunk(2)
    return negative + guidance * (positive - negative)


class _Tape:
    """Stands between pipeline and scheduler and behind the denoiser, for one call of the pipeline."""

    def __init__(self, rollout: Rollout, count: int, seeds: Sequence[int], active: Tensor) -> None:
        self.rollout, self.count, self.seeds, self.active = rollout, count, list(seeds), active
        self.output: Tensor | None = None
        self.state: Tensor | None = None
        self.states: list[Tensor] = []
        self.log_prob: list[Tensor] = []
        self.std: list[Tensor] = []
        self.clock: list[Tensor] = []
        self.times: list[tuple[float, float]] = []
        self.conditions: list[Condition] = []
        self.guidance = 1.0

    def before_forward(self, net: Any, args: Any, kwargs: Any) -> Any:
        """The first denoiser call of all tells the condition."""
        if self.output is not None:
            raise CaptureError(
                f"{type(self.rollout.pipe).__name__} calls its denoiser more than once a step, so its guidance cannot be "
                "repeated in training. Set the guidance of generation so that one call a step is enough."
            )
        if not self.conditions:
            self._note(bind(net, args, kwargs))
        return None

    def after_forward(self, net: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = stacked(bind(net, args, kwargs)[self.rollout.wiring.sample])
        self.output = OUTPUT[self.rollout.wiring.output](stacked(output), x).float()

    def _note(self, given: dict[str, Any]) -> None:
        wiring, count = self.rollout.wiring, self.count
        seen = len(given[wiring.sample])
        if seen not in (count, 2 * count):
            raise CaptureError(
                f"{type(self.rollout.pipe).__name__}: the denoiser was given {seen} samples for {count} prompts; one or "
                "two (guidance) each are known."
            )
        condition = {k: v for k, v in given.items() if k not in (wiring.sample, wiring.time)}
        rows = [row(wiring.batch, condition, i) for i in range(seen)]
        negatives: list[Tree | None] = list(rows[:count]) if seen > count else [None] * count
        self.conditions = list(zip(negatives, rows[-count:], strict=True))

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        rollout, number = self.rollout, len(self.times)
        assert self.output is not None
        prediction = self._prediction(model_output)
        state = sample.float() if self.state is None else self.state
        if self.state is None:
            self.states.append(state.cpu())
        now, then, clock, one = step_times(rollout.pipe.scheduler, rollout.noise.prediction, timestep, number)
        full = [torch.full((self.count,), value, device=state.device) for value in (now, then)]
        times = Times(full[0], full[1], one)
        active = self.active[:, number].to(state.device)
        mean, std, _ = rollout.noise.step(state, prediction, times, active)
        noise = torch.stack([step_noise(seed, number, state[0]) for seed in self.seeds]).to(state.device)
        after = mean + spread(std, mean) * noise
        self.log_prob.append(rollout.noise.log_prob(after, mean, std).cpu())
        self.std.append(std.cpu())
        self.states.append(after.cpu())
        self.times.append((now, then))
        self.clock.append(clock)
        self.one, self.state, self.output = one, after, None
        return (after.to(sample.dtype),)

    def _prediction(self, model_output: Tensor) -> Tensor:
        pipe = self.rollout.pipe
        assert self.output is not None
        self.guidance = float(getattr(pipe, "guidance_scale", 1.0) or 1.0)
        found = guided(self.output, self.count, self.guidance)
        wide = tolerance_of(model_output.dtype) * (1.0 if model_output.dtype == torch.float32 else self.guidance)
        if not same(model_output, found, wide):
            raise CaptureError(
                f"{type(pipe).__name__}: what its scheduler is given is not negative + {self.guidance:g} (positive - "
                "negative) of its denoiser's output; guidance_rescale and the like must be off in online training."
            )
        return found

    def chains(self) -> Chains:
        now, then = torch.tensor(self.times, dtype=torch.float32).unbind(1)
        return Chains(
            torch.stack(self.states, 1),
            torch.stack(self.log_prob, 1),
            torch.stack(self.std, 1),
            torch.stack(self.clock),
            now,
            then,
            self.one,
            self.conditions,
            self.guidance,
            self.seeds,
        )


def row(rules: Mapping[str, int | str], tree: Tree, i: int, path: str = "") -> Tree:
    """The condition of sample i out of that of a batch: the inverse of models.conditions.joined."""
    rule = rules.get(path)
    if isinstance(rule, int):
        return tree.narrow(rule, i, 1).detach().to("cpu", copy=True)  # as many as a round has, on no GPU
    if rule == "list":
        return [map_tensors(lambda t: t.detach().to("cpu", copy=True), tree[i])]
    if rule == "shared":
        return tree
    if isinstance(tree, dict):
        return {key: row(rules, child, i, f"{path}.{key}" if path else str(key)) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(row(rules, child, i, f"{path}.{n}" if path else str(n)) for n, child in enumerate(tree))
    raise CaptureError(f"the condition has a leaf {path} that was not there when the pipeline was captured.")


def step_times(scheduler: Any, prediction: str, timestep: Any, number: int) -> tuple[float, float, Tensor, float]:
    """(now, then, schedule time [], the sigma for 1 in 1 - t) of the scheduler's step `number`."""
    if prediction == "flow":
        sigmas = scheduler.sigmas
        return float(sigmas[number]), float(sigmas[number + 1]), sigmas[number].detach().cpu().float(), float(sigmas[1])
    index = int(timestep)
    previous = index - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    then = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    return float(scheduler.alphas_cumprod[index]), float(then), torch.tensor(index), 1.0


def recordable(pipe: Any, prediction: str) -> None:
    """Give an epsilon or v pipeline diffusers' DDIM, whose steps the densities are those of. Raises UsageError."""
    import diffusers

    kind = type(pipe.scheduler).__name__
    if prediction == "flow":
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise UsageError(f"online training of flow models samples with FlowMatchEulerDiscreteScheduler, not {kind}. "
                             "Leave generate.scheduler out.")  # fmt: skip
        return
    if kind != "DDIMScheduler":
        pipe.scheduler = diffusers.DDIMScheduler.from_config({"clip_sample": False, **pipe.scheduler.config})
