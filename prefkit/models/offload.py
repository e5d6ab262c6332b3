"""A pipeline whose text encoders, VAE and denoiser come into memory when they are called, one of them at a time.

Every component stands there on paper. When it, or any module inside it, computes, the part that it belongs to is
loaded and answers, and the part that was there before goes. So the pipeline's own call, and with it the capture of its
wiring, needs room for the largest part and not for the sum. What it costs is reading parts again: a model of a
Stable Diffusion kind reads its denoiser twice and its text encoders three times for a capture.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prefkit.models.meta import LIBRARIES, components, on_meta_device, part_of
from prefkit.models.trees import Tree, leaves, map_tensors

REMEMBERED = 64  # encoded prompts


class AnotherPart(Exception):
    """A part was called while only one other may be."""


class SequentialOffload:
    """Who is in memory: `part` of "denoiser", "vae", "text", or None, and its `modules` by component name.

    load: (part, dtype) -> {component: module}, with weights and on their device.
    """

    def __init__(self, load: Callable[[str, torch.dtype], dict[str, Any]]) -> None:
        self.load = load
        self.part: str | None = None
        self.modules: dict[str, Any] = {}
        self._only: str | None = None

    def activate(self, part: str, dtype: torch.dtype) -> dict[str, Any]:
        if self._only not in (None, part):
            raise AnotherPart(part)
        if self.part != part:
            self.clear()
            self.modules, self.part = self.load(part, dtype), part
        return self.modules

    @contextmanager
    def only(self, part: str) -> Iterator[None]:
        """Whatever calls another part meanwhile gets AnotherPart."""
        self._only = part
        try:
            yield
        finally:
            self._only = None

    def clear(self) -> None:
        own = [module for module in self.modules.values() if isinstance(module, nn.Module)]
        left = [weakref.ref(module) for whole in own for module in whole.modules()]
        del own
        self.part, self.modules = None, {}
        if any(module() is not None for module in left):  # held by a cycle; looking for it is slow in a large process
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def stand_ins(
    source: str, revision: str | None, dtype: torch.dtype, device: str, turns: SequentialOffload
) -> dict[str, Any]:
    """Component -> what to hand to from_pretrained in its place. A safety checker is left out: it changes no wiring.

    Components of other libraries than diffusers and transformers are not among them: they load at once and stay.
    """
    found: dict[str, Any] = {}
    for name, entry in components(source, revision).items():
        part = part_of(name)
        if name == "safety_checker":
            found[name] = None
        elif part is not None and entry[0] in LIBRARIES:
            found[name] = _on_call(on_meta_device(entry, source, name, revision, dtype, device), name, part, turns)
    return found


def _on_call(module: Any, name: str, part: str, turns: SequentialOffload) -> Any:
    """Make every forward inside `module`, which is on paper, be answered by the loaded one's."""
    kind = type(module)
    persistent = set(module.state_dict()) & {path for path, _ in module.named_buffers()}
    statistics = {path.split(".")[0] for path in persistent}

    def loaded() -> Any:
        return turns.activate(part, module.dtype)[name]

    def apply(self: Any, change: Any, *args: Any, **kwargs: Any) -> Any:
        """`float()` and the like; what is loaded later takes the paper's dtype."""
        if turns.part == part:
            turns.modules[name]._apply(change, *args, **kwargs)
        return nn.Module._apply(self, change, *args, **kwargs)

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        return self if dtype is None else nn.Module.to(self, dtype)

    def attribute(self: Any, which: str) -> Any:
        """Children with statistics are the loaded ones: FLUX.2 reads its VAE's batch norm without calling it."""
        return getattr(loaded(), which) if which in statistics else kind.__getattr__(self, which)

    for path, child in module.named_modules():
        child.forward = _answer(child, path, loaded)
    module.__class__ = type(kind.__name__, (kind,), {"_apply": apply, "to": to, "__getattr__": attribute})
    return module


def _answer(child: nn.Module, path: str, loaded: Callable[[], Any]) -> Callable[..., Any]:
    @functools.wraps(child.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return loaded().get_submodule(path)(*args, **kwargs)

    return forward


def remember_texts(pipe: Any) -> None:
    """Prompts that were encoded lately are not encoded again, as that may need the text encoders back."""
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        return
    known: OrderedDict[str, Tree] = OrderedDict()

    @functools.wraps(encode)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = _content(inspect.signature(encode).bind(*args, **kwargs).arguments)
        if key not in known:
            known[key] = encode(*args, **kwargs)
            while len(known) > REMEMBERED:
                known.popitem(last=False)
        return map_tensors(torch.clone, known[key])

    pipe.encode_prompt = remembered


def _content(arguments: Tree) -> str:
    """A hash of arguments, by what tensors and images hold."""
    found = hashlib.sha256()
    for path, leaf in leaves(arguments):
        said: Any = (path, repr(leaf))
        if isinstance(leaf, Tensor):
            said = (path, leaf.shape, leaf.dtype, leaf.cpu().float().numpy().tobytes())
        elif isinstance(leaf, Image.Image):
            said = (path, leaf.size, leaf.mode, leaf.tobytes())
        found.update(repr(said).encode())
    return found.hexdigest()
