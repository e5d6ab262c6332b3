"""Find a pipeline's wiring (how it connects denoiser, scheduler and VAE) by trying conversions on recorded numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import CaptureError
from prefkit.models.capture import conditions, maps, prove
from prefkit.models.capture.record import Record, record_run
from prefkit.models.capture.wiring import Wiring
from prefkit.models.load.pipeline import denoiser_name

PROMPTS = ("a red square", "two blue circles on a table")
STEPS = 4  # PNDM needs four; fewer cannot distinguish sigma from 1 - sigma


def capture(
    pipe: Any, *, height: int | None = None, width: int | None = None, call: Mapping[str, Any] | None = None
) -> Wiring:
    """Run `pipe` on two prompts and return its wiring, the conversions (capture/maps.py) that reproduce the recording.

    Call this before torch.compile, DDP or adapters are applied. call: further arguments for the pipeline's call, e.g.
    the guidance. Raises CaptureError if no conversion, or several different ones, reproduce the numbers.
    """
    denoiser = denoiser_name(pipe)
    if getattr(pipe, "vae", None) is None:
        raise CaptureError(
            f"{type(pipe).__name__} has no VAE. A model that works on pixels needs its own family plug-in."
        )
    prediction = prove.declared(pipe)
    base = conditions.call_of(pipe, call or {}, height, width)
    two_samples, no_guidance = conditions.find_call(pipe, denoiser, PROMPTS, base)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(len(PROMPTS))]
    run = base | no_guidance | two_samples | {"num_inference_steps": STEPS, "generator": generators}
    with conditions.quiet(pipe):
        record = record_run(pipe, denoiser, run | {"output_type": "pil"})
    if len(record.steps) < 2 or record.decoded is None or not record.images:
        raise CaptureError(
            f"{type(pipe).__name__}: a run of {STEPS} steps made {len(record.steps)} scheduler steps, "
            f"{'no' if record.decoded is None else 'a'} call of vae.decode and {len(record.images)} images; at least "
            "two steps, one call and one image are needed. Video is not supported; other models need a family plug-in."
        )
    prove.prove_chain(pipe, record)
    sample, state, entry, states = _sample_argument(pipe, prediction, record)
    output = _only(pipe, "output of the denoiser -> model_output", _outputs(record))
    time, clock = _time_argument(pipe, prediction, record, sample)
    conditions.check_constant(pipe, [step.arguments for step in record.steps], (sample, time))
    prove.prove_prediction(pipe, prediction, record, states, exploding=state != "identity")
    layout, affine = _latent_map(pipe, record.steps[-1].after, record.decoded)
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
    return conditions.with_batch_rules(pipe, partial, two_samples, base)


def _only(pipe: Any, question: str, fits: list[Any]) -> Any:
    if len(fits) != 1:
        result = "none of the known maps fits" if not fits else f"these fit and disagree: {', '.join(map(str, fits))}"
        raise CaptureError(
            f"{type(pipe).__name__}: {question}: {result}. prefkit does not guess: the model needs a family plug-in."
        )
    return fits[0]


def _fits(recorded: Any, attempt: Callable[..., Any], *arguments: Any) -> bool:
    """True if the conversion `attempt`, applied to `arguments`, reproduces the recorded numbers."""
    try:
        result = attempt(*arguments)
    except (RuntimeError, IndexError, AttributeError, TypeError, ValueError):
        return False
    dtype = recorded[0].dtype if isinstance(recorded, list) else recorded.dtype
    return maps.same(recorded, result, maps.tolerance_of(dtype))


def _sample_argument(pipe: Any, prediction: str, record: Record) -> tuple[str, str, str, list[Tensor]]:
    """Return (the denoiser's argument for x_t, key in maps.STATE, key in maps.INPUT or EXTRA_INPUT, x_t per step)."""
    fits: dict[tuple[str, str, str], list[Tensor]] = {}
    levels = [prove.noise_level(pipe, prediction, step) for step in record.steps]
    states = ["identity"] if prediction == "flow" else list(maps.STATE)
    for name, value in record.steps[0].arguments.items():
        if not isinstance(value[0] if isinstance(value, list) and value else value, Tensor):
            continue
        for state in states:
            x = [maps.STATE[state](step.before, level) for step, level in zip(record.steps, levels, strict=True)]
            for entry in (*maps.INPUT, *maps.EXTRA_INPUT):
                extra = maps.extra_input_of(entry, value, x[0])  # must be the same in every step
                if entry in maps.EXTRA_INPUT and extra is None:
                    continue
                steps = zip(record.steps, x, strict=True)
                if all(_fits(s.arguments[name], maps.denoiser_input, entry, x_t, extra) for s, x_t in steps):
                    fits[name, state, entry] = x
    entries = ", ".join((*maps.INPUT, *maps.EXTRA_INPUT))
    tried = f"scheduler's sample -> argument of the denoiser (tried {', '.join(maps.STATE)} then {entries})"
    names = _only(pipe, tried, list(fits))
    return *names, fits[names]


def _outputs(record: Record) -> list[str]:
    return [
        name
        for name, change in maps.OUTPUT.items()
        if all(_fits(s.model_output, change, s.output, s.before) for s in record.steps)
    ]


def _time_argument(pipe: Any, prediction: str, record: Record, sample: str) -> tuple[str, str]:
    """Return (name of the denoiser's argument that takes the time, key in maps.CLOCK)."""
    steps = pipe.scheduler.config.num_train_timesteps
    fits = [
        (name, clock)
        for name, value in record.steps[0].arguments.items()
        if name != sample and isinstance(value, (Tensor, float, int)) and not isinstance(value, bool)
        for clock in maps.CLOCKS_OF[prediction]
        if all(_clock_fits(clock, prediction, steps, s.time, s.arguments[name]) for s in record.steps)
    ]
    return _only(pipe, f"time -> argument of the denoiser (tried {', '.join(maps.CLOCKS_OF[prediction])})", fits)


def _clock_fits(clock: str, prediction: str, steps: int, time: float, argument: Any) -> bool:
    recorded = torch.as_tensor(argument)
    if recorded.ndim > 1 or recorded.numel() not in (1, len(PROMPTS)):
        return False
    schedule_time = torch.tensor(time / steps if prediction == "flow" else time, dtype=torch.float64)
    expected = maps.CLOCK[clock](schedule_time, steps).double()
    limit = maps.tolerance_of(recorded.dtype if recorded.is_floating_point() else torch.float32)
    return bool(((recorded.cpu().double() - expected).abs() <= limit * max(1e-3, abs(expected.item()))).all())


def _latent_map(pipe: Any, final: Tensor, decoded: Tensor) -> tuple[str, str]:
    """Return the keys in maps.LAYOUT and maps.AFFINE that turn the last latents into the input of vae.decode."""
    height, width = decoded.shape[-2:]
    fits: dict[tuple[str, str], tuple[Any, Any]] = {}
    for layout, (to_grid, _) in maps.LAYOUT.items():
        for affine, numbers in maps.AFFINE.items():

            def attempt(to_grid: Any = to_grid, numbers: Any = numbers) -> Tensor:
                grid = to_grid(final.to(decoded.dtype), height, width)
                divisor, offset = numbers(pipe.vae, grid)
                return grid / divisor + offset

            if _fits(decoded, attempt):
                fits[layout, affine] = numbers(pipe.vae, decoded)
    agreeing = list(fits)[:1] if len({str(pair) for pair in fits.values()}) == 1 else list(fits)
    return _only(
        pipe, f"final latents -> vae.decode (tried {', '.join(maps.LAYOUT)} with {', '.join(maps.AFFINE)})", agreeing
    )
