"""Records every denoising step while the pipeline samples, and recomputes the steps with any network.

The pipeline itself encodes, packs, prepares the guidance inputs and calls the denoiser. The denoiser's inputs except
sample and time are recorded as the condition. In sampling and in training, the same float32 code turns the denoiser's
output into a prediction, which is checked against the prediction that the pipeline passes to its scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
from prefkit.train.online.noise import SMALLEST_STD, Noise, Step, Times, broadcast
from prefkit.types import digest

Condition = tuple[Tree | None, Tree]  # of one sample: (negative, None without guidance; positive)


@dataclass
class Chains:
    """Recorded denoising chains of N samples over S steps, on the CPU.

    states [N, S + 1, ...] float32; log_prob, std [N, S]; clock [S] (schedule time); now, then [S] (see Times)
    conditions: one per sample; guidance: the classifier-free guidance scale; seeds: one per sample, for the step noise
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
        """Return the indices of the sample's stochastic steps. Deterministic steps have no density to learn from."""
        return (self.std[sample] > SMALLEST_STD).nonzero().flatten()

    def times(self, steps: Tensor, device: torch.device) -> Times:
        return Times(self.now[steps].to(device), self.then[steps].to(device), self.before_one)

    def mean(self, rows: Sequence[int], steps: Tensor) -> Tensor:
        """Return the sampling policy's means [B, ...]: the states after the steps minus the noise that was added."""
        after = self.states[rows, steps + 1]
        pairs = zip(rows, steps.tolist(), strict=True)
        noise = torch.stack([step_noise(self.seeds[row], step, after[0]) for row, step in pairs])
        return after - broadcast(self.std[rows, steps], after) * noise

    @classmethod
    def joined(cls, parts: Sequence[Chains]) -> Chains:
        names = ("states", "log_prob", "std")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        joined["conditions"] = [condition for part in parts for condition in part.conditions]
        return replace(parts[0], **joined, seeds=[seed for part in parts for seed in part.seeds])


def step_noise(seed: int, step: int, like: Tensor) -> Tensor:
    """Draw a sample's noise for one step, float32 on the CPU, as a function of (seed, step) alone."""
    generator = torch.Generator("cpu").manual_seed(int(digest("step", seed, step, length=16), 16) >> 1)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32)


def stochastic_steps(steps: int, window: int, every: int, seed: int, number: int, request: str) -> np.ndarray:
    """Return a mask [steps] of a chain's stochastic steps: all steps (window 0), or a window of `window` steps.

    every: number of rounds after which the window moves by one step (MixGRPO, arXiv 2507.21802: window 4, every 25); 0
    draws a position per group and round (Flow-GRPO's fast variant: window 2). Training collapses if the members of a
    group have different windows, so the position depends only on (seed, round `number`, request).
    """
    if window == 0 or window >= steps:
        return np.ones(steps, dtype=bool)
    positions = steps - window + 1
    drawn = int(digest("window", seed, number, request, length=12), 16)
    start = (number // every if every else drawn) % positions
    mask = np.zeros(steps, dtype=bool)
    mask[start : start + window] = True
    return mask


class Rollout:
    """Samples with `pipe` and recomputes the recorded steps. settings: arguments of models.sample.Sampler.

    autocast: dtype for the denoiser's autocast in sampling and in learning, or None.
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

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext()

    def training_precision(self) -> Any:
        """Return a context in which the pipeline's denoiser computes in the training precision."""
        return forward_as(self.net, self._autocast)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], active: Tensor) -> tuple[list[Sampled], Chains]:
        """Sample one image per prompt and record its chain. active: [B, S] bool, the stochastic steps of each sample.

        Raises CaptureError if the pipeline calls its denoiser more than once per step, or applies guidance in an
        unknown way.
        """
        tape = _Tape(self, len(prompts), seeds, active)
        with ExitStack() as stack:
            stack.enter_context(self.training_precision())
            hook = self.net.register_forward_hook(tape.after_forward, with_kwargs=True)
            stack.callback(hook.remove)
            pre = self.net.register_forward_pre_hook(tape.before_forward, with_kwargs=True)
            stack.callback(pre.remove)
            stack.enter_context(replaced(self.pipe.scheduler, "step", tape.step))
            images = self.sampler.sample(prompts, seeds)
        return images, tape.chains()

    def transition(
        self, net: Any, chains: Chains, rows: Sequence[int], steps: Tensor, keep_mean: bool
    ) -> tuple[Step, Step]:
        """Return two Steps, computed with `net` and as recorded in sampling. Row i is step steps[i] of sample rows[i].

        All samples must have the same condition signature. keep_mean: the recorded Step has the sampling policy's means;
        otherwise, it has those of `net`.
        """
        device, rows = self.device, list(rows)
        before, after = chains.states[rows, steps].to(device), chains.states[rows, steps + 1].to(device)
        conditions = [chains.conditions[row] for row in rows]
        prediction = self.predict(net, before, chains.clock[steps].to(device), conditions, chains.guidance)
        active = torch.ones(len(rows), dtype=torch.bool, device=device)
        mean, std, dt = self.noise.step(before, prediction, chains.times(steps, device), active)
        new = Step(after, mean, std, dt, self.noise.log_prob(after, mean, std))
        old_mean = chains.mean(rows, steps).to(device) if keep_mean else mean.detach()
        return new, Step(after, old_mean, std.detach(), dt, chains.log_prob[rows, steps].to(device))

    def predict(self, net: Any, x: Tensor, clock: Tensor, conditions: Sequence[Condition], guidance: float) -> Tensor:
        """Return the prediction after guidance, [B, ...] float32.

        The network gets negative and positive conditions in one batch, as the pipeline sends them.
        """
        negatives = [negative for negative, _ in conditions if negative is not None]
        rows = [*negatives, *(positive for _, positive in conditions)]
        copies = 2 if negatives else 1
        condition = to_device(joined(self.wiring.batch, rows), x.device)
        with self._autocast():
            x, clock = torch.cat([x] * copies), torch.cat([clock] * copies)
            return guided(predict(net, self.wiring, x, clock, condition), len(conditions), guidance)

    def signature(self, condition: Condition) -> str:
        return signature(self.wiring, condition[1])


def guided(output: Tensor, count: int, guidance: float) -> Tensor:
    """Apply classifier-free guidance, in float32, to outputs [negative; positive] of 2 * count samples.

    An output of `count` samples is returned without guidance.
    """
    output = output.float()
    if len(output) == count:
        return output
    negative, positive = output.chunk(2)
    return negative + guidance * (positive - negative)


class _Tape:
    """Records one pipeline call, by hooks on the denoiser and a replacement of the scheduler's step."""

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
        """Record the condition at the first denoiser call. Raises CaptureError at a second call within one step."""
        if self.output is not None:
            raise CaptureError(
                f"{type(self.rollout.pipe).__name__} calls its denoiser more than once per step, so training cannot "
                "reproduce its guidance. Set generate.NAME.guidance to a value that needs one call per step."
            )
        if not self.conditions:
            self._record_conditions(bind(net, args, kwargs))
        return None

    def after_forward(self, net: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = stacked(bind(net, args, kwargs)[self.rollout.wiring.sample])
        self.output = OUTPUT[self.rollout.wiring.output](stacked(output), x).float()

    def _record_conditions(self, inputs: dict[str, Any]) -> None:
        wiring, count = self.rollout.wiring, self.count
        size = len(inputs[wiring.sample])
        if size not in (count, 2 * count):
            raise CaptureError(
                f"{type(self.rollout.pipe).__name__}: the denoiser received {size} samples for {count} prompts; only "
                "one per prompt, or two with guidance, are supported."
            )
        condition = {name: value for name, value in inputs.items() if name not in (wiring.sample, wiring.time)}
        rows = [row(wiring.batch, condition, i) for i in range(size)]
        negatives: list[Tree | None] = list(rows[:count]) if size > count else [None] * count
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
        after = mean + broadcast(std, mean) * noise
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
        prediction = guided(self.output, self.count, self.guidance)
        tolerance = tolerance_of(model_output.dtype) * (1.0 if model_output.dtype == torch.float32 else self.guidance)
        if not same(model_output, prediction, tolerance):
            raise CaptureError(
                f"{type(pipe).__name__} does not pass negative + {self.guidance:g} (positive - negative) of the "
                "denoiser's outputs to its scheduler, so training cannot reproduce its guidance. Remove "
                "guidance_rescale and similar options from generate.NAME.call."
            )
        return prediction

    def chains(self) -> Chains:
        now, then = torch.tensor(self.times, dtype=torch.float32).unbind(1)
        states, log_prob, std = (torch.stack(column, 1) for column in (self.states, self.log_prob, self.std))
        clock = torch.stack(self.clock)
        return Chains(states, log_prob, std, clock, now, then, self.one, self.conditions, self.guidance, self.seeds)


def row(rules: Mapping[str, int | str], tree: Tree, i: int, path: str = "") -> Tree:
    """Return sample i's condition from a batch's condition; the inverse of models.capture.conditions.joined."""
    rule = rules.get(path)
    if isinstance(rule, int):
        return tree.narrow(rule, i, 1).detach().to("cpu", copy=True)  # a round's conditions may not fit on the GPU
    if rule == "list":
        return [map_tensors(lambda t: t.detach().to("cpu", copy=True), tree[i])]
    if rule == "shared":
        return tree
    if isinstance(tree, dict):
        return {key: row(rules, child, i, f"{path}.{key}" if path else str(key)) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(row(rules, child, i, f"{path}.{n}" if path else str(n)) for n, child in enumerate(tree))
    raise CaptureError(f"the denoiser's input {path} was missing in the capture, so it cannot be split by sample.")


def step_times(scheduler: Any, prediction: str, timestep: Any, number: int) -> tuple[float, float, Tensor, float]:
    """Return (start, end, schedule time [], before_one) of step `number`; see noise.Times."""
    if prediction == "flow":
        sigmas = scheduler.sigmas
        return float(sigmas[number]), float(sigmas[number + 1]), sigmas[number].detach().cpu().float(), float(sigmas[1])
    index = int(timestep)
    previous = index - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    then = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    return float(scheduler.alphas_cumprod[index]), float(then), torch.tensor(index), 1.0


def set_recordable_scheduler(pipe: Any, prediction: str) -> None:
    """Give an epsilon or v pipeline diffusers' DDIM scheduler, whose step densities are known.

    Raises UsageError for a flow pipeline with a scheduler other than FlowMatchEulerDiscreteScheduler.
    """
    import diffusers

    kind = type(pipe.scheduler).__name__
    if prediction == "flow":
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise UsageError(
                f"online training of a flow model needs FlowMatchEulerDiscreteScheduler, but the pipeline has "
                f"{kind}. Remove generate.NAME.scheduler."
            )
        return
    if kind != "DDIMScheduler":
        pipe.scheduler = diffusers.DDIMScheduler.from_config({"clip_sample": False, **pipe.scheduler.config})
