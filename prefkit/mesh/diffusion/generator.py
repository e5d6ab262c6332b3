"""Generator of mesh hypotheses, `use: mesh`: conditional diffusion over pose and shape, given a request's keypoints.

`call` takes two options: `render: false` stores no picture of the mesh, and `vertices: true` stores the skinned vertices
with the mesh. The picture uses the request's camera; without a camera, its sides are `height` (default 256 px).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prefkit.config import Generate, Model
from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.mesh.body import JOINT_NAMES, load_body
from prefkit.mesh.diffusion.condition import condition_of
from prefkit.mesh.diffusion.network import load_model
from prefkit.mesh.diffusion.sample import noise_of, sample
from prefkit.mesh.diffusion.state import meshes_of
from prefkit.mesh.observed import Observed, observed
from prefkit.mesh.payload import Mesh
from prefkit.models.precision import dtype_of
from prefkit.types import Request

CALL = {"render": True, "vertices": False}
SIZE = 256  # px of a picture without a camera


def check(model: Model, settings: Generate) -> None:
    """Check the options and that the model is a mesh model, without reading weights. Raises UsageError."""
    unknown = sorted(set(settings.call) - set(CALL))
    if unknown or not all(isinstance(value, bool) for value in settings.call.values()):
        raise UsageError(
            f"the generator `mesh` takes the options {' and '.join(CALL)} in `call`, each true or false, not "
            f"{', '.join(f'{key}: {value}' for key, value in settings.call.items())}."
        )
    if not (Path(model.base).expanduser() / "denoiser").is_dir():
        load_model(model.base)  # raises an error that names the missing files


def open_generator(
    model: Model, settings: Generate, first: Callable[[Request, int], bool]
) -> Callable[[Sequence[Request], Sequence[int]], list[dict[str, Any]]]:
    """Load the model; return a function that makes candidates, as generate.generators.open_generator does.

    first: tells for (request, seed) whether the seed is that of the request's candidate 0, which starts from zeros.
    """
    net, scheduler = load_model(model.base, model.adapters, device_of(settings.device), dtype_of(settings.dtype))
    if settings.steps > (most := scheduler.config.num_train_timesteps):
        raise UsageError(f"generate: steps is {settings.steps}, but the model has {most} timesteps. Lower `steps`.")
    return partial(_answer, net, scheduler, settings, first)


def _answer(
    net: Any,
    scheduler: Any,
    settings: Generate,
    first: Callable[[Request, int], bool],
    requests: Sequence[Request],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    options = CALL | settings.call
    seen = [observed(request.extra, JOINT_NAMES) for request in requests]
    condition = torch.stack([condition_of(request.extra, net.config.keypoints) for request in requests])
    noise = noise_of([None if first(r, seed) else seed for r, seed in zip(requests, seeds, strict=True)])
    states = sample(net, scheduler, noise, condition, settings.steps)
    meshes = meshes_of(states, seen, vertices=options["vertices"] or options["render"])
    return [_result(mesh, own, options, settings) for mesh, own in zip(meshes, seen, strict=True)]


def _result(mesh: Mesh, seen: Observed, options: dict[str, bool], settings: Generate) -> dict[str, Any]:
    stored = mesh if options["vertices"] else replace(mesh, vertices=None)
    result: dict[str, Any] = {"payload": stored.pack()}
    return result | ({"image": picture(mesh, seen, settings.height or SIZE)} if options["render"] else {})


def picture(mesh: Mesh, seen: Observed | None, size: int) -> Any:
    """Render a mesh that has vertices, through the request's camera or, without one, framed in size x size px."""
    from prefkit.mesh.render import default_camera, render

    assert mesh.vertices is not None
    camera = seen.camera if seen is not None and seen.camera is not None else default_camera(mesh.vertices, size)
    return render(mesh.vertices, load_body().faces.numpy(), camera)
