"""What answers requests: a diffusers pipeline, or a class or function of the user's file."""

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
from prefkit.errors import PluginError, UsageError
from prefkit.generate.inputs import Inputs
from prefkit.images import storable
from prefkit.plugin_guard import copies, described, guarded, picture
from prefkit.types import Candidate, Request, digest

if TYPE_CHECKING:
    from prefkit.models.sample import Sampled

#: how the error of an image begins that the pipeline's safety checker blanked: a result, which no retry would change
FLAGGED = "safety checker"
WHY = "the pipeline took the image for unsafe and blanked it, so there is nothing to score or to learn from"


def candidate_seed(run_seed: int, request_id: str, index: int) -> int:
    """63 bits from (run seed, request, index), whatever the batch, the order or the process.

    torch's CPU generator takes the low 32 of them.
    """
    return int(digest("seed", run_seed, request_id, index, length=16), 16) >> 1


def candidate_id(spec: dict[str, Any], request: Request, index: int, seed: int) -> str:
    """A hash of everything that determines the image."""
    return digest(spec, request.request_id, request.prompt, index, seed)


def generator_spec(model: Model, settings: Generate) -> dict[str, Any]:
    """What the candidates of this generator mean; hashing local weights takes a while for large models."""
    said = content(settings)
    if settings.use != "diffusers":
        return {"use": settings.use, "code": registry.code_hash(settings.use), "settings": said}
    from prefkit.models.load.revision import base_revision, weights_revision

    revision = base_revision(model)
    adapters: dict[str, float] = {}
    for path, weight in model.adapters.items():
        key = weights_revision(path)
        while key in adapters:  # one adapter under two paths counts twice
            key += "+"
        adapters[key] = weight
    return {
        "use": "diffusers",
        "model": revision.pop("base"),
        **revision,
        "adapters": adapters,
        **({"inputs": dict(model.inputs)} if model.inputs else {}),
        "settings": {k: v for k, v in said.items() if k != "model"},
    }


def check_generator(model: Model, settings: Generate) -> None:
    """Whatever opening it would refuse without weights. Raises UsageError, PluginError."""
    if settings.use != "diffusers":
        _plugin(settings.use)
        return
    from prefkit.models.load.folder import check_call
    from prefkit.models.load.pipeline import check_model

    check_model(model, device_of(settings.device), settings.dtype, settings.scheduler)
    names = ("guidance_scale", settings.guidance), ("height", settings.height), ("width", settings.width)
    given = {name for name, value in (*names, ("negative_prompt", settings.negative_prompt)) if value is not None}
    check_call(model, {"num_inference_steps", *given, *settings.call, *model.inputs})


def _plugin(use: str) -> Any:
    if ":" not in use:
        raise UsageError(f"no generator is called {use!r}: use diffusers, file.py:name or package.module:Name.")
    found = registry.load("generator", use)
    if not callable(found) or (isinstance(found, type) and not callable(getattr(found, "generate", None))):
        raise PluginError(
            f"generator {use} is {described(found)}. A generator is a function (prompts, seeds) -> images, or a class "
            "with generate(requests, seeds)."
        )
    return found


def open_generator(
    model: Model, settings: Generate, inputs: Inputs | None = None
) -> Callable[[Sequence[Request], Sequence[int]], list[dict[str, Any]]]:
    """A function (requests, seeds) -> per request {"image": PIL, "latents": tensor | None, "extra": dict}.

    inputs: where a diffusers pipeline finds what its call takes from a request (model.inputs).
    """
    if settings.use == "diffusers":
        return _diffusers(model, settings, inputs or Inputs(model.inputs, None))
    plugin = _plugin(settings.use)
    if isinstance(plugin, type):
        with guarded(f"generator {settings.use}", "could not be created"):
            return _from_class(plugin(), settings.use)

    def call(requests: Sequence[Request], seeds: Sequence[int]) -> list[dict[str, Any]]:
        with guarded(f"generator {settings.use}"):
            images = plugin([r.prompt for r in requests], list(seeds))
        found = _same_length(images, requests, settings.use)
        for image in found:
            _check_image(image, settings.use)
        # encoded in another thread, while the generator may paint its next image on the same canvas
        return [{"image": picture(image)} for image in found]

    return call


def _from_class(instance: Any, name: str) -> Callable[..., list[dict[str, Any]]]:
    def result(c: Candidate) -> dict[str, Any]:
        if c.error is not None:
            return {"error": c.error}
        return {
            "image": picture(c.pil()),
            "encoded": c.image,
            "payload": c.payload,
            "extra": copy.deepcopy(dict(c.extra)),
        }

    def call(requests: Sequence[Request], seeds: Sequence[int]) -> list[dict[str, Any]]:
        with guarded(f"generator {name}"):
            found = instance.generate(copies(requests), list(seeds))
        made = _same_length(found, requests, name)
        _check_candidates(made, requests, name)
        return [result(c) for c in made]

    return call


def _check_candidates(made: Sequence[Any], requests: Sequence[Request], name: str) -> None:
    """Raises PluginError for what is no candidate, or answers another request of the batch than its place says."""
    asked = {r.request_id for r in requests}
    for c, request in zip(made, requests):
        if not isinstance(c, Candidate):
            raise PluginError(f"generator {name} returned {described(c)} where a Candidate is needed.")
        if c.request_id != request.request_id and c.request_id in asked:
            raise PluginError(
                f"generator {name} returned a candidate of request {c.request_id} in the place of {request.request_id}; "
                "candidates must come in the order of the requests."
            )
        if not isinstance(c.extra, Mapping) or not isinstance(c.payload, (bytes, type(None))):
            raise PluginError(f"generator {name}: a candidate's extra must be a dict, and its payload bytes or None.")


def _check_image(image: Any, name: str) -> None:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise PluginError(f"generator {name} returned {described(image)} where a PIL image is needed.")


def _same_length(found: Any, requests: Sequence[Request], name: str) -> list[Any]:
    if not isinstance(found, (list, tuple)) or len(found) != len(requests):
        got = f"{len(found)} item{'s' * (len(found) != 1)}" if isinstance(found, (list, tuple)) else described(found)
        raise PluginError(
            f"generator {name} returned {got} for {len(requests)} requests; it must return one image each."
        )
    return list(found)


def _diffusers(model: Model, settings: Generate, inputs: Inputs) -> Callable[..., list[dict[str, Any]]]:
    import torch

    from prefkit.models.load.pipeline import denoiser_name, load_pipeline
    from prefkit.models.long_prompts import too_long

    pipe = load_pipeline(
        model.base,
        revision=model.revision,
        adapters=model.adapters,
        device=device_of(settings.device),
        dtype=settings.dtype,
        scheduler=settings.scheduler,
        trust_remote_code=model.trust_remote_code,
        config=model.config,
        quantize=model.quantize,
    )
    if settings.compile:
        name = denoiser_name(pipe)
        setattr(pipe, name, torch.compile(getattr(pipe, name)))
    sample = sampling(pipe, settings, inputs)

    def call(requests: Sequence[Request], seeds: Sequence[int]) -> list[dict[str, Any]]:
        made = sample(requests, seeds)
        return [_result(sampled) for sampled in made]

    vars(call)["too_long"] = partial(too_long, pipe, call=settings.call)
    return call


def _result(sampled: Sampled) -> dict[str, Any]:
    from prefkit.models.latents import NOT_FINITE

    if not sampled.finite:
        return {"error": NOT_FINITE}
    return {"error": f"{FLAGGED}: {WHY}"} if sampled.nsfw else {"image": sampled.image, "latents": sampled.latents}


def _inputs_hint(pipe: Any, given: Mapping[str, Any]) -> str:
    """What may be wrong with the images of a call that failed: some left out, or something else in their place."""
    import inspect

    takes = [
        name
        for name in inspect.signature(type(pipe).__call__).parameters
        if re.search("^(mask_|control_)?image$", name)
    ]
    left_out = [name for name in takes if name not in given]
    if left_out and len(left_out) == len(takes):
        return (
            f". {type(pipe).__name__} takes {', '.join(takes)}, and no request gives it: model: {{inputs: {{{takes[0]}: "
            "extra.COLUMN}}, COLUMN being one of the source with paths of images."
        )
    odd = [f"{name} = {given[name]!r}" for name in takes if isinstance(given.get(name), (str, int, float))]
    return f". model.inputs gave {', '.join(odd)}, which is no image nor a path to one." if odd else ""


def sampling(
    pipe: Any, settings: Generate, inputs: Inputs
) -> Callable[[Sequence[Request], Sequence[int]], list[Sampled]]:
    """A function (requests, seeds) -> samples, as `pipe` makes them at these settings."""
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
        found: list[Any] = [None] * len(requests)
        for group in inputs.groups(requests):
            rows = [requests[i] for i in group]
            given = inputs.of(rows[0])
            try:
                made = sampler.sample([r.prompt for r in rows], [seeds[i] for i in group], given)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{error}{_inputs_hint(pipe, settings.call | given)}") from error
            for position, one in zip(group, made, strict=True):
                found[position] = one
        return found

    return sample


def encoded(image: Any, kind: str) -> bytes:
    """PNG or lossless WebP. PNG at level 1: three times faster than the default for a few per cent of size.

    Raises what Pillow raises for a size that the format does not have, ValueError for values that are not finite.
    """
    image = storable(image, kind)
    buffer = io.BytesIO()
    if kind == "webp":
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def latents_payload(latents: Any) -> bytes:
    import safetensors.torch

    return safetensors.torch.save({"latents": latents.contiguous()})
