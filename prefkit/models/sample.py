"""Sample images by calling the pipeline: each image has its own seed, and prompt embeddings are cached."""

from __future__ import annotations

import inspect
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prefkit.errors import CaptureError
from prefkit.models.capture.conditions import batch_rules, joined, quiet
from prefkit.models.capture.record import StopCall, check_call_arguments, replaced
from prefkit.models.latents import finite
from prefkit.models.memory import AdaptiveBatchSize
from prefkit.models.trees import Tree, leaves
from prefkit.output import still_working

if TYPE_CHECKING:
    from PIL.Image import Image

CACHED_PROMPTS = 64


class Sampled(NamedTuple):
    """One candidate. latents: on the CPU, in the scheduler's layout and dtype. nsfw: the safety checker's flag.

    finite: False if latents or decoded pixels are not finite; then the image is black or damaged.
    """

    image: Image
    latents: Tensor
    nsfw: bool = False
    finite: bool = True


class Sampler:
    """Calls `pipe` with fixed settings and leaves it unchanged after each call.

    guidance: None for the pipeline's default. extra_call: further arguments of the pipeline's call; arguments set to
    None are passed too. per_request: names of the arguments that `sample` gets as `inputs`. Raises UsageError for an
    argument that the pipeline does not take.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        steps: int,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        extra_call: Mapping[str, Any] | None = None,
        per_request: Sequence[str] = (),
    ) -> None:
        settings = {"guidance_scale": guidance, "height": height, "width": width, "negative_prompt": negative_prompt}
        settings = {name: value for name, value in settings.items() if value is not None}
        self.pipe = pipe
        self.call = {"num_inference_steps": steps, **settings, **(extra_call or {})}
        check_call_arguments(pipe, {*self.call, *per_request})
        self._prompts = PromptCache(pipe.encode_prompt) if hasattr(pipe, "encode_prompt") else None
        self._decode_batch = AdaptiveBatchSize(
            None, "decoding by the VAE", hint="; the samples stay the same except for rounding"
        )
        self._batchable: bool | None = None  # whether prompts with inputs may share a batch; None: not checked yet
        self._batches = 0

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], inputs: Mapping[str, Any] | None = None
    ) -> list[Sampled]:
        """Return one sample per (prompt, seed). A sample's initial noise depends only on its seed, not on the batch.

        inputs: further arguments of the pipeline's call, such as an image to edit, shared by all prompts. With inputs,
        some pipelines accept only one prompt (Qwen-Image-Edit), or draw extra random numbers for the first sample of a
        batch (FLUX Fill); such pipelines sample one prompt at a time.
        """
        lengths = list(map(getattr(self.pipe, "prompt_chunks", len), prompts))
        if hasattr(self.pipe, "prompt_chunks") and len(set(lengths)) > 1:
            return self._by_length(lengths, prompts, seeds, inputs)
        if inputs and len(prompts) > 1 and self._batchable is None:
            self._batchable = self._same_noise_as_alone(prompts[:2], seeds[:2], inputs)
        if self._batchable is not False or not inputs:
            return self._sample(prompts, seeds, inputs)
        return [
            row for prompt, seed in zip(prompts, seeds, strict=True) for row in self._sample([prompt], [seed], inputs)
        ]

    def _by_length(
        self, lengths: Sequence[int], prompts: Sequence[str], seeds: Sequence[int], inputs: Mapping[str, Any] | None
    ) -> list[Sampled]:
        """Sample prompts of different numbers of chunks apart, so that no prompt is padded with empty chunks."""
        rows: dict[int, Sampled] = {}
        for length in sorted(set(lengths)):
            places = [place for place, each in enumerate(lengths) if each == length]
            part = self.sample([prompts[i] for i in places], [seeds[i] for i in places], inputs)
            rows |= zip(places, part, strict=True)
        return [rows[place] for place in range(len(prompts))]

    def _sample(self, prompts: Sequence[str], seeds: Sequence[int], inputs: Mapping[str, Any] | None) -> list[Sampled]:
        last: list[Tensor] = []
        scheduler, scheduler_step = self.pipe.scheduler, self.pipe.scheduler.step
        start, steps = time.monotonic(), itertools.count(1)
        self._batches += 1

        def step(*args: Any, **kwargs: Any) -> Any:
            result = scheduler_step(*args, **kwargs)
            last[:] = [result[0] if isinstance(result, tuple) else result.prev_sample]
            timesteps = getattr(scheduler, "timesteps", None)
            total = self.call["num_inference_steps"] if timesteps is None else len(timesteps)
            still_working(f"sampling batch {self._batches}: denoising step {next(steps)} of {total}", start)
            return result

        decoded: list[Tensor] = []
        result = self._call(prompts, seeds, inputs, step, decoded)
        flags = getattr(result, "nsfw_content_detected", None) or [False] * len(prompts)
        latents = last[0].cpu()
        finite_pixels = torch.cat(decoded) if decoded else torch.ones(len(latents), dtype=torch.bool)
        if len(finite_pixels) != len(latents):  # the VAE was not called once per image: one bad image marks all
            finite_pixels = finite_pixels.all().expand(len(latents))
        intact = (finite(latents) & finite_pixels).tolist()
        return [Sampled(*row) for row in zip(result.images, latents.unbind(0), map(bool, flags), intact, strict=True)]

    def _same_noise_as_alone(self, prompts: Sequence[str], seeds: Sequence[int], inputs: Mapping[str, Any]) -> bool:
        """True if a sample's initial noise is the same in a batch of two as alone."""

        def initial_noise(count: int) -> Tensor:
            def stop(model_output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
                raise StopCall(sample[-1])

            try:
                self._call(prompts[-count:], seeds[-count:], inputs, stop, [])
            except StopCall as stopped:
                return stopped.value
            finally:
                self.pipe.maybe_free_model_hooks()
            raise CaptureError(f"{type(self.pipe).__name__}: the pipeline's call ended without reaching the scheduler.")

        try:
            both = initial_noise(2)
        except ValueError:  # the pipeline takes one prompt at a time
            return False
        return torch.allclose(both, initial_noise(1), rtol=1e-2, atol=1e-2)

    def _call(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        inputs: Mapping[str, Any] | None,
        step: Any,
        decoded: list[Tensor],
    ) -> Any:
        """Call the pipeline with `step` in place of scheduler.step. decoded: see _decoding."""
        call = self.call | dict(inputs or {})
        call["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if call.get("negative_prompt") is not None:
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(quiet(self.pipe))
            stack.enter_context(replaced(self.pipe.scheduler, "step", step))
            if getattr(self.pipe, "vae", None) is not None:
                stack.enter_context(_decoding(self.pipe.vae, self._decode_batch, decoded))
            if self._prompts is not None:
                stack.enter_context(replaced(self.pipe, "encode_prompt", self._prompts))
            return self.pipe(prompt=list(prompts), output_type="pil", **call)

    def forget(self) -> None:
        """Drop the cached prompt embeddings, to free their memory or because the text encoder changed."""
        if self._prompts is not None:
            self._prompts.rows.clear()


@contextmanager
def _decoding(vae: Any, batch_size: AdaptiveBatchSize, decoded: list[Tensor]) -> Iterator[None]:
    """Let `vae.decode` split a batch that does not fit in memory, so that denoising need not be repeated.

    decoded: each call appends a boolean [B] to this list, True for images with finite pixels.
    """
    vae_decode = vae.decode

    def checked(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = vae_decode(z, *args, **kwargs)
        decoded.append(finite(result[0] if isinstance(result, tuple) else result.sample).cpu())
        return result

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(z) == 1 or kwargs.get("return_dict", True):
            return checked(z, *args, **kwargs)
        rows = batch_size.each(z.split(1), lambda part: checked(torch.cat(list(part)), *args, **kwargs)[0].split(1))
        return (torch.cat(rows),)

    with replaced(vae, "decode", decode):
        yield


class PromptCache:
    """Replaces a pipeline's encode_prompt: encodes each distinct prompt once and joins the embeddings into a batch.

    If embeddings cannot be joined (because their lengths differ, for example), the whole batch is encoded at once.
    """

    def __init__(self, encode: Any, limit: int = CACHED_PROMPTS) -> None:
        self.encode, self.limit, self.signature = encode, limit, inspect.signature(encode)
        self.rows: OrderedDict[str, Tree] = OrderedDict()
        self.rules: dict[str, dict[str, int | str] | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs).arguments
        prompts = bound.get("prompt")
        if not isinstance(prompts, list) or not all(map(_plain, bound.values())):
            return self.encode(*args, **kwargs)
        per_prompt = [k for k, v in bound.items() if "prompt" in k and isinstance(v, list) and len(v) == len(prompts)]
        shared = {k: v for k, v in bound.items() if k not in per_prompt}
        rows = [self._row({k: [bound[k][i]] for k in per_prompt}, shared) for i in range(len(prompts))]
        if len(rows) == 1:
            return rows[0]
        rules = self._rules({k: [bound[k][0]] for k in per_prompt}, shared)
        if rules is None or len({_shapes(row) for row in rows}) > 1:
            return self.encode(*args, **kwargs)
        return joined(rules, rows)

    def _row(self, prompt: dict[str, Any], shared: dict[str, Any]) -> Tree:
        key = repr((prompt, shared))
        if key not in self.rows:
            self.rows[key] = self.encode(**prompt, **shared)
        self.rows.move_to_end(key)
        row = self.rows[key]
        while len(self.rows) > self.limit:
            self.rows.popitem(last=False)
        return row

    def _rules(self, prompt: dict[str, Any], shared: dict[str, Any]) -> dict[str, int | str] | None:
        key = repr((sorted(prompt), shared))
        if key not in self.rules:
            twice = self.encode(**{k: v * 2 for k, v in prompt.items()}, **shared)
            try:
                self.rules[key] = batch_rules(self._row(prompt, shared), twice, "encode_prompt")
            except CaptureError:
                self.rules[key] = None
        return self.rules[key]


def _plain(value: Any) -> bool:
    """True if the value's repr shows its whole content, unlike that of a tensor or an image."""
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float, torch.device, torch.dtype))


def _shapes(tree: Tree) -> str:
    return repr([(path, tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf) for path, leaf in leaves(tree)])
