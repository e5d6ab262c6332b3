"""Conditions: for a prompt, all arguments of the denoiser except the sample and the time."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import CaptureError
from prefkit.models.capture.maps import EXTRA_INPUT, EXTRA_INPUT_KEY, extra_input_of, same, stacked
from prefkit.models.capture.record import StopCall, bind, check_call_arguments, replaced, run_pipeline
from prefkit.models.capture.wiring import Wiring
from prefkit.models.trees import Tree, leaves
from prefkit.types import digest

#: arguments of the pipeline's call that prefkit sets itself
FIXED = ("prompt", "num_inference_steps", "generator", "latents", "num_images_per_prompt", "output_type", "return_dict")


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Temporarily disable the pipeline's progress bar."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


def call_of(pipe: Any, call: Mapping[str, Any], height: int | None, width: int | None) -> dict[str, Any]:
    """Return the pipeline's call arguments without those that training ignores (negative prompts, seeds, steps)."""
    known = inspect.signature(type(pipe).__call__).parameters
    size = {"height": height, "width": width}  # not all pipelines take a size (InstructPix2Pix)
    check_call_arguments(pipe, set(call) - set(size))
    arguments = dict(call) | {k: v for k, v in size.items() if v is not None}
    return {k: v for k, v in arguments.items() if k in known and k not in FIXED and not k.startswith("negative_")}


def find_call(
    pipe: Any, denoiser: str, prompts: Sequence[str], base: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (call arguments that request len(prompts) samples, call arguments that disable classifier-free guidance).

    The samples are requested by a list of prompts or, if the pipeline takes one prompt at a time (Qwen-Image-Edit), by
    the last prompt and a number of images. With these arguments, a step calls the denoiser once, with one input per
    sample.
    """
    errors: list[CaptureError] = []
    for several in ({"prompt": list(prompts)}, {"prompt": [prompts[-1]], "num_images_per_prompt": len(prompts)}):
        try:
            return several, _find_no_guidance(pipe, denoiser, several, base)
        except CaptureError as error:
            errors.append(error)
    raise errors[0]


def _find_no_guidance(pipe: Any, denoiser: str, several: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return call arguments that disable guidance. A guidance_scale that is a network input (FLUX) is not changed."""
    known = inspect.signature(type(pipe).__call__).parameters
    fixed = {"true_cfg_scale": 1.0} if "true_cfg_scale" in known else {}
    for scale in (4.0, 1.0, 0.0) if "guidance_scale" in known else (None,):
        guidance = {} if scale is None else {"guidance_scale": scale}
        if _samples_per_step(pipe, denoiser, dict(base) | fixed | guidance | dict(several)) == [_samples(several)]:
            return fixed | ({} if scale == 4.0 else guidance)
    raise CaptureError(
        f"{type(pipe).__name__}: classifier-free guidance could not be disabled (tried guidance_scale 4, 1 and 0): the "
        "denoiser never got exactly one sample per prompt and step. Such a model needs its own family plug-in."
    )


def _samples(call: Mapping[str, Any]) -> int:
    return len(call["prompt"]) * int(call.get("num_images_per_prompt", 1))


def _samples_per_step(pipe: Any, denoiser: str, call: dict[str, Any]) -> list[int]:
    """Return the number of samples in each denoiser call before the first scheduler step."""
    counts: list[int] = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise StopCall

    hook = getattr(pipe, denoiser).register_forward_hook(lambda net, args, out: counts.append(len(stacked(out))))
    try:
        with replaced(pipe.scheduler, "step", stop):
            _run_until_stop(pipe, call)
    finally:
        hook.remove()
    return counts


def _run_until_stop(pipe: Any, call: dict[str, Any], gradients: bool = False) -> Any:
    generators = [torch.Generator("cpu").manual_seed(0) for _ in range(_samples(call))]
    try:
        with quiet(pipe):
            settings = {"num_inference_steps": 4, "output_type": "pil", **call, "generator": generators}
            run_pipeline(pipe, settings, gradients)
    except StopCall as stop:
        return stop.value
    finally:
        pipe.maybe_free_model_hooks()
    raise CaptureError(f"{type(pipe).__name__}: the pipeline's call ended without calling denoiser and scheduler.")


def _arguments(
    pipe: Any, wiring: Wiring, prompts: Mapping[str, Any], base: Mapping[str, Any], gradients: bool = False
) -> Tree:
    """Return the condition of the first step, without running the denoiser. prompts: call arguments from find_call."""
    call = dict(base) | dict(wiring.no_guidance) | dict(prompts)
    condition, x = _first_call(pipe, wiring, call, gradients)
    argument = condition.pop(wiring.sample)
    del condition[wiring.time]
    if len(argument) != _samples(prompts):
        raise CaptureError(
            f"{type(pipe).__name__}: with the call arguments {dict(base)}, the denoiser got {len(argument)} samples "
            f"instead of {_samples(prompts)}: guidance is still on, or the pipeline multiplies samples."
        )
    if wiring.input in EXTRA_INPUT:
        condition[EXTRA_INPUT_KEY] = extra_input_of(wiring.input, argument, x)
        if condition[EXTRA_INPUT_KEY] is None:
            raise CaptureError(
                f"{type(pipe).__name__} was captured with an image as an extra input, but the arguments {sorted(base)} "
                "provide no image. Give an image to every request, or to none (model.inputs)."
            )
    return condition


def _first_call(pipe: Any, wiring: Wiring, call: dict[str, Any], gradients: bool) -> tuple[dict[str, Any], Any]:
    """Return (arguments of the denoiser's first call, x_t if the pipeline has an extra input, else None).

    x_t is read from the first call of scheduler.step; until then, zeros replace the denoiser's output.
    """
    net = getattr(pipe, wiring.denoiser)
    arguments: dict[str, Any] = {}

    def before_forward(net: nn.Module, args: Any, kwargs: Any) -> None:
        arguments.update(bind(net, args, kwargs))
        if wiring.input not in EXTRA_INPUT:
            raise StopCall((arguments, None))

    def step(model_output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> None:
        raise StopCall((arguments, sample))

    def zeros(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (torch.zeros_like(arguments[wiring.sample]),)

    hook = net.register_forward_pre_hook(before_forward, with_kwargs=True)
    try:
        with ExitStack() as stack:
            if wiring.input in EXTRA_INPUT:
                stack.enter_context(replaced(net, "forward", zeros))
                stack.enter_context(replaced(pipe.scheduler, "step", step))
            return _run_until_stop(pipe, call, gradients)
    finally:
        hook.remove()


def check_constant(pipe: Any, calls: Sequence[Mapping[str, Any]], varying: Sequence[str]) -> None:
    """Raise CaptureError if an argument of the denoiser, except those in `varying`, differs between the steps of a run.

    Training keeps the conditions of the first step, which would be wrong for all other noise levels.
    """
    first, *later = (dict(leaves({k: v for k, v in call.items() if k not in varying})) for call in calls)
    changed = sorted(
        {path for other in later for path in first.keys() | other.keys() if not _equal(first, other, path)}
    )
    if changed:
        name = changed[0].partition(".")[0]
        residual = "residual" in name or "controlnet" in name
        raise CaptureError(
            f"{type(pipe).__name__}: the denoiser's argument {name} changes from step to step, so it is not a condition "
            f"of the prompt. {'Training with a ControlNet is not supported' if residual else 'It is not supported'}; "
            "the model needs a family plug-in."
        )


def _equal(one: Mapping[str, Any], two: Mapping[str, Any], path: str) -> bool:
    """True if both calls have this leaf with the same numbers. Objects that are neither tensors nor scalars are equal."""
    if path not in one or path not in two:
        return False
    a, b = one[path], two[path]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return not isinstance(a, (bool, int, float, str)) or a == b


def with_batch_rules(pipe: Any, wiring: Wiring, several: Mapping[str, Any], base: Mapping[str, Any]) -> Wiring:
    """Return the wiring with batch rules. several: call arguments that request two samples (find_call)."""
    prompt = several["prompt"][-1]
    twice = several if "num_images_per_prompt" in several else {"prompt": [prompt, prompt]}
    one, two = (_arguments(pipe, wiring, prompts, base) for prompts in ({"prompt": [prompt]}, twice))
    return replace(wiring, batch=batch_rules(one, two, type(pipe).__name__))


def batch_rules(once: Tree, twice: Tree, owner: str) -> dict[str, int | str]:
    """Return {leaf path: batch rule}: the batch dimension (an int), "list" (one entry per sample) or "shared".

    once, twice: the conditions for one sample and for two; the dimension that doubles is the batch dimension. Raises
    CaptureError for a leaf that fits no rule.
    """
    rules: dict[str, int | str] = {}

    def visit(one: Tree, two: Tree, path: str) -> None:
        if isinstance(one, Tensor) and isinstance(two, Tensor):
            rules[path] = _tensor_rule(one, two, f"{owner}: {path}")
        elif isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            for key in one:
                visit(one[key], two[key], f"{path}.{key}" if path else str(key))
        elif isinstance(one, (list, tuple)) and type(one) is type(two) and len(one) == len(two):
            for i, (a, b) in enumerate(zip(one, two, strict=True)):
                visit(a, b, f"{path}.{i}" if path else str(i))
        elif isinstance(one, list) and isinstance(two, list) and len(one) == 1 and len(two) == 2:
            rules[path] = "list"
        elif type(one) is type(two) and one == two:
            rules[path] = "shared"
        else:
            raise CaptureError(
                f"{owner}: {path} is {one!r} for one sample of a prompt and {two!r} for two samples; it is neither "
                "equal for both nor a list with one entry per sample. Such a condition cannot be batched."
            )

    visit(once, twice, "")
    return rules


def _tensor_rule(one: Tensor, two: Tensor, name: str) -> int | str:
    if one.shape == two.shape and same(two, one, 1e-3):
        return "shared"
    grown = [d for d in range(one.ndim) if one.shape[d] != two.shape[d]] if one.ndim == two.ndim else []
    if len(grown) == 1 and one.shape[grown[0]] == 1 and two.shape[grown[0]] == 2:
        return grown[0]
    raise CaptureError(
        f"{name} has the shape {tuple(one.shape)} for one sample of a prompt and {tuple(two.shape)} for two samples: "
        "it is not equal for both, and no single dimension grows from 1 to 2. Such a condition cannot be batched."
    )


def capture_conditions(
    pipe: Any,
    wiring: Wiring,
    prompts: Sequence[str],
    *,
    height: int | None = None,
    width: int | None = None,
    call: Mapping[str, Any] | None = None,
    gradients: bool = False,
) -> list[Tree]:
    """Return one condition per prompt, a Tree {argument name: value} with a batch size of 1.

    call: arguments of the pipeline's call. Guidance that is an input of the network keeps its value; classifier-free
    guidance and negative prompts are left out. The denoiser is not run, so its weights need not be loaded. gradients:
    record gradients with respect to the text encoders' weights, unless torch.no_grad is active.
    """
    base = call_of(pipe, call or {}, height, width)
    return [_arguments(pipe, wiring, {"prompt": [prompt]}, base, gradients) for prompt in prompts]


def collate(wiring: Wiring, trees: Sequence[Tree]) -> Tree:
    """Join Trees that have the same signature into one Tree for a batch."""
    return joined(wiring.batch, trees)


def joined(rules: Mapping[str, int | str], trees: Sequence[Tree]) -> Tree:
    """Join Trees, each for one sample, into one Tree for the batch. rules: see batch_rules."""

    def join(nodes: list[Tree], path: str) -> Tree:
        rule = rules.get(path)
        first = nodes[0]
        if isinstance(rule, int):
            return torch.cat(nodes, dim=rule) if len(nodes) > 1 else first
        if rule == "list":
            return [item for node in nodes for item in node]
        if rule == "shared":
            return first
        if isinstance(first, dict):
            return {key: join([n[key] for n in nodes], f"{path}.{key}" if path else str(key)) for key in first}
        if not isinstance(first, (list, tuple)):
            raise CaptureError(f"the condition contains {path}, which it lacked when the pipeline was captured.")
        return type(first)(join([n[i] for n in nodes], f"{path}.{i}" if path else str(i)) for i in range(len(first)))

    return join(list(trees), "")


def signature(wiring: Wiring, tree: Tree) -> str:
    """Hash a Tree's leaves, shapes, dtypes and shared values. Trees with the same signature may share a batch."""
    described: list[tuple[Any, ...]] = []
    for path, leaf in leaves(tree):
        if not isinstance(leaf, Tensor):
            described.append((path, repr(leaf)))
            continue
        shared = wiring.batch.get(path) == "shared"
        numbers = torch.view_as_real(leaf) if leaf.is_complex() else leaf  # rotary embeddings may be complex
        content = hashlib.sha256(numbers.detach().float().cpu().numpy().tobytes()).hexdigest() if shared else ""
        described.append((path, list(leaf.shape), str(leaf.dtype), content))
    return digest(described)
