"""Family for diffusers pipelines whose denoiser calls can be captured and verified; one head, "image"."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefkit.errors import CaptureError, UsageError
from prefkit.models.memory import AdaptiveBatchSize
from prefkit.train.data.draws import drawn
from prefkit.types import Candidate, Draw, Request

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from prefkit.generate.inputs import Inputs
    from prefkit.models.capture.wiring import Wiring
    from prefkit.models.offload import SequentialOffload
    from prefkit.models.trees import Tree


NO_ROOM = "Free the device, or train on smaller images (train.NAME.resolution)."


class DiffusersFamily:
    """A diffusers pipeline. Latents have the scheduler's layout: [C, H, W], or packed tokens [N, 4 C] for FLUX.

    time_sampling  None (uniform for epsilon and v, logit-normal for flow) | "uniform" | "logit_normal"
    call           the pipeline's call arguments in generation, with which it is captured and conditions are computed;
                   the scale of classifier-free guidance is ignored in training, an embedded guidance is kept
    encode_batch   number of images encoded at once; it is halved when the device runs out of memory
    inputs         call arguments that are read from each request (model.inputs); for the capture, they are read from
                   the request in the attribute `example`
    text_encoder   text encoders are trained (train.NAME.lora.text_encoder), so adapters may change them
    """

    def __init__(
        self,
        time_sampling: str | None = None,
        call: Mapping[str, Any] | None = None,
        encode_batch: int = 8,
        inputs: Inputs | None = None,
        text_encoder: bool = False,
    ) -> None:
        self.time_sampling, self.call = time_sampling, dict(call or {})
        self.inputs, self.text_encoder = inputs, text_encoder
        self.encoding = AdaptiveBatchSize(
            encode_batch, "encoding by the VAE", hint="; the latents are the same", remedy=NO_ROOM
        )
        self.decoding = AdaptiveBatchSize(None, "decoding by the VAE", hint="; the images are the same", remedy=NO_ROOM)
        self.example: Request | None = None

    def load(
        self, model: Mapping[str, Any], parts: Collection[str] | None = None, wiring: Wiring | None = None
    ) -> None:
        """Load the pipeline and, without `wiring`, capture it: record how it calls its denoiser.

        model: arguments of models.load.pipeline.load_pipeline, such as base and device; with sequential_offload, `net`
        has no weights (meta device), which is enough to capture, encode and compute conditions. parts: subset of
        {"denoiser", "vae", "text"} to load; a capture needs all three. wiring: result of an earlier capture. Raises
        UsageError, CaptureError, TrainingError.
        """
        from prefkit.models.capture.call import capture
        from prefkit.models.load.pipeline import load_pipeline
        from prefkit.models.schedule import Schedule

        if wiring is None and parts is not None and len(set(parts)) < 3:
            raise CaptureError(
                "a capture needs denoiser, vae and text together; load all parts, or pass the wiring of an earlier "
                "capture."
            )
        self.pipe = load_pipeline(**model, parts=parts)
        if model.get("adapters") and not self.text_encoder:
            self._refuse_text_adapters()
        self.wiring = wiring or capture(self.pipe, call=self.call | self._inputs_of(self.example))
        self.net = getattr(self.pipe, self.wiring.denoiser)
        self.schedule = Schedule.of(self.pipe.scheduler, self.wiring.prediction)

    def latents(self, candidates: Sequence[Candidate]) -> list[Tensor]:
        """Return each candidate's clean latents, float32, CPU: from its payload or, if it has none, from its image."""
        import safetensors.torch

        images = [candidate for candidate in candidates if candidate.payload is None]
        encoded = iter(self.encoding.each(images, self._encode))
        return [
            next(encoded) if c.payload is None else safetensors.torch.load(c.payload)["latents"].float()
            for c in candidates
        ]

    def conditions(self, requests: Sequence[Request], size: tuple[int, int], gradients: bool = False) -> list[Tree]:
        """Return each request's condition: the denoiser's inputs except sample and time, at size (height, width).

        gradients: see capture_conditions.
        """
        from prefkit.models.capture.conditions import capture_conditions

        def condition(r: Request) -> Tree:
            settings: Any = {"height": size[0], "width": size[1], "call": self.call | self._inputs_of(r)}
            return capture_conditions(self.pipe, self.wiring, [r.prompt], **settings, gradients=gradients)[0]

        offload = getattr(self.pipe, "sequential_offload", None)
        if offload is not None and self.inputs is not None:  # input images need the VAE, so all texts are encoded first
            self._encode_texts(offload, [functools.partial(condition, r) for r in requests])
        return [condition(r) for r in requests]

    def text_encoders(self) -> dict[str, Any]:
        """Return {component name: text encoder} of those that can have a LoRA; freeze all text encoders' weights."""
        from torch.nn import Module

        from prefkit.models.lora.text_encoders import encoders_of

        for name, component in self.pipe.components.items():
            if name.startswith("text_encoder") and isinstance(component, Module):
                component.requires_grad_(False)
        return encoders_of(self.pipe)

    def _encode_texts(self, offload: SequentialOffload, conditions: Sequence[Callable[[], Tree]]) -> None:
        """Encode and keep all prompts first, so that text encoders and VAE need not alternate for each request."""
        from prefkit.models.offload import OtherPartNeeded

        for condition in conditions:
            with suppress(OtherPartNeeded), offload.only("text"):
                condition()

    def _inputs_of(self, request: Request | None) -> dict[str, Any]:
        return {} if self.inputs is None or request is None else self.inputs.of(request)

    def collate(self, conditions: Sequence[Tree]) -> Tree:
        """Combine the samples' conditions, all of one signature, into the condition of a batch."""
        from prefkit.models.capture.conditions import collate

        return collate(self.wiring, conditions)

    def signature(self, condition: Tree) -> str:
        """Return a condition's signature; conditions with equal signatures can share a batch."""
        from prefkit.models.capture.conditions import signature

        return signature(self.wiring, condition)

    def draw(self, group: str, visit: int, like: Tensor) -> Draw:
        """Draw time [1] and noise [1, *like.shape], float32, CPU, as a function of (group, visit) alone.

        group: key of the draws; in training it includes train.seed (train/data/draws.py).
        """
        return drawn(self.schedule, group, visit, like, self.time_sampling)

    def residuals(self, net: Any, latents: Tensor, draw: Draw, condition: Tree) -> dict[str, Tensor]:
        """Return {"image": prediction - target}, [B, ...] float32.

        latents: [B, ...] float32. draw: one entry per SAMPLE (time [B], noise [B, ...]), so draws made per group must
        be expanded with `draw.time[groups.index]` and `draw.noise[groups.index]`. condition: the collated
        conditions of the B samples.
        """
        from prefkit.models.predict import predict

        x_t = self.schedule.add_noise(latents, draw.noise, draw.time)
        target = self.schedule.target(latents, draw.noise, draw.time)
        return {"image": predict(net, self.wiring, x_t, draw.time, condition) - target}

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> list[Image]:
        """Decode latents [B, ...] to images. Packed tokens of non-square images need size (height, width)."""
        import torch

        from prefkit.models.latents import decode

        return self.decoding.each(
            list(latents), lambda part: decode(self.pipe, self.wiring, torch.stack(list(part)), size)
        )

    def _encode(self, candidates: Sequence[Candidate]) -> list[Tensor]:
        from prefkit.models.latents import encode

        cell = self.wiring.downscale * (2 if "packed" in self.wiring.layout else 1)
        images = [candidate.pil() for candidate in candidates]
        for candidate, image in zip(candidates, images, strict=True):
            if image.width % cell or image.height % cell:
                raise UsageError(
                    f"the image of candidate {candidate.id} is {image.width} x {image.height} px; "
                    f"{self.wiring.pipeline} needs multiples of {cell}. Resize or crop the images, or set "
                    "train.NAME.resolution."
                )
        one_size = len({image.size for image in images}) == 1
        blocks = [images] if one_size else [[image] for image in images]
        return [latents for block in blocks for latents in encode(self.pipe, self.wiring, block).cpu()]

    def _refuse_text_adapters(self) -> None:
        from prefkit.models.load.pipeline import text_adapter_error

        for name, component in self.pipe.components.items():
            if name.startswith("text_encoder") and getattr(component, "peft_config", None):
                raise text_adapter_error(name)


plugin = DiffusersFamily
