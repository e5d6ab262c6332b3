"""The noise that a candidate's sampling began with, remade from its seed: noise-tracked pairs for flow models.

A flow model has carried a candidate from its noise to its latents; pairing the same two again keeps x_t near the path
that sampling took (PNAPO, arXiv 2605.09433). The two images of a pair then share their time, no longer their noise.
That the noise is the sampler's is not assumed: before the first is remade, the pipeline is run up to its denoiser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefkit.errors import CaptureError, UsageError
from prefkit.models.capture.conditions import quiet
from prefkit.models.capture.maps import INPUT, LAYOUT
from prefkit.models.capture.record import bind, run_pipeline
from prefkit.models.capture.wiring import Wiring
from prefkit.models.precision import dtype_of
from prefkit.store import Store

PROOF = 20251109  # a seed like any other


def initial_noise(wiring: Wiring, latents: Tensor, size: tuple[int, int], seed: int, dtype: torch.dtype) -> Tensor:
    """[...] float32, in the scheduler's layout, of a sampling in `dtype`. latents: the sample's; size: (height, width)."""
    to_grid, from_grid = LAYOUT[wiring.layout]
    grid = to_grid(latents[None], size[0] // wiring.downscale, size[1] // wiring.downscale)
    generator = torch.Generator("cpu").manual_seed(seed)
    return from_grid(torch.randn(grid.shape, generator=generator, dtype=dtype))[0].float()


def prove(family: Any, latents: Tensor, size: tuple[int, int]) -> None:
    """Raises UsageError for a model that is no flow or has model.inputs, CaptureError where its pipeline begins with another noise."""
    wiring = family.wiring
    if wiring.prediction != "flow":
        raise UsageError(f"train.noise: own is for flow models; {wiring.pipeline} predicts {wiring.prediction}, and its "
                         "sampling leaves no straight path from noise to image. Set noise: shared.")  # fmt: skip
    if getattr(family, "inputs", None) is not None:
        raise UsageError(f"train.noise: own does not know model.inputs ({wiring.pipeline} begins with a request's image, or has "
                         "it beside its noise) yet. Set noise: shared.")  # fmt: skip
    seen = _first_input(family, size)
    first = seen[0] if isinstance(seen, list) else seen
    noise = initial_noise(wiring, latents, size, PROOF, first.dtype)
    ours = INPUT[wiring.input](noise[None].to(first.dtype))
    ours = ours[0] if isinstance(ours, list) else ours
    if ours.shape != first.shape or not torch.equal(ours, first.cpu()):
        raise CaptureError(f"train.noise: {wiring.pipeline} does not begin with the plain noise of its seed, so the noise "
                           "of a candidate cannot be remade. Set noise: shared.")  # fmt: skip


def dtypes(store: Store, generators: Any) -> dict[str, torch.dtype]:
    """Candidate id -> the dtype that its noise was drawn in, of those that this model generated."""
    found: dict[str, torch.dtype] = {}
    for name in generators:
        settings = (store.candidates(name).spec() or {}).get("settings", {})
        dtype = dtype_of(settings.get("dtype", "float32"))
        found |= {c.id: dtype for c in store.iter_candidates([name], columns=("id", "request_id", "index", "seed"))}
    return found


class _Seen(Exception):
    def __init__(self, sample: Any) -> None:
        self.sample = sample


def _first_input(family: Any, size: tuple[int, int]) -> Any:
    """What the denoiser is given as its sample at the first step of a sampling from the seed PROOF."""
    pipe, wiring = family.pipe, family.wiring

    def stop(net: Any, args: Any, kwargs: Any) -> None:
        raise _Seen(bind(net, args, kwargs)[wiring.sample])

    hook = getattr(pipe, wiring.denoiser).register_forward_pre_hook(stop, with_kwargs=True)
    call = {"height": size[0], "width": size[1], **wiring.no_guidance, "num_inference_steps": 4}
    try:
        with quiet(pipe), torch.no_grad():
            run_pipeline(pipe, call | {"prompt": [""], "generator": [torch.Generator("cpu").manual_seed(PROOF)]})
    except _Seen as seen:
        return seen.sample
    finally:
        hook.remove()
        pipe.maybe_free_model_hooks()
    raise CaptureError(f"{wiring.pipeline}: its call ended without reaching its denoiser.")
