"""Sample a batch with the pipeline's own call: seeds per candidate, a prompt encoded once, final latents kept."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prefkit.errors import CaptureError
from prefkit.models.capture.conditions import batch_rules, joined, quiet
from prefkit.models.capture.record import known_arguments, replaced, stand_in
from prefkit.models.latents import finite
from prefkit.models.memory import AdaptiveBatchSize, decoding
from prefkit.models.trees import Tree, leaves

if TYPE_CHECKING:
    from PIL.Image import Image

REMEMBERED_PROMPTS = 64


class Sampled(NamedTuple):
    """Of one candidate: image, final latents [...] (scheduler's layout and dtype, CPU), the safety checker's flag, and
    whether latents and decoded pixels were finite: where they were not, the image is black or worse."""

    image: Image
    latents: Tensor
    nsfw: bool = False
    finite: bool = True


class Sampler:
    """Calls `pipe` with fixed settings.

    guidance None leaves the pipeline's default. extra_call: further arguments of the pipeline's call, as they are: a None
    there is given, for a pipeline whose default is something else.
    per_request: names of those that `sample` is given. The pipeline is left as it was after each call. Raises UsageError for an argument it does not take.
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
        wishes = {
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
        }
        said = {k: v for k, v in wishes.items() if v is not None}
        self.pipe = pipe
        self.call = {"num_inference_steps": steps, **said, **(extra_call or {})}
        known_arguments(pipe, {*self.call, *per_request})
        self._encode = RememberedPrompts(pipe.encode_prompt) if hasattr(pipe, "encode_prompt") else None
        self.room = AdaptiveBatchSize(None, "decoding by the VAE", hint="; the samples stay the same but for rounding")
        self._together: bool | None = None  # whether a batch gives what each would alone; None: not looked yet

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], given: Mapping[str, Any] | None = None
    ) -> list[Sampled]:
        """One image per (prompt, seed). Each initial noise comes from its own CPU generator, whatever the batch.

        given: further arguments of this call (an image to edit), for all of its prompts. With those some pipelines take
        one prompt at a time (Qwen-Image-Edit), or draw for the first of a batch what they draw for none of the others
        (FLUX Fill): then prompts go one by one.
        """
        if given and len(prompts) > 1 and self._together is None:
            self._together = self._noise_is_its_own(prompts[:2], seeds[:2], given)
        if self._together is not False or not given:
            return self._sample(prompts, seeds, given)
        return [
            row for prompt, seed in zip(prompts, seeds, strict=True) for row in self._sample([prompt], [seed], given)
        ]

    def _sample(self, prompts: Sequence[str], seeds: Sequence[int], given: Mapping[str, Any] | None) -> list[Sampled]:
        last: list[Tensor] = []
        scheduler_step = self.pipe.scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            result = scheduler_step(*args, **kwargs)
            last[:] = [result[0] if isinstance(result, tuple) else result.prev_sample]
            return result

        with _decoding(self.pipe) as decoded:
            result = self._call(prompts, seeds, given, step)
        flags = getattr(result, "nsfw_content_detected", None) or [False] * len(prompts)
        latents = last[0].cpu().unbind(0)
        whole = _whole(torch.stack(latents), decoded)
        return [Sampled(*row) for row in zip(result.images, latents, map(bool, flags), whole, strict=True)]

    def _noise_is_its_own(self, prompts: Sequence[str], seeds: Sequence[int], given: Mapping[str, Any]) -> bool:
        """Whether the second of two begins as it would alone."""

        def start(count: int) -> Tensor:
            def stop(model_output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
                raise _Started(sample)

            try:
                self._call(prompts[-count:], seeds[-count:], given, stop)
            except _Started as started:
                return started.sample[-1]
            finally:
                self.pipe.maybe_free_model_hooks()
            raise CaptureError(f"{type(self.pipe).__name__}: its call ended without reaching its scheduler.")

        try:
            both = start(2)
        except ValueError:  # takes one prompt at a time
            return False
        return torch.allclose(both, start(1), rtol=1e-2, atol=1e-2)

    def _call(self, prompts: Sequence[str], seeds: Sequence[int], given: Mapping[str, Any] | None, step: Any) -> Any:
        """The pipeline's call, with `step` in the place of its scheduler's."""
        call = (
            self.call | dict(given or {}) | {"generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds]}
        )
        if call.get("negative_prompt") is not None:
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(quiet(self.pipe))
            stack.enter_context(replaced(self.pipe.scheduler, "step", stand_in(self.pipe.scheduler.step, step)))
            if hasattr(self.pipe, "vae"):
                stack.enter_context(decoding(self.pipe.vae, self.room))
            if self._encode is not None:
                stack.enter_context(replaced(self.pipe, "encode_prompt", self._encode))
            return self.pipe(prompt=list(prompts), output_type="pil", **call)

    def forget(self) -> None:
        """Drop the encoded prompts, to give their memory back or because the text encoder changed."""
        if self._encode is not None:
            self._encode.rows.clear()


@contextmanager
def _decoding(pipe: Any) -> Iterator[list[Tensor]]:
    """A list that gets, of every call of the VAE's decode, [B] bool: which of its images are finite while still tensors."""
    seen: list[Tensor] = []
    vae = getattr(pipe, "vae", None)
    if vae is None:
        yield seen
        return
    vae_decode = vae.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        result = vae_decode(*args, **kwargs)
        seen.append(finite(result[0] if isinstance(result, tuple) else result.sample))
        return result

    with replaced(vae, "decode", stand_in(vae_decode, decode)):
        yield seen


def _whole(latents: Tensor, decoded: Sequence[Tensor]) -> list[bool]:
    """[B] whether latents and pixels of each sample are finite. Pixels of a VAE called otherwise than once an image count for all."""
    pixels = torch.cat([each.cpu() for each in decoded]) if decoded else torch.ones(len(latents), dtype=torch.bool)
    if len(pixels) != len(latents):
        pixels = pixels.all().expand(len(latents))
    return (finite(latents) & pixels).tolist()


class _Started(Exception):
    """Carries the scheduler's first sample out of a pipeline's call."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class RememberedPrompts:
    """A pipeline's encode_prompt that encodes each distinct prompt once, on its own, and stacks the rows.

    Where rows do not stack (lengths differ) or nothing tells samples apart, the whole batch is encoded as given.
    """

    def __init__(self, encode: Any, limit: int = REMEMBERED_PROMPTS) -> None:
        self.encode, self.limit = encode, limit
        self.rows: OrderedDict[str, Tree] = OrderedDict()
        self.rules: dict[str, dict[str, int | str] | None] = {}
        self.__signature__ = inspect.signature(encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs).arguments
        prompts = bound.get("prompt")
        if not isinstance(prompts, list) or not all(map(_plain, bound.values())):
            return self.encode(*args, **kwargs)
        ours = [k for k, v in bound.items() if "prompt" in k and isinstance(v, list) and len(v) == len(prompts)]
        shared = {k: v for k, v in bound.items() if k not in ours}
        rows = [self._row({k: [bound[k][i]] for k in ours}, shared) for i in range(len(prompts))]
        if len(rows) == 1:
            return rows[0]
        rules = self._rules({k: [bound[k][0]] for k in ours}, shared)
        if rules is None or len({_shapes(row) for row in rows}) > 1:
            return self.encode(*args, **kwargs)
        return joined(rules, rows)

    def _row(self, own: dict[str, Any], shared: dict[str, Any]) -> Tree:
        key = repr((own, shared))
        if key not in self.rows:
            self.rows[key] = self.encode(**own, **shared)
        self.rows.move_to_end(key)
        row = self.rows[key]
        while len(self.rows) > self.limit:
            self.rows.popitem(last=False)
        return row

    def _rules(self, own: dict[str, Any], shared: dict[str, Any]) -> dict[str, int | str] | None:
        key = repr((sorted(own), shared))
        if key not in self.rules:
            twice = self.encode(**{k: v * 2 for k, v in own.items()}, **shared)
            try:
                self.rules[key] = batch_rules(self._row(own, shared), twice, "encode_prompt")
            except CaptureError:
                self.rules[key] = None
        return self.rules[key]


def _plain(value: Any) -> bool:
    """Whether a value is told apart by its repr: not so tensors and images."""
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float, torch.device, torch.dtype))


def _shapes(tree: Tree) -> str:
    return repr([(path, tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf) for path, leaf in leaves(tree)])
