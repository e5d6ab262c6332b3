"""Watch a pipeline while it runs: what enters the denoiser, what leaves it, what the scheduler is given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import CaptureError, UsageError
from prefkit.models.capture.maps import stacked
from prefkit.registry import nearest


@dataclass
class Step:
    """One call of scheduler.step and the one call of the denoiser before it.

    arguments  the denoiser's arguments by name, as its class's forward names them
    output     what the denoiser returned, stacked to one tensor
    sigma      the scheduler's own noise level at this step, where it keeps a list of them
    before     the scheduler's `sample`, after: its `prev_sample`
    """

    arguments: dict[str, Any]
    output: Tensor
    model_output: Tensor
    time: float
    before: Tensor
    after: Tensor
    sigma: float | None = None
    original: Tensor | None = None  # pred_original_sample, where the scheduler tells
    converted: Tensor | None = None  # convert_model_output's result, where the scheduler has it


@dataclass
class Record:
    steps: list[Step] = field(default_factory=list)
    decoded: Tensor | None = None  # input of vae.decode
    images: list[Any] = field(default_factory=list)


def forward_of(net: nn.Module) -> inspect.Signature:
    """The signature of the class's own forward, whatever compile or adapters put in its place."""
    kind: Any = type(getattr(net, "_orig_mod", net))
    return _signature(kind.forward)


_signature = functools.cache(inspect.signature)  # a third of a millisecond each time, twice a denoising step


def bind(net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments of a call of `net` as one dict by name."""
    bound = forward_of(net).bind(net, *args, **kwargs).arguments
    bound.pop("self")
    bound.pop("return_dict", None)
    return {**{k: v for k, v in bound.items() if k != "kwargs"}, **bound.get("kwargs", {})}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` in the instance's place of a method for a while."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


def stand_in(original: Any, substitute: Any) -> Any:
    """`substitute` with the signature of `original`: pipelines look into that of scheduler.step."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return substitute(*args, **kwargs)

    return call


def known_arguments(pipe: Any, names: Iterable[str]) -> None:
    """Raise UsageError for a name that the pipeline's call does not take."""
    kind = pipe if isinstance(pipe, type) else type(pipe)
    known = list(inspect.signature(kind.__call__).parameters)[1:]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(
            f"{kind.__name__} takes no argument {', '.join(unknown)} (from model.inputs, or generate.NAME and its "
            f"call).{nearest(unknown[0], known)} It takes {', '.join(known)}."
        )


def run(pipe: Any, call: Mapping[str, Any]) -> Any:
    """pipe(**call) without gradients. Raises CaptureError where the pipeline cannot work with such a call at all."""
    try:
        with torch.no_grad():
            return pipe(**call)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise CaptureError(
            f"{type(pipe).__name__} could not be run on prompts alone: {type(error).__name__}: {error}. What it needs "
            "beside the prompt goes into generate.NAME.call or, where each request has its own, into model.inputs; a model "
            "that makes no images from text needs a family."
        ) from error


def watch(pipe: Any, denoiser: str, call: Mapping[str, Any]) -> Record:
    """Run `pipe(**call)` and write down every step. The pipeline is left as it was.

    A denoiser whose output is zero throughout (a fresh network) fits every map, so noise is put in the
    place of such an output. Raises CaptureError where denoiser and scheduler do not take strict turns.
    """
    watcher = _Watcher(pipe, denoiser)
    hook = getattr(pipe, denoiser).register_forward_hook(watcher.after_forward, with_kwargs=True)
    try:
        with (
            replaced(pipe.scheduler, "step", stand_in(pipe.scheduler.step, watcher.step)),
            replaced(pipe.vae, "decode", stand_in(pipe.vae.decode, watcher.decode)),
        ):
            watcher.record.images = list(getattr(run(pipe, call), "images", []))
    finally:
        hook.remove()
    return watcher.record


class _Watcher:
    """Stands between pipeline and scheduler and between pipeline and VAE, and behind the denoiser."""

    def __init__(self, pipe: Any, denoiser: str) -> None:
        self.pipe, self.denoiser = pipe, denoiser
        self.scheduler_step, self.vae_decode = pipe.scheduler.step, pipe.vae.decode
        self.record = Record()
        self.pending: list[tuple[dict[str, Any], Tensor]] = []
        self.noise = torch.Generator().manual_seed(0)

    def after_forward(self, net: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not stacked(output).any():
            output = _noise_like(output, self.noise)
        self.pending.append((bind(net, args, kwargs), stacked(output).detach().clone()))
        return output

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(self.pending) != 1:
            raise CaptureError(
                f"{type(self.pipe).__name__} called its {self.denoiser} {len(self.pending)} times before one scheduler "
                "step; only pipelines that call it once a step can be trained. Switch off what adds calls, or write a "
                "family."
            )
        arguments, output = self.pending.pop()
        before, given = sample.detach().clone(), model_output.detach().clone()
        with _converted(self.pipe.scheduler) as converted:
            result = self.scheduler_step(model_output, timestep, sample, *args, **kwargs)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        seen = Step(arguments, output, given, float(timestep), before, after.detach().clone())
        seen.sigma, seen.original = _sigma(self.pipe.scheduler), _original(result)
        seen.converted = converted[-1] if converted else None
        self.record.steps.append(seen)
        return result

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.record.decoded = z.detach().clone()
        return self.vae_decode(z, *args, **kwargs)


def _noise_like(output: Any, generator: torch.Generator) -> Any:
    if isinstance(output, Tensor):
        return torch.randn(output.shape, generator=generator).to(output)
    if isinstance(output, dict):  # a ModelOutput, which is also indexed by number
        return type(output)(**{key: _noise_like(value, generator) for key, value in output.items()})
    return type(output)(_noise_like(value, generator) for value in output)


@contextmanager
def _converted(scheduler: Any) -> Iterator[list[Tensor]]:
    """What the scheduler makes of the model's output inside one step, where it has a method for that."""
    seen: list[Tensor] = []
    convert = getattr(scheduler, "convert_model_output", None)
    if convert is None:
        yield seen
        return

    @functools.wraps(convert)
    def listen(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(convert(*args, **kwargs))
        return seen[-1]

    with replaced(scheduler, "convert_model_output", listen):
        yield seen


def _original(result: Any) -> Tensor | None:
    told = result[1] if isinstance(result, tuple) and len(result) > 1 else getattr(result, "pred_original_sample", None)
    return told.detach().clone() if isinstance(told, Tensor) else None


def _sigma(scheduler: Any) -> float | None:
    """The noise level of the step just made, of schedulers that count their steps along a list of sigmas."""
    index, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    return None if index is None or sigmas is None else float(sigmas[index - 1])
