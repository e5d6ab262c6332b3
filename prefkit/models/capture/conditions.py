"""The condition: whatever a pipeline hands its denoiser beside the sample and the time, for one prompt at a time."""

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
from prefkit.models.capture.maps import BEHIND, EXTRA_INPUT, held_behind, same, stacked
from prefkit.models.capture.record import bind, known_arguments, replaced, run, stand_in
from prefkit.models.capture.wiring import Wiring
from prefkit.models.trees import Tree, leaves
from prefkit.types import digest

OURS = ("prompt", "num_inference_steps", "generator", "latents", "num_images_per_prompt", "output_type", "return_dict")

_OWN = "x_t itself"


class _Stop(Exception):
    """Carries what was looked for out of a pipeline's call."""

    def __init__(self, found: Any) -> None:
        self.found = found


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No progress bar from the pipeline for a while."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


def call_of(pipe: Any, call: Mapping[str, Any], height: int | None, width: int | None) -> dict[str, Any]:
    """A generation's call arguments without what training has no use for (negative prompts, seeds, steps)."""
    known = inspect.signature(type(pipe).__call__).parameters
    size = {"height": height, "width": width}  # InstructPix2Pix takes none: its image has one
    known_arguments(pipe, set(call) - set(size))
    wanted = dict(call) | {k: v for k, v in size.items() if v is not None}
    return {k: v for k, v in wanted.items() if k in known and k not in OURS and not k.startswith("negative_")}


def find_call(
    pipe: Any, denoiser: str, prompts: Sequence[str], base: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what asks for len(prompts) samples, what switches classifier-free guidance off), both as call arguments.

    Asked for by a list of prompts or, of pipelines that take one at a time (Qwen-Image-Edit), by the last one with as
    many images. With the rest the denoiser is called once a step, with one sample each.
    """
    failed: list[CaptureError] = []
    for several in ({"prompt": list(prompts)}, {"prompt": [prompts[-1]], "num_images_per_prompt": len(prompts)}):
        try:
            return several, _find_no_guidance(pipe, denoiser, several, base)
        except CaptureError as error:
            failed.append(error)
    raise failed[0]


def _find_no_guidance(pipe: Any, denoiser: str, several: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A guidance_scale that does not add samples is an input of the network (FLUX) and is left as it is."""
    known = inspect.signature(type(pipe).__call__).parameters
    fixed = {"true_cfg_scale": 1.0} if "true_cfg_scale" in known else {}
    tries: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]  # (arguments tried, arguments then needed)
    if "guidance_scale" in known:
        off = ({"guidance_scale": 1.0}, {"guidance_scale": 0.0})
        tries = [({"guidance_scale": 4.0}, {}), (off[0], off[0]), (off[1], off[1])]
    for tried, needed in tries:
        if _samples_per_step(pipe, denoiser, dict(base) | fixed | tried | dict(several)) == [_samples(several)]:
            return fixed | needed
    raise CaptureError(
        f"{type(pipe).__name__}: classifier-free guidance could not be switched off (tried guidance_scale 4, 1 and 0): "
        "the denoiser never saw exactly one sample per prompt and step. Such a model needs a family of its own."
    )


def _samples(call: Mapping[str, Any]) -> int:
    return len(call["prompt"]) * int(call.get("num_images_per_prompt", 1))


def _samples_per_step(pipe: Any, denoiser: str, call: dict[str, Any]) -> list[int]:
    """How many samples each call of the denoiser held, up to the first scheduler step."""
    counts: list[int] = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Stop(None)

    hook = getattr(pipe, denoiser).register_forward_hook(lambda net, args, out: counts.append(len(stacked(out))))
    try:
        with replaced(pipe.scheduler, "step", stand_in(pipe.scheduler.step, stop)):
            _run_until_stop(pipe, call)
    finally:
        hook.remove()
    return counts


def _run_until_stop(pipe: Any, call: dict[str, Any]) -> Any:
    generators = [torch.Generator("cpu").manual_seed(0) for _ in range(_samples(call))]
    try:
        with quiet(pipe):
            run(pipe, {"num_inference_steps": 4, "output_type": "pil", **call, "generator": generators})
    except _Stop as stop:
        return stop.found
    finally:
        pipe.maybe_free_model_hooks()
    raise CaptureError(f"{type(pipe).__name__}: its call ended without reaching its denoiser and its scheduler.")


def _arguments(pipe: Any, wiring: Wiring, asked: Mapping[str, Any], base: Mapping[str, Any]) -> Tree:
    """What the denoiser would be called with at the first step, without calling it. asked: as from find_call."""
    seen = _first_call(pipe, wiring, dict(base) | dict(wiring.no_guidance) | dict(asked))
    if len(seen[wiring.sample]) != _samples(asked):
        raise CaptureError(
            f"{type(pipe).__name__}: the denoiser was given {len(seen[wiring.sample])} samples for {_samples(asked)} "
            f"asked for with call arguments {dict(base)}: guidance is still on, or the pipeline multiplies samples."
        )
    condition = {name: value for name, value in seen.items() if name not in (wiring.sample, wiring.time)}
    if wiring.input in EXTRA_INPUT:
        condition[BEHIND] = held_behind(wiring.input, seen[wiring.sample], condition.pop(_OWN))
        if condition[BEHIND] is None:
            raise CaptureError(
                f"{type(pipe).__name__} was captured with an image beside the sample and holds none with call arguments "
                f"{sorted(base)}; give every request its image, or none (model.inputs)."
            )
    return condition


def _first_call(pipe: Any, wiring: Wiring, call: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the first call of the denoiser and, where more than x_t goes in as the sample, x_t as _OWN.

    The scheduler is given that, so there the denoiser is stood in for instead of being stopped at.
    """
    net = getattr(pipe, wiring.denoiser)
    seen: dict[str, Any] = {}

    def note(net: nn.Module, args: Any, kwargs: Any) -> None:
        seen.update(bind(net, args, kwargs))
        if wiring.input not in EXTRA_INPUT:
            raise _Stop(seen)

    def step(model_output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> None:
        raise _Stop(seen | {_OWN: sample})

    def nothing(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (torch.zeros_like(seen[wiring.sample]),)

    hook = net.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with ExitStack() as stack:
            if wiring.input in EXTRA_INPUT:
                stack.enter_context(replaced(net, "forward", stand_in(net.forward, nothing)))
                stack.enter_context(replaced(pipe.scheduler, "step", stand_in(pipe.scheduler.step, step)))
            return _run_until_stop(pipe, call)
    finally:
        hook.remove()


def with_batch_rules(pipe: Any, wiring: Wiring, several: Mapping[str, Any], base: Mapping[str, Any]) -> Wiring:
    """Find every leaf's batch rule: of the same prompt once and twice, what doubles is batch, what stays is shared.

    several: how two samples are asked for (find_call).
    """
    prompt = several["prompt"][-1]
    twice = several if "num_images_per_prompt" in several else {"prompt": [prompt, prompt]}
    one, two = (_arguments(pipe, wiring, asked, base) for asked in ({"prompt": [prompt]}, twice))
    return replace(wiring, batch=batch_rules(one, two, type(pipe).__name__))


def batch_rules(once: Tree, twice: Tree, owner: str) -> dict[str, int | str]:
    """path -> batch dimension | "list" | "shared". Raises CaptureError where neither holds."""
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
            raise CaptureError(f"{owner}: {path} is {one!r} for one prompt and {two!r} for the same prompt twice.")

    visit(once, twice, "")
    return rules


def _tensor_rule(one: Tensor, two: Tensor, what: str) -> int | str:
    if one.shape == two.shape and same(two, one, 1e-3):
        return "shared"
    grown = [d for d in range(one.ndim) if one.shape[d] != two.shape[d]] if one.ndim == two.ndim else []
    if len(grown) == 1 and one.shape[grown[0]] == 1 and two.shape[grown[0]] == 2:
        return grown[0]
    raise CaptureError(
        f"{what}: shape {tuple(one.shape)} for one prompt and {tuple(two.shape)} for the same prompt twice; neither "
        "one dimension that doubles nor an equal value. Such a condition cannot be batched."
    )


def capture_conditions(
    pipe: Any,
    wiring: Wiring,
    prompts: Sequence[str],
    *,
    height: int | None = None,
    width: int | None = None,
    call: Mapping[str, Any] | None = None,
) -> list[Tree]:
    """One Tree per prompt: argument name -> value, batch dimensions of 1, as the pipeline passes them.

    `call` are the generation's call arguments: an embedded guidance keeps its value, classifier-free guidance
    and negative prompts are left out. The denoiser is never run; it may be without weights (load_pipeline's parts).
    """
    base = call_of(pipe, call or {}, height, width)
    return [_arguments(pipe, wiring, {"prompt": [prompt]}, base) for prompt in prompts]


def collate(wiring: Wiring, trees: Sequence[Tree]) -> Tree:
    """One Tree for a batch, from Trees of equal signature."""
    return joined(wiring.batch, trees)


def joined(rules: Mapping[str, int | str], trees: Sequence[Tree]) -> Tree:
    """Trees for one sample each -> the Tree for all of them, by the batch rule of every leaf."""

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
            raise CaptureError(f"the condition has a leaf {path} that was not there when the pipeline was captured.")
        return type(first)(join([n[i] for n in nodes], f"{path}.{i}" if path else str(i)) for i in range(len(first)))

    return join(list(trees), "")


def signature(wiring: Wiring, tree: Tree) -> str:
    """Trees with the same signature may share a batch: same leaves, shapes and dtypes, and equal shared values."""
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
