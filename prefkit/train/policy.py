"""The policy: the network that is trained, its reference, and moving averages of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.config import Lora, Train
from prefkit.distributed import device_of
from prefkit.errors import TrainingError, UsageError
from prefkit.models.lora import adapters
from prefkit.models.lora.text_encoders import TARGETS
from prefkit.types import Errors


class MovingAverage:
    """Exponential moving average of parameters. decay: weight of the old average at each update."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.weights = [parameter.detach().clone() for parameter in parameters]

    def update(self) -> None:
        torch._foreach_lerp_(self.weights, [parameter.detach() for parameter in self.parameters], 1 - self.decay)

    def load(self, weights: Sequence[Tensor]) -> None:
        for average, loaded in zip(self.weights, weights, strict=True):
            average.copy_(loaded)


@dataclass
class Policy:
    """A network in training, and its reference.

    net: the denoiser being trained. start (LoRA): the adapters that are active in the reference. frozen: a separate
    reference network, if full weights are trained against a frozen reference. snapshot (online): weights of the
    reference in the order of `parameters()`, refreshed every few rounds. average: the moving reference, for objectives
    with reference "ema". sharded: True if the parameters are DTensors (fsdp.py). text_encoders (LoRA): component name
    -> text encoder being trained, whose adapters are switched, averaged and saved together with those of `net`.
    """

    net: Any
    lora: Lora | None
    start: list[str] = field(default_factory=list)
    frozen: Any = None
    snapshot: list[Tensor] | None = None
    average: MovingAverage | None = None
    sharded: bool = False
    text_encoders: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """Context that yields the reference network; run it without gradients."""
        if self.snapshot is not None:
            with self.weights_replaced(self.snapshot):
                yield self.net
        elif self.lora is None:
            yield self.frozen if self.frozen is not None else self.net
        else:
            with adapters.layers_active(self._layers, self.start):
                yield self.net

    def moving_reference(self) -> Any:
        """Return a context that yields the network with the averaged weights; run it without gradients."""
        assert self.average is not None
        return self.weights_replaced(self.average.weights)

    @contextmanager
    def weights_replaced(self, weights: Sequence[Tensor]) -> Iterator[Any]:
        """Context that yields the network with `weights`, which are not copied, in place of its trained parameters.

        Do not enter this context between a forward pass of the network and its backward pass.
        """
        trained = self.parameters()
        before = [parameter.data for parameter in trained]
        try:
            for parameter, data in zip(trained, weights, strict=True):
                parameter.data = data
            yield self.net
        finally:
            for parameter, data in zip(trained, before, strict=True):
                parameter.data = data

    def set_weights(self, weights: Sequence[Tensor]) -> None:
        """Copy `weights` into the trained parameters."""
        with torch.no_grad():
            for parameter, data in zip(self.parameters(), weights, strict=True):
                parameter.copy_(data)

    def refresh_reference(self) -> None:
        """Copy the current weights and use the copy as the reference."""
        self.snapshot = [parameter.detach().clone() for parameter in self.parameters()]

    def follow(self, kept: float) -> None:
        """Move the copy that is the reference towards the current weights. kept: fraction of the copy that is kept."""
        assert self.snapshot is not None
        torch._foreach_lerp_(self.snapshot, [parameter.detach() for parameter in self.parameters()], 1 - kept)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, those of the denoiser first. The selection is fixed before the first step."""
        return [*self._trained, *self.text_parameters()]

    def text_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters of the text encoders."""
        return self._trained_text

    def changes_text(self) -> bool:
        """True if a text encoder has an active adapter, so that prompts must be encoded again."""
        return any(name in layer.lora_A for layer in self._text_layers for name in layer._active_adapter)

    # cached, because a search through the network takes about a millisecond, and a step would make several
    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.net.parameters() if parameter.requires_grad]

    @cached_property
    def _trained_text(self) -> list[nn.Parameter]:
        encoders = self.text_encoders.values()
        return [parameter for encoder in encoders for parameter in encoder.parameters() if parameter.requires_grad]

    @cached_property
    def _layers(self) -> list[Any]:
        return [layer for _, layer in adapters.lora_layers(self.net)] + self._text_layers

    @cached_property
    def _text_layers(self) -> list[Any]:
        return [layer for encoder in self.text_encoders.values() for _, layer in adapters.lora_layers(encoder)]

    def state(self) -> dict[str, Tensor]:
        """Return the trained weights by name, without copying them. Those of a text encoder start with its name."""
        if self.lora is None:
            return self.net.state_dict()
        state = adapters.lora_state(self.net)
        for name, encoder in self.text_encoders.items():
            state |= {f"{name}.{key}": tensor for key, tensor in adapters.lora_state(encoder).items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.lora is None:
            self.net.load_state_dict(state)
            return
        own = dict(state)
        for name, encoder in self.text_encoders.items():
            keys = [key for key in own if key.startswith(f"{name}.")]
            adapters.load_lora_state(encoder, {key.removeprefix(f"{name}."): own.pop(key) for key in keys})
        adapters.load_lora_state(self.net, own)


def make_policy(net: Any, config: Train, frozen: bool, text_encoders: Mapping[str, Any] | None = None) -> Policy:
    """Make `net` trainable as configured, without changing its output, and return the policy.

    frozen: if full weights are trained, keep a frozen copy of the network as the reference. text_encoders: component
    name -> text encoder, each of which gets an adapter too. Raises TrainingError if no parameter would be trained,
    UsageError for settings that do not fit a network or its adapters.
    """
    policy = _adapter(net, config, text_encoders or {}) if config.lora is not None else _full(net, frozen)
    if not any(parameter.numel() for parameter in policy.parameters()):
        raise TrainingError(
            "the network has no trainable parameter. Set lora.rank above 0 and lora.targets to layers of this network, "
            "or `lora: null` for full weights."
        )
    if _checkpointed(net, config):
        net.enable_gradient_checkpointing()
    return policy


def _checkpointed(net: Any, config: Train) -> bool:
    """Return train.gradient_checkpointing; if unset, True for a transformer that supports it and is trained on CUDA."""
    offered = bool(getattr(net, "_supports_gradient_checkpointing", False))
    if config.gradient_checkpointing and not offered:
        raise UsageError(
            f"train.NAME.gradient_checkpointing: {type(net).__name__} does not support gradient checkpointing. "
            "Remove the key."
        )
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    return offered and "Transformer" in type(net).__name__ and device_of(config.device).startswith("cuda")


def _adapter(net: Any, config: Train, text_encoders: Mapping[str, Any]) -> Policy:
    lora = config.lora
    assert lora is not None
    start = _add_adapter(net, lora, config.seed)
    for number, encoder in enumerate(text_encoders.values()):
        own = adapters.active_adapters(encoder)
        shape = replace(lora, targets=list(TARGETS), resume=False)
        if own and lora.resume:  # without its own, the encoder gets a new adapter
            shape = replace(lora, targets=[], rank=encoder.peft_config[own[0]].r, alpha=None)
        start += [name for name in _add_adapter(encoder, shape, config.seed + number + 1) if name not in start]
    return Policy(net, lora, start, text_encoders=text_encoders)


def _add_adapter(net: Any, lora: Lora, seed: int) -> list[str]:
    """Add the trained adapter to a network, new or continued; return the names of the adapters that it had before."""
    start = adapters.active_adapters(net)
    dora = [name for name in start if net.peft_config[name].use_dora]
    if dora:
        raise UsageError(
            f"model.adapters: {dora[0]} is a DoRA adapter. Training can neither continue it nor export it with a new "
            "adapter. Fuse it into the pipeline (fuse_lora, save_pretrained) and set model.base to the saved folder."
        )
    if lora.resume:
        if len(start) != 1:
            raise UsageError(
                f"train.lora.resume continues the model's only adapter, but the model has {len(start)}. Set "
                "exactly one in model.adapters, or set `resume: false` to add a new adapter to the model."
            )
        _check_continued(net, start[0], lora)
        adapters.continue_lora(net, start[0], dropout=lora.dropout)
    else:
        alpha = lora.rank if lora.alpha is None else lora.alpha
        adapters.add_lora(net, lora.rank, alpha, lora.targets or None, lora.dropout, seed=seed)
    if lora.dropout:
        for _, layer in adapters.lora_layers(net):
            if adapters.POLICY in layer.lora_dropout:  # the reference's adapters keep dropout off
                layer.lora_dropout[adapters.POLICY].train()
    return start


def _check_continued(net: Any, start: str, lora: Lora) -> None:
    """Raise UsageError if the configured rank, alpha or targets differ from those of the adapter to continue."""
    adapter = net.peft_config[start]
    paths = [f".{path}" for path, layer in adapters.lora_layers(net) if start in layer.lora_A]
    missed = [path for path in paths if not path.endswith(tuple(f".{target}" for target in lora.targets))]
    unused = [target for target in lora.targets if not any(path.endswith(f".{target}") for path in paths)]
    differences = []
    if lora.rank != adapter.r:
        differences.append(f"rank is {adapter.r}, not {lora.rank}")
    if lora.alpha is not None and lora.alpha != adapter.lora_alpha:
        differences.append(f"alpha is {adapter.lora_alpha:g}, not {lora.alpha:g}")
    if lora.targets and (missed or unused):
        first = [*unused, *missed][0].lstrip(".")
        differences.append(f"targets are not {', '.join(lora.targets)} (first to differ: {first})")
    if differences:
        raise UsageError(
            "train.NAME.start and lora.resume train an adapter further and cannot change its shape, but its "
            f"{'; its '.join(differences)}. Set lora.rank to {adapter.r} and remove alpha and targets. To add a new "
            "adapter instead, list this one in model.adapters, and set neither key."
        )


def _full(net: Any, frozen: bool) -> Policy:
    if adapters.active_adapters(net):
        net.fuse_lora()
        net.unload_lora()
    reference = copy.deepcopy(net).requires_grad_(False) if frozen else None
    net.requires_grad_(True)
    return Policy(net, None, frozen=reference)


@contextmanager
def without_dropout(policy: Policy) -> Iterator[None]:
    """Context that switches dropout off, so that measurements are repeatable."""
    networks = [policy.net, *policy.text_encoders.values()]
    layers = [m for net in networks for m in net.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def errors_of(residual: Tensor, keep: bool, weight: Tensor | None = None) -> Errors:
    """Return the mean squared error of each sample over ALL its elements. residual: [B, ...] float32.

    keep: also return weight * residual. weight: factor of the squared errors, broadcast to the residual.
    """
    weighted = residual if weight is None else weight * residual
    return Errors((weighted * residual).flatten(1).mean(1), weighted if keep else None)
