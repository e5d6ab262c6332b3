"""Find out how a pipeline is wired, by running it for a few steps and trying short lists of maps on what was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import CaptureError
from prefkit.models.capture import conditions, maps, prove
from prefkit.models.capture.record import Record, watch
from prefkit.models.capture.wiring import Wiring
from prefkit.models.load.pipeline import denoiser_name

PROMPTS = ("a red square", "two blue circles on a table")
STEPS = 4  # Qwen-Image gives NaN with one; PNDM needs four; sigma and 1 - sigma must be told apart


def capture(
    pipe: Any, *, height: int | None = None, width: int | None = None, call: Mapping[str, Any] | None = None
) -> Wiring:
    """Run `pipe` on two prompts and prove how it is wired.

    Do this before compile, DDP or adapters. `call` are further arguments of generation that matter for the
    condition; guidance may be among them. Raises CaptureError, naming the class and what was tried, where no
    known map reproduces the numbers, or two that disagree do.
    """
    denoiser = denoiser_name(pipe)
    if getattr(pipe, "vae", None) is None:
        raise CaptureError(f"{type(pipe).__name__} has no VAE; models that work on pixels need a family of their own.")
    prediction = prove.declared(pipe)
    base = conditions.call_of(pipe, call or {}, height, width)
    several, no_guidance = conditions.find_call(pipe, denoiser, PROMPTS, base)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(len(PROMPTS))]
    whole = base | no_guidance | several | {"num_inference_steps": STEPS, "generator": generators}
    with conditions.quiet(pipe):
        record = watch(pipe, denoiser, whole | {"output_type": "pil"})
    if len(record.steps) < 2 or record.decoded is None or not record.images:
        raise CaptureError(
            f"{type(pipe).__name__}: in a run of {STEPS} steps, {len(record.steps)} scheduler steps, "
            f"{'no' if record.decoded is None else 'a'} call of vae.decode and {len(record.images)} images were seen; at "
            "least two steps, the decoding and images must be. Video is not supported; another such model needs a family "
            "of its own."
        )
    prove.prove_chain(pipe, record)
    sample, state, entry, states = _sample_argument(pipe, prediction, record)
    output = _only(pipe, "output of the denoiser -> model_output", _outputs(record))
    time, clock = _time_argument(pipe, prediction, record, sample)
    prove.prove_prediction(pipe, prediction, record, states, exploding=state != "identity")
    layout, affine = _latent_map(pipe, record)
    assert record.decoded is not None
    partial = Wiring(
        pipeline=type(pipe).__name__,
        denoiser=denoiser,
        sample=sample,
        time=time,
        state=state,
        input=entry,
        output=output,
        clock=clock,
        layout=layout,
        affine=affine,
        downscale=record.images[0].height // record.decoded.shape[-2],
        prediction=prediction,
        train_steps=pipe.scheduler.config.num_train_timesteps,
        no_guidance=no_guidance,
        batch={},
    )
    return conditions.with_batch_rules(pipe, partial, several, base)


def _only(pipe: Any, what: str, fits: list[Any]) -> Any:
    if len(fits) != 1:
        found = "none of the known maps fits" if not fits else f"these fit and disagree: {', '.join(map(str, fits))}"
        raise CaptureError(
            f"{type(pipe).__name__}: {what}: {found}. prefkit does not guess; such a model needs a family of its own."
        )
    return fits[0]


def _fits(seen: Any, attempt: Callable[..., Any], *given: Any) -> bool:
    """Whether a map can be applied at all and gives what was seen."""
    try:
        result = attempt(*given)
    except (RuntimeError, IndexError, AttributeError, TypeError, ValueError):
        return False
    dtype = seen[0].dtype if isinstance(seen, list) else seen.dtype
    return maps.same(seen, result, maps.tolerance_of(dtype))


def _sample_argument(pipe: Any, prediction: str, record: Record) -> tuple[str, str, str, list[Tensor]]:
    """(argument, STATE name, INPUT name, x_t of each step)"""
    fits: dict[tuple[str, str, str], list[Tensor]] = {}
    levels = [prove.noise_level(pipe, prediction, step) for step in record.steps]
    states = ["identity"] if prediction == "flow" else list(maps.STATE)
    for name in [name for name, value in record.steps[0].arguments.items() if _tensors(value)]:
        for state in states:
            x = [maps.STATE[state](step.before, level) for step, level in zip(record.steps, levels, strict=True)]
            for entry in (*maps.INPUT, *maps.EXTRA_INPUT):
                behind = maps.held_behind(entry, record.steps[0].arguments[name], x[0])
                if entry in maps.EXTRA_INPUT and behind is None:
                    continue
                seen = zip(record.steps, x, strict=True)  # what stands behind x_t must stay as it is from step to step
                if all(_fits(s.arguments[name], maps.enter, entry, x_t, behind) for s, x_t in seen):
                    fits[name, state, entry] = x
    entries = ", ".join((*maps.INPUT, *maps.EXTRA_INPUT))
    tried = f"scheduler's sample -> argument of the denoiser (tried {', '.join(maps.STATE)} then {entries})"
    found = _only(pipe, tried, list(fits))
    return *found, fits[found]


def _tensors(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) and value else value, Tensor)


def _outputs(record: Record) -> list[str]:
    return [
        name
        for name, leave in maps.OUTPUT.items()
        if all(_fits(s.model_output, leave, s.output, s.before) for s in record.steps)
    ]


def _time_argument(pipe: Any, prediction: str, record: Record, sample: str) -> tuple[str, str]:
    """(argument, CLOCK name)"""
    steps = pipe.scheduler.config.num_train_timesteps
    fits = []
    for name, value in record.steps[0].arguments.items():
        if name == sample or not isinstance(value, (Tensor, float, int)) or isinstance(value, bool):
            continue
        for clock in maps.CLOCKS_OF[prediction]:
            if all(_clock_fits(clock, prediction, steps, s.time, s.arguments[name]) for s in record.steps):
                fits.append((name, clock))
    return _only(pipe, f"time -> argument of the denoiser (tried {', '.join(maps.CLOCKS_OF[prediction])})", fits)


def _clock_fits(clock: str, prediction: str, steps: int, time: float, seen: Any) -> bool:
    seen = torch.as_tensor(seen)
    if seen.ndim > 1 or seen.numel() not in (1, len(PROMPTS)):
        return False
    own = torch.tensor(time / steps if prediction == "flow" else time, dtype=torch.float64)
    expected = maps.CLOCK[clock](own, steps).double()
    limit = maps.tolerance_of(seen.dtype if seen.is_floating_point() else torch.float32)
    return bool(((seen.cpu().double() - expected).abs() <= limit * max(1e-3, abs(expected.item()))).all())


def _latent_map(pipe: Any, record: Record) -> tuple[str, str]:
    """(LAYOUT name, AFFINE name) that lead from the scheduler's last sample to what vae.decode was given."""
    final, seen = record.steps[-1].after, record.decoded
    assert seen is not None
    height, width = seen.shape[-2:]
    fits: dict[tuple[str, str], tuple[Any, Any]] = {}
    for layout, (to_grid, _) in maps.LAYOUT.items():
        for affine, numbers in maps.AFFINE.items():

            def arrive(to_grid: Any = to_grid, numbers: Any = numbers) -> Tensor:
                grid = to_grid(final.to(seen.dtype), height, width)
                divisor, offset = numbers(pipe.vae, grid)
                return grid / divisor + offset

            if _fits(seen, arrive):
                fits[layout, affine] = numbers(pipe.vae, seen)
    agreeing = list(fits)[:1] if len({str(pair) for pair in fits.values()}) == 1 else list(fits)
    return _only(
        pipe, f"final latents -> vae.decode (tried {', '.join(maps.LAYOUT)} with {', '.join(maps.AFFINE)})", agreeing
    )
