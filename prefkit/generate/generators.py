"""Generators, which make one candidate per request: a diffusers pipeline, or a user's class or function."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prefkit import registry
from prefkit.config import Generate, Model, content
from prefkit.distributed import device_of
from prefkit.engines import for_workers
from prefkit.errors import PluginError, UsageError
from prefkit.generate.inputs import Inputs
from prefkit.images import storable
from prefkit.plugin_guard import copies, described, guarded, picture
from prefkit.types import Candidate, Request, digest

if TYPE_CHECKING:
    from prefkit.models.sample import Sampled

#: how the error of a candidate starts whose image the pipeline's safety checker blanked; it is not generated again
FLAGGED = "safety checker"
WHY_FLAGGED = "the pipeline judged the image unsafe and blanked it, so there is nothing to score or to learn from"


def candidate_seed(run_seed: int, request_id: str, index: int) -> int:
    """Return a 63-bit seed that depends only on the arguments. torch's CPU generator uses its low 32 bits."""
    return int(digest("seed", run_seed, request_id, index, length=16), 16) >> 1


def candidate_id(spec: dict[str, Any], request: Request, index: int, seed: int) -> str:
    """Return a candidate's id, a hash of everything that determines its image."""
    return digest(spec, request.request_id, request.prompt, index, seed)


def generator_spec(model: Model, settings: Generate) -> dict[str, Any]:
    """Return the settings that determine this generator's candidates. Slow if large local weights must be hashed."""
    options = content(settings)
    if ":" in settings.use:
        return {"use": settings.use, "code": registry.code_hash(settings.use), "settings": options}
    from prefkit.models.load.revision import base_revision, weights_revision

    revision = base_revision(model)
    adapters: dict[str, float] = {}
    for path, weight in model.adapters.items():
        key = weights_revision(path)
        while key in adapters:  # the same adapter was given under two paths
            key += "+"
        adapters[key] = weight
    return {
        "use": settings.use,
        "model": revision.pop("base"),
        **revision,
        "adapters": adapters,
        **({"inputs": dict(model.inputs)} if model.inputs else {}),
        "settings": {k: v for k, v in options.items() if k != "model"},
    }


@for_workers
def check_generator(model: Model, settings: Generate) -> None:
    """Check a generator's settings without loading weights. Raises UsageError, PluginError."""
    if settings.use == "mesh":
        from prefkit.mesh.diffusion import generator as mesh

        mesh.check(model, settings)
        return
    if settings.use != "diffusers":
        _plugin(settings.use)
        return
    from prefkit.models.load.folder import check_call
    from prefkit.models.load.pipeline import check_model

    check_model(model, device_of(settings.device), settings.dtype, settings.scheduler)
    optional = {
        "guidance_scale": settings.guidance,
        "height": settings.height,
        "width": settings.width,
        "negative_prompt": settings.negative_prompt,
    }
    names = {name for name, value in optional.items() if value is not None}
    check_call(model, {"num_inference_steps", *names, *settings.call, *model.inputs}, (settings.height, settings.width))


def _plugin(use: str) -> Any:
    if ":" not in use:
        raise UsageError(f"no generator is called {use!r}: use diffusers, mesh, file.py:name or package.module:Name.")
    plugin = registry.load("generator", use)
    if not callable(plugin) or (isinstance(plugin, type) and not callable(getattr(plugin, "generate", None))):
        raise PluginError(
            f"generator {use} is {described(plugin)}. A generator must be a function (prompts, seeds) -> images, or "
            "a class with generate(requests, seeds)."
        )
    return plugin


def open_generator(
    model: Model, settings: Generate, inputs: Inputs | None = None
) -> Callable[[Sequence[Request], Sequence[int]], list[dict[str, Any]]]:
    """Return a function that takes requests and seeds, and returns one dict per request.

    Each dict is {"image": PIL image, "latents": tensor | None, "extra": dict}, or {"error": text}. inputs: provides the
    arguments that a diffusers pipeline takes from each request (model.inputs).
    """
    if settings.use == "diffusers":
        return _diffusers(model, settings, inputs or Inputs(model.inputs, None))
    if settings.use == "mesh":
        from prefkit.mesh.diffusion import generator as mesh

        return mesh.open_generator(
            model, settings, lambda r, seed: seed == candidate_seed(settings.seed, r.request_id, 0)
        )
    plugin, name = _plugin(settings.use), f"generator {settings.use}"
    if isinstance(plugin, type):
        with guarded(name, "could not be created"):
            return partial(_from_class, plugin(), name)
    return partial(_from_function, plugin, name)


def _from_function(
    function: Callable[..., Any], name: str, requests: Sequence[Request], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    from PIL import Image

    with guarded(name):
        images = function([r.prompt for r in requests], list(seeds))
    for image in _same_length(images, requests, name):
        if not isinstance(image, Image.Image):
            raise PluginError(f"{name} returned {described(image)} where a PIL image is needed.")
    # copies, because another thread encodes the images while the function may reuse them
    return [{"image": picture(image)} for image in images]


def _from_class(instance: Any, name: str, requests: Sequence[Request], seeds: Sequence[int]) -> list[dict[str, Any]]:
    with guarded(name):
        candidates = instance.generate(copies(requests), list(seeds))
    _check_candidates(_same_length(candidates, requests, name), requests, name)
    return [_result(c) if c.error is None else {"error": c.error} for c in candidates]


def _result(c: Candidate) -> dict[str, Any]:
    """Convert a candidate to a dict as open_generator describes it, with its image (if it has one) and payload."""
    image = {} if c.image is None and c.path is None and c.payload is not None else {"image": picture(c.pil())}
    return {**image, "encoded": c.image, "payload": c.payload, "extra": copy.deepcopy(dict(c.extra))}


def _check_candidates(candidates: Sequence[Any], requests: Sequence[Request], name: str) -> None:
    """Raise PluginError unless `candidates` are valid Candidates in the order of the requests."""
    ids = {r.request_id for r in requests}
    for c, request in zip(candidates, requests):
        if not isinstance(c, Candidate):
            raise PluginError(f"{name} returned {described(c)} where a Candidate is needed.")
        if c.request_id != request.request_id and c.request_id in ids:
            raise PluginError(
                f"{name} returned a candidate of request {c.request_id} where one of {request.request_id} was "
                "expected. Candidates must be in the order of the requests."
            )
        if not isinstance(c.extra, Mapping) or not isinstance(c.payload, (bytes, type(None))):
            raise PluginError(f"{name}: a candidate's extra must be a dict, and its payload bytes or None.")


def _same_length(items: Any, requests: Sequence[Request], name: str) -> Sequence[Any]:
    if not isinstance(items, (list, tuple)) or len(items) != len(requests):
        result = f"{len(items)} item{'s' * (len(items) != 1)}" if isinstance(items, (list, tuple)) else described(items)
        raise PluginError(f"{name} returned {result} for {len(requests)} requests; it must return one image for each.")
    return items


def _diffusers(model: Model, settings: Generate, inputs: Inputs) -> Callable[..., list[dict[str, Any]]]:
    import torch

    from prefkit.models.latents import NOT_FINITE
    from prefkit.models.load.pipeline import denoiser_name, load_pipeline, model_arguments
    from prefkit.models.long_prompts import too_long
    from prefkit.models.prompt_chunks import supports_chunks

    arguments: Any = {"device": device_of(settings.device), "dtype": settings.dtype, "scheduler": settings.scheduler}
    arguments["offload"] = settings.offload
    pipe = load_pipeline(**model_arguments(model), **arguments)
    if settings.compile:
        name = denoiser_name(pipe)
        setattr(pipe, name, torch.compile(getattr(pipe, name)))
    sample = sampling(pipe, settings, inputs)

    def result(sampled: Sampled) -> dict[str, Any]:
        if not sampled.finite:
            return {"error": NOT_FINITE}
        if sampled.nsfw:
            return {"error": f"{FLAGGED}: {WHY_FLAGGED}"}
        return {"image": sampled.image, "latents": sampled.latents}

    def call(requests: Sequence[Request], seeds: Sequence[int]) -> list[dict[str, Any]]:
        return list(map(result, sample(requests, seeds)))

    vars(call)["too_long"] = partial(too_long, pipe, call=settings.call)
    vars(call)["remedy"] = " To encode it in parts, set model.long_prompts: chunks." if supports_chunks(pipe) else ""
    return call


def _inputs_hint(pipe: Any, arguments: Mapping[str, Any]) -> str:
    """Return an addition to a failed call's error, if an image argument is missing or is not an image; else ""."""
    import inspect

    parameters = inspect.signature(type(pipe).__call__).parameters
    images = [name for name in parameters if re.search("^(mask_|control_)?image$", name)]
    if images and not any(name in arguments for name in images):
        return (
            f". {type(pipe).__name__} takes {', '.join(images)}, but no request provides it: set model: {{inputs: "
            f"{{{images[0]}: extra.COLUMN}}}}, where COLUMN is a column of the source that holds image paths."
        )
    wrong = [f"{name} = {arguments[name]!r}" for name in images if isinstance(arguments.get(name), (str, int, float))]
    return f". model.inputs gave {', '.join(wrong)}, which is neither an image nor a path to one." if wrong else ""


def sampling(
    pipe: Any, settings: Generate, inputs: Inputs
) -> Callable[[Sequence[Request], Sequence[int]], list[Sampled]]:
    """Return a function that takes requests and seeds, and samples one Sampled per request with these settings."""
    from prefkit.models.sample import Sampler

    sampler = Sampler(
        pipe,
        steps=settings.steps,
        guidance=settings.guidance,
        height=settings.height,
        width=settings.width,
        negative_prompt=settings.negative_prompt,
        extra_call=settings.call,
        per_request=list(inputs.fields),
    )

    def sample(requests: Sequence[Request], seeds: Sequence[int]) -> list[Sampled]:
        samples: dict[int, Sampled] = {}
        for group in inputs.groups(requests):
            arguments = inputs.of(requests[group[0]])
            try:
                rows = sampler.sample([requests[i].prompt for i in group], [seeds[i] for i in group], arguments)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{error}{_inputs_hint(pipe, settings.call | arguments)}") from error
            samples |= zip(group, rows, strict=True)
        return [samples[i] for i in range(len(requests))]

    return sample


def encoded(image: Any, kind: str) -> bytes:
    """Encode an image as PNG (compression level 1, which is fast) or lossless WebP.

    Raises Pillow's errors if the format does not support the image's size, ValueError for values that are not finite.
    """
    image = storable(image, kind)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {"compress_level": 1}
    image.save(buffer, "WEBP" if kind == "webp" else "PNG", **options)
    return buffer.getvalue()


def latents_payload(latents: Any) -> bytes:
    import safetensors.torch

    return safetensors.torch.save({"latents": latents.contiguous()})
