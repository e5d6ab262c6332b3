"""Load a pipeline with its adapters from a Hub id, a folder or a single file."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prefkit import output
from prefkit.config import Model
from prefkit.errors import CaptureError, TrainingError, UsageError
from prefkit.models.dtypes import dtype_of
from prefkit.models.load.folder import INDEX, not_a_pipeline, variant_of
from prefkit.models.load.single_file import from_single_file
from prefkit.models.lora.check import check_whole, read_file, refuse_unread
from prefkit.models.lora.files import ADAPTER_FILE, even_state
from prefkit.models.meta import PARTS, left_out, part_of
from prefkit.models.quantize import check_quantize, quantized
from prefkit.tiny import located

SINGLE_FILES = (".safetensors", ".ckpt")
ADAPTER_NAME = "start{}"


def load_pipeline(
    base: str | Path,
    *,
    revision: str | None = None,
    adapters: Mapping[str, float] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    scheduler: str | None = None,
    parts: Collection[str] | None = None,
    trust_remote_code: bool = False,
    config: str | None = None,
    sequential_offload: bool = False,
    quantize: str | None = None,
) -> Any:
    """A DiffusionPipeline on `device`, weights from safetensors.

    adapters   LoRA by path or Hub id -> weight, loaded as adapters start0, start1, ... in this order
    scheduler  class name of a diffusers scheduler to swap in, made from the old one's config; clip_sample (meant
               for pixels, and on by default in some) is off where that config does not mention it
    parts      of {"denoiser", "vae", "text"}, default all. Text encoders left out are None; a denoiser or VAE left
               out is there on paper (configuration and shapes) but its weights never enter memory
    config     for a single file: a pipeline folder or Hub id of the same kind to take configuration from
    sequential_offload    no weights now: each part is loaded when it is called, in the place of the one before (`pipe.turns`, see
               models/offload.py), the denoiser with its adapters. A single file is loaded whole all the same
    quantize   the denoiser's linear layers as nf4, int8 or fp8 (models/quantize.py)
    Raises UsageError for a path that is not there, a folder that is no pipeline, unknown names, missing safetensors;
    TrainingError for an adapter that changes a text encoder which is left out.
    """
    silence_bars("diffusers", "transformers")
    silence_cuts()
    torch_dtype = dtype_of(dtype)
    wanted = set(PARTS if parts is None else parts)
    if not wanted <= set(PARTS):
        raise UsageError(f"parts {sorted(wanted - set(PARTS))} are not known; choose of {', '.join(PARTS)}.")
    source = located(base)
    variant = _check_source(source, wanted)
    check_quantize(quantize, device)
    sequential_offload = sequential_offload and not source.endswith(SINGLE_FILES)
    if source.endswith(SINGLE_FILES):
        pipe = from_single_file(source, torch_dtype, config)
        _still(pipe)  # diffusers (0.42.1) leaves a T5 in training mode, with its dropout on
    elif sequential_offload:
        same: Any = {"revision": revision, "trust_remote_code": trust_remote_code, "quantize": quantize}
        whole = functools.partial(load_pipeline, base, **same)
        load = _part_loader(whole, device, adapters)
        pipe = _in_turn(source, revision, torch_dtype, device, trust_remote_code, load, variant)
    else:

        def given() -> dict[str, Any]:
            config = quantized(source, revision, quantize, torch_dtype) if quantize and "denoiser" in wanted else {}
            return left_out(source, revision, wanted, torch_dtype, device) | config

        pipe = _from_pretrained(source, revision, torch_dtype, trust_remote_code, given, variant)
    if scheduler is not None:
        kind = _scheduler(scheduler)
        unclipped = {"clip_sample": False} if "clip_sample" in inspect.signature(kind.__init__).parameters else {}
        pipe.scheduler = kind.from_config({**unclipped, **pipe.scheduler.config})
    if adapters and not sequential_offload:
        _load_adapters(pipe, adapters)
    return pipe.to(device)


def denoiser_name(pipe: Any) -> str:
    """ "unet" or "transformer". Raises CaptureError for none, or two (Wan 2.2 and the like)."""
    components = {name for name, component in pipe.components.items() if isinstance(component, torch.nn.Module)}
    found = sorted(name for name in components if re.fullmatch(r"(unet|transformer)(_\w+)?", name))
    if len(found) != 1 or found[0] not in ("unet", "transformer"):
        what = f"has the denoisers {', '.join(found)}" if found else "has no denoiser called unet or transformer"
        raise CaptureError(
            f"{type(pipe).__name__} {what} (components: {', '.join(sorted(components))}); exactly one is supported. "
            "Such a model needs a family of its own."
        )
    return found[0]


def check_model(model: Model, device: str, dtype: str = "float32", scheduler: str | None = None) -> None:
    """Whatever load_pipeline would refuse before it reads weights. Raises UsageError."""
    dtype_of(dtype)
    source = located(model.base)
    _check_source(source, PARTS)
    check_quantize(model.quantize, device)
    if scheduler is not None:
        _scheduler(scheduler)
    for adapter in model.adapters:
        _check_adapter(adapter)
    if model.config is not None:
        _check_source(located(model.config), ())


def _check_adapter(source: str) -> None:
    path = Path(located(source))
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise UsageError(
            f"the adapter {source} is a folder without .safetensors weights. Give the adapter's own folder."
        )
    if not path.exists() and (_looks_local(source) or source.count("/") != 1):
        raise UsageError(f"the adapter {source} was not found. Give an existing file or folder, or a Hub id.")


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(SINGLE_FILES)


def _check_source(source: str, wanted: Collection[str]) -> str | None:
    """The variant that a local folder is to be loaded in. Raises UsageError for what no pipeline is read from."""
    path = Path(source)
    if path.is_dir() and not (path / INDEX).is_file():
        raise UsageError(not_a_pipeline(path))
    if not path.exists() and _looks_local(source):
        raise UsageError(f"{source} is not there. Give an existing folder or file, or a Hub id such as owner/name.")
    if path.is_file() and not source.endswith(SINGLE_FILES):
        raise UsageError(
            f"{source} is neither a folder nor a .safetensors or .ckpt file, so no pipeline is read from it."
        )
    return variant_of(source, wanted)


def _from_pretrained(
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    remote_code: bool,
    given: Callable[[], dict[str, Any]],
    variant: str | None,
) -> Any:
    """given: components that are not to be loaded, and what takes their place; and further arguments."""
    from diffusers import DiffusionPipeline

    if variant is not None:
        output.note(f"model: {source} holds weights of the variant {variant} only; they are read as {dtype}.")
    try:
        # a small VAE in the place of the usual one is nothing to warn of: the capture proves what fits together
        with _unsaid("diffusers.pipelines.pipeline_utils", "Expected types for"):
            return DiffusionPipeline.from_pretrained(
                source,
                revision=revision,
                variant=variant,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=remote_code,
                **given(),
            )
    except (OSError, ValueError, AttributeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"the pipeline {source} could not be loaded: {_short(error)}") from error


def _part_loader(
    whole: Callable[..., Any], device: str, adapters: Mapping[str, float] | None
) -> Callable[[str, torch.dtype], dict[str, Any]]:
    """(part, dtype) -> its components by name. whole: load_pipeline, knowing which."""

    def load(part: str, dtype: torch.dtype) -> dict[str, Any]:
        own = adapters if part == "denoiser" else None
        pipe = whole(parts={part}, device=device, dtype=str(dtype).removeprefix("torch."), adapters=own)
        return {
            name: module for name, module in pipe.components.items() if part_of(name) == part and module is not None
        }

    return load


def _in_turn(
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    device: str,
    remote_code: bool,
    load: Callable[[str, torch.dtype], dict[str, Any]],
    variant: str | None,
) -> Any:
    from prefkit.models.offload import SequentialOffload, remember_texts, stand_ins

    turns = SequentialOffload(load)
    given = functools.partial(stand_ins, source, revision, dtype, device, turns)
    pipe = _from_pretrained(source, revision, dtype, remote_code, given, variant)
    remember_texts(pipe)
    pipe.turns = turns
    return pipe


def _scheduler(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UsageError(f"diffusers has no scheduler called {name!r}; give a class name such as DDIMScheduler.")
    return kind


def _load_adapters(pipe: Any, adapters: Mapping[str, float]) -> None:
    denoiser = denoiser_name(pipe)
    net = getattr(pipe, denoiser)
    names: list[str] = []
    for source in adapters:
        names.append(ADAPTER_NAME.format(len(names)))
        try:
            _load_adapter(pipe, denoiser, source, names[-1])
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise UsageError(f"the adapter {source} could not be loaded: {_short(error)}") from error
        if names[-1] not in getattr(net, "peft_config", {}):
            raise UsageError(f"the adapter {source} holds no weights for the {denoiser} of {type(pipe).__name__}.")
    owner = pipe if hasattr(pipe, "set_adapters") else net
    owner.set_adapters(names, list(adapters.values()))
    _still(pipe)  # new layers come in training mode, with their dropout on


def _still(pipe: Any) -> None:
    """Every part in evaluation mode."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()


def _load_adapter(pipe: Any, denoiser: str, source: str, name: str) -> None:
    """Load one LoRA of any layout that diffusers reads, whole. Raises UsageError."""
    path = _adapter_file(source)
    raw, metadata = read_file(path)
    refuse_unread(raw, source)
    _load_file(pipe, denoiser, path, name)
    check_whole(pipe, name, raw, metadata, source)


def _adapter_file(source: str) -> Path:
    """The file of an adapter that is given as a file, a folder or a Hub id. Raises UsageError."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(located(source))
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(file.name for file in path.glob("*.safetensors"))
        if ADAPTER_FILE not in found and len(found) != 1:
            what = "several adapters" if found else "no .safetensors file"
            raise UsageError(
                f"the adapter folder {source} holds {what}{': ' if found else ''}{', '.join(found)}. Give the file."
            )
        return path / (ADAPTER_FILE if ADAPTER_FILE in found else found[0])
    try:
        return Path(huggingface_hub.hf_hub_download(source, ADAPTER_FILE))
    except EntryNotFoundError:
        found = [file for file in huggingface_hub.list_repo_files(source) if file.endswith(".safetensors")]
        if len(found) != 1:
            raise UsageError(f"{source} holds {len(found)} .safetensors files, none called {ADAPTER_FILE}. Download the one "
                             "that you mean and give its path.") from None  # fmt: skip
        return Path(huggingface_hub.hf_hub_download(source, found[0]))


def _load_file(pipe: Any, denoiser: str, path: Path, name: str) -> None:
    source = str(path.parent)
    settings: dict[str, Any] = {"use_safetensors": True, "weight_name": path.name}
    net = getattr(pipe, denoiser)
    if not hasattr(pipe, "load_lora_weights"):
        net.load_lora_adapter(source, prefix=denoiser, adapter_name=name, **settings)
        return
    config = {"unet_config": net.config} if denoiser == "unet" else {}  # SDXL's blocks are counted otherwise elsewhere
    read: Any = pipe.lora_state_dict(source, **settings, **config)
    state, alphas = read[:2] if isinstance(read, tuple) else (read, None)
    others = sorted({key.split(".")[0] for key in state if key.startswith("text_encoder")})
    if others and not any(isinstance(getattr(pipe, name, None), torch.nn.Module) for name in others):
        raise changes_text(others[0])
    with _unsaid("diffusers.loaders.lora_base", "No LoRA keys"):  # most adapters leave text encoders alone
        if alphas:
            pipe.load_lora_weights(even_state(state, alphas), adapter_name=name)
        else:
            pipe.load_lora_weights(source, adapter_name=name, **settings)


def changes_text(component: str) -> TrainingError:
    """What is said of a start's adapter that is not the denoiser's alone."""
    return TrainingError(
        f"one of the start's adapters also changes {component}; prefkit trains and exports adapters of the "
        "denoiser only. Fuse that adapter into the pipeline (fuse_lora, save_pretrained) and start from it."
    )


@contextmanager
def _unsaid(logger: str, start: str) -> Iterator[None]:
    """Without those warnings of a library that start like this."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(start)

    logging.getLogger(logger).addFilter(other)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(other)


def silence_bars(*libraries: str) -> None:
    """Loading bars of these libraries (default: transformers) belong on a terminal only."""
    if not sys.stderr.isatty():
        for name in libraries or ("transformers",):
            importlib.import_module(f"{name}.utils.logging").disable_progress_bar()


#: how libraries begin to say that a prompt was cut; prefkit counts those, once (models/long_prompts.py)
CUTS = ("The following part of your input was truncated", "Token indices sequence length is longer")


def silence_cuts() -> None:
    """A library's own line for each prompt that is longer than its text encoder reads."""
    for name in ("diffusers", "transformers"):
        for handler in logging.getLogger(name).handlers:
            if _no_cut not in handler.filters:
                handler.addFilter(_no_cut)


def _no_cut(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(CUTS)


def _short(error: Exception) -> str:
    """The first lines of a long foreign message, as one paragraph."""
    return " ".join(str(error).split())[:400]
