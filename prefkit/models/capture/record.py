"""Record a pipeline's run: denoiser calls, scheduler steps, and the latents that the VAE decodes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import CaptureError, UsageError
from prefkit.models.capture.maps import stacked
from prefkit.registry import nearest


class StopCall(Exception):
    """Raised to end a pipeline's call early and to carry a value out of it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


@dataclass
class Step:
    """One call of scheduler.step, with the denoiser call before it."""

    arguments: dict[str, Any]  # the denoiser's arguments, by their names in its forward
    output: Tensor  # the denoiser's output, stacked to one tensor
    model_output: Tensor  # argument `model_output` of scheduler.step
    time: float  # argument `timestep`
    before: Tensor  # argument `sample`
    after: Tensor  # result `prev_sample`
    sigma: float | None = None  # noise level at this step, if the scheduler keeps a list of sigmas
    original: Tensor | None = None  # pred_original_sample, if the scheduler returns it
    converted: Tensor | None = None  # result of convert_model_output, if the scheduler has that method


@dataclass
class Record:
    steps: list[Step] = field(default_factory=list)
    decoded: Tensor | None = None  # input of vae.decode
    images: list[Any] = field(default_factory=list)


_signature = functools.cache(inspect.signature)  # inspecting is slow (a third of a millisecond)


def bind(net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call to `net` as one dict, with the names in the forward of the network's class."""
    kind: Any = type(getattr(net, "_orig_mod", net))
    bound = _signature(kind.forward).bind(net, *args, **kwargs).arguments
    bound.pop("self")
    bound.pop("return_dict", None)
    return {**{k: v for k, v in bound.items() if k != "kwargs"}, **bound.get("kwargs", {})}


@contextmanager
def replaced(owner: Any, name: str, substitute: Any) -> Iterator[None]:
    """Temporarily replace an attribute of `owner`. A method keeps its signature, because pipelines inspect it."""
    original, before = getattr(owner, name), vars(owner).get(name)
    if callable(original):
        substitute = functools.wraps(original)(functools.partial(substitute))
    setattr(owner, name, substitute)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


def check_call_arguments(pipe: Any, names: Iterable[str]) -> None:
    """Raise UsageError if a name is not an argument of the pipeline's call. pipe: a pipeline or its class."""
    kind = pipe if isinstance(pipe, type) else type(pipe)
    known = list(inspect.signature(kind.__call__).parameters)[1:]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(
            f"{kind.__name__} takes no argument {', '.join(unknown)} (from model.inputs, generate.NAME or "
            f"generate.NAME.call).{nearest(unknown[0], known)} It takes {', '.join(known)}."
        )


def run_pipeline(pipe: Any, call: Mapping[str, Any], gradients: bool = False) -> Any:
    """Run `pipe(**call)`. Raises CaptureError if the pipeline cannot work with these arguments.

    gradients: record gradients if the caller does; the pipeline's call then runs without its torch.no_grad decorator.
    """
    try:
        if gradients:
            return inspect.unwrap(type(pipe).__call__)(pipe, **call)
        with torch.no_grad():
            return pipe(**call)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise CaptureError(
            f"{type(pipe).__name__} could not be run on prompts alone: {type(error).__name__}: {error}. If it needs "
            "other arguments, set them in generate.NAME.call or, if they differ between requests, in model.inputs. A "
            "model without prompts needs its own family plug-in."
        ) from error


def record_run(pipe: Any, denoiser: str, call: Mapping[str, Any]) -> Record:
    """Run `pipe(**call)` and record every step. The pipeline is left unchanged.

    If the denoiser's output is all zeros (an untrained network), it is replaced by noise: for zeros, all conversions
    in capture/maps.py agree. Raises CaptureError unless each scheduler step follows exactly one denoiser call.
    """
    recorder = _Recorder(pipe, denoiser)
    hook = getattr(pipe, denoiser).register_forward_hook(recorder.after_forward, with_kwargs=True)
    try:
        with replaced(pipe.scheduler, "step", recorder.step), replaced(pipe.vae, "decode", recorder.decode):
            recorder.record.images = list(getattr(run_pipeline(pipe, call), "images", []))
    finally:
        hook.remove()
    return recorder.record


class _Recorder:
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
                f"{type(self.pipe).__name__} called its {self.denoiser} {len(self.pending)} times before a scheduler "
                "step; exactly one call per step is supported. Disable the option that adds calls, or write a family "
                "plug-in."
            )
        arguments, output = self.pending.pop()
        before, prediction = sample.detach().clone(), model_output.detach().clone()
        scheduler = self.pipe.scheduler
        converted: list[Tensor] = []
        convert: Any = getattr(scheduler, "convert_model_output", None)

        def listen(*args: Any, **kwargs: Any) -> Any:
            converted.append(convert(*args, **kwargs))
            return converted[-1]

        with replaced(scheduler, "convert_model_output", listen) if convert is not None else nullcontext():
            result = self.scheduler_step(model_output, timestep, sample, *args, **kwargs)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        step = Step(arguments, output, prediction, float(timestep), before, after.detach().clone())
        step.sigma, step.original = _sigma(scheduler), _original(result)
        step.converted = converted[-1] if converted else None
        self.record.steps.append(step)
        return result

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.record.decoded = z.detach().clone()
        return self.vae_decode(z, *args, **kwargs)


def _noise_like(output: Any, generator: torch.Generator) -> Any:
    if isinstance(output, Tensor):
        return torch.randn(output.shape, generator=generator).to(output)
    if isinstance(output, dict):  # a ModelOutput
        return type(output)(**{key: _noise_like(value, generator) for key, value in output.items()})
    return type(output)(_noise_like(value, generator) for value in output)


def _original(result: Any) -> Tensor | None:
    x0 = result[1] if isinstance(result, tuple) and len(result) > 1 else getattr(result, "pred_original_sample", None)
    return x0.detach().clone() if isinstance(x0, Tensor) else None


def _sigma(scheduler: Any) -> float | None:
    """Return the noise level of the last step, if the scheduler keeps a list of sigmas."""
    index, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    return None if index is None or sigmas is None else float(sigmas[index - 1])
