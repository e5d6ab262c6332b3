"""Sequential offload: keep only one part of a pipeline (text encoders, VAE or denoiser) in memory.

The pipeline holds every component on the meta device. When a component, or a module inside it, is called, the previous
part is freed, and the component's part is loaded and called instead. So a pipeline's call, and the capture of its
wiring, need memory only for the largest part. The cost is that parts are loaded repeatedly: capturing a Stable
Diffusion model loads its denoiser twice and its text encoders three times.
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

from prefkit.models.meta import LIBRARIES, components, on_meta_device, part_of, placeholders
from prefkit.models.trees import Tree, leaves, map_tensors

CACHED_PROMPTS = 64


class OtherPartNeeded(Exception):
    """Raised by a call of another part inside `SequentialOffload.only(part)`."""


class SequentialOffload:
    """Keeps one part in memory: `part` is its name ("denoiser", "vae", "text" or None), `modules` its components.

    load: a function (part, dtype) -> {component name: module} that loads a part with its weights onto the device.
    """

    def __init__(self, load: Callable[[str, torch.dtype], dict[str, Any]]) -> None:
        self.load = load
        self.part: str | None = None
        self.modules: dict[str, Any] = {}
        self.on_meta: dict[str, Any] = {}  # the pipeline's components; they also complete the pipelines of single parts
        self._only: str | None = None

    def activate(self, part: str, dtype: torch.dtype) -> dict[str, Any]:
        if self._only not in (None, part):
            raise OtherPartNeeded(part)
        if self.part != part:
            self.clear()
            with placeholders(self.on_meta):
                self.modules, self.part = self.load(part, dtype), part
        return self.modules

    @contextmanager
    def only(self, part: str) -> Iterator[None]:
        """Inside the block, calls of any part but `part` raise OtherPartNeeded."""
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
        if any(module() is not None for module in alive):  # a reference cycle; otherwise skip gc.collect, which is slow
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def meta_components(
    source: str, revision: str | None, dtype: torch.dtype, device: str, offload: SequentialOffload
) -> dict[str, Any]:
    """Return from_pretrained arguments, {component: replacement}: each replacement loads its part when it is called.

    The safety checker is left out. Components from libraries other than diffusers and transformers are not replaced:
    they are loaded with the pipeline and stay in memory.
    """
    replacements: dict[str, Any] = {}
    for name, entry in components(source, revision).items():
        part = part_of(name)
        if name == "safety_checker":
            replacements[name] = None
        elif part is not None and entry[0] in LIBRARIES:
            module = on_meta_device(entry, source, name, revision, dtype, device)
            replacements[name] = offload.on_meta[name] = _loaded_on_call(module, name, part, offload)
    return replacements


def _loaded_on_call(module: Any, name: str, part: str, offload: SequentialOffload) -> Any:
    """Let every forward inside `module`, which is on the meta device, call the loaded module instead."""
    kind = type(module)
    persistent = set(module.state_dict()) & {path for path, _ in module.named_buffers()}
    statistics = {path.split(".")[0] for path in persistent}

    def loaded() -> Any:
        return offload.activate(part, module.dtype)[name]

    def apply(self: Any, change: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply `float()` and the like to the meta module and, if it is loaded, to the module with weights."""
        if offload.part == part:
            offload.modules[name]._apply(change, *args, **kwargs)
        return nn.Module._apply(self, change, *args, **kwargs)

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        return self if dtype is None else nn.Module.to(self, dtype)

    def attribute(self: Any, key: str) -> Any:
        """Get batch norms from the loaded module, because FLUX.2 reads the statistics in its VAE without calling it."""
        return getattr(loaded(), key) if key in statistics else kind.__getattr__(self, key)

    for path, child in module.named_modules():
        redirected = functools.partial(_call_loaded, loaded, path)
        child.forward = functools.wraps(child.forward)(redirected)
    module.__class__ = type(kind.__name__, (kind,), {"_apply": apply, "to": to, "__getattr__": attribute})
    return module


def _call_loaded(loaded: Callable[[], Any], path: str, *args: Any, **kwargs: Any) -> Any:
    return loaded().get_submodule(path)(*args, **kwargs)


def cache_prompts(pipe: Any) -> None:
    """Cache the results of encode_prompt, because each call may have to load the text encoders."""
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
