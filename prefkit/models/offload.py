"""Sequential offload: load a pipeline's text encoders, VAE and denoiser when they are called, one part at a time.

Every component is on the meta device. When a component, or a module inside it, is called, the previous part is freed,
and the component's part is loaded and called instead. So the pipeline's own call, and with it the capture of its
wiring, needs memory only for the largest part. The cost is that parts are loaded repeatedly: capturing a Stable
Diffusion model reads its denoiser twice and its text encoders three times.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prefkit.models.meta import LIBRARIES, components, on_meta_device, part_of
from prefkit.models.trees import Tree, leaves, map_tensors

CACHED_PROMPTS = 64


class OtherPartNeeded(Exception):
    """Raised if a part other than `part` is called inside `SequentialOffload.only(part)`."""


class SequentialOffload:
    """Keeps one part in memory: `part` is "denoiser", "vae", "text" or None; `modules` maps component names to modules.

    load: a function (part, dtype) -> {component: module}; its modules have weights and are on their device.
    """

    def __init__(self, load: Callable[[str, torch.dtype], dict[str, Any]]) -> None:
        self.load = load
        self.part: str | None = None
        self.modules: dict[str, Any] = {}
        self._only: str | None = None

    def activate(self, part: str, dtype: torch.dtype) -> dict[str, Any]:
        if self._only not in (None, part):
            raise OtherPartNeeded(part)
        if self.part != part:
            self.clear()
            self.modules, self.part = self.load(part, dtype), part
        return self.modules

    @contextmanager
    def only(self, part: str) -> Iterator[None]:
        """Inside the block, let calls of any other part raise OtherPartNeeded."""
        self._only = part
        try:
            yield
        finally:
            self._only = None

    def clear(self) -> None:
        alive = [
            weakref.ref(m) for each in self.modules.values() if isinstance(each, nn.Module) for m in each.modules()
        ]
        self.part, self.modules = None, {}
        if any(module() is not None for module in alive):  # kept by a cycle; gc.collect is slow in a large process
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def meta_components(
    source: str, revision: str | None, dtype: torch.dtype, device: str, offload: SequentialOffload
) -> dict[str, Any]:
    """Return {component: replacement} for from_pretrained, without the safety checker, which does not affect the wiring.

    Components from libraries other than diffusers and transformers are not replaced: they are loaded at once and stay.
    """
    replacements: dict[str, Any] = {}
    for name, entry in components(source, revision).items():
        part = part_of(name)
        if name == "safety_checker":
            replacements[name] = None
        elif part is not None and entry[0] in LIBRARIES:
            module = on_meta_device(entry, source, name, revision, dtype, device)
            replacements[name] = _loaded_on_call(module, name, part, offload)
    return replacements


def _loaded_on_call(module: Any, name: str, part: str, offload: SequentialOffload) -> Any:
    """Redirect every forward inside `module`, which is on the meta device, to the loaded module."""
    kind = type(module)
    persistent = set(module.state_dict()) & {path for path, _ in module.named_buffers()}
    statistics = {path.split(".")[0] for path in persistent}

    def loaded() -> Any:
        return offload.activate(part, module.dtype)[name]

    def apply(self: Any, change: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply `float()` and the like to both modules; a module loaded later takes the dtype of the meta module."""
        if offload.part == part:
            offload.modules[name]._apply(change, *args, **kwargs)
        return nn.Module._apply(self, change, *args, **kwargs)

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        return self if dtype is None else nn.Module.to(self, dtype)

    def attribute(self: Any, key: str) -> Any:
        """Get children with statistics from the loaded module: FLUX.2 reads its VAE's batch norm without calling it."""
        return getattr(loaded(), key) if key in statistics else kind.__getattr__(self, key)

    for path, child in module.named_modules():
        redirected = functools.partial(_call_loaded, loaded, path)
        child.forward = functools.wraps(child.forward)(redirected)
    module.__class__ = type(kind.__name__, (kind,), {"_apply": apply, "to": to, "__getattr__": attribute})
    return module


def _call_loaded(loaded: Callable[[], Any], path: str, *args: Any, **kwargs: Any) -> Any:
    return loaded().get_submodule(path)(*args, **kwargs)


def cache_prompts(pipe: Any) -> None:
    """Cache the results of encode_prompt, because encoding again may load the text encoders again."""
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        return
    cache: dict[str, Tree] = {}

    @functools.wraps(encode)
    def cached(*args: Any, **kwargs: Any) -> Any:
        key = _content_hash(inspect.signature(encode).bind(*args, **kwargs).arguments)
        if key not in cache:
            cache[key] = encode(*args, **kwargs)
            if len(cache) > CACHED_PROMPTS:
                del cache[next(iter(cache))]
        return map_tensors(torch.clone, cache[key])

    pipe.encode_prompt = cached


def _content_hash(arguments: Tree) -> str:
    """Hash arguments; tensors and images are hashed by content."""
    result = hashlib.sha256()
    for path, leaf in leaves(arguments):
        content: Any = repr(leaf)
        if isinstance(leaf, Tensor):
            content = leaf.shape, leaf.dtype, leaf.cpu().float().numpy().tobytes()
        elif isinstance(leaf, Image.Image):
            content = leaf.size, leaf.mode, leaf.tobytes()
        result.update(repr((path, content)).encode())
    return result.hexdigest()
