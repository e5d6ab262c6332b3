"""Load a pipeline with its adapters from a Hub id, a folder or a single file."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prefkit import output
from prefkit.config import Model
from prefkit.errors import CaptureError, TrainingError, UsageError
from prefkit.models.cpu_offload import place
from prefkit.models.load.folder import INDEX, Files, files_of, not_a_pipeline
from prefkit.models.load.single_file import from_single_file
from prefkit.models.lora.check import check_whole, refuse_unread
from prefkit.models.lora.files import ADAPTER_FILE, even_state, read_file
from prefkit.models.meta import PARTS, left_out, part_of
from prefkit.models.precision import dtype_of
from prefkit.models.prompt_chunks import encode_in_chunks
from prefkit.models.quantize import check_quantize, quantized
from prefkit.tiny import located

SINGLE_FILES = (".safetensors", ".ckpt")
ADAPTER_NAME = "start{}"


def load_pipeline(
    base: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    adapters: Mapping[str, float] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    scheduler: str | None = None,
    parts: Collection[str] | None = None,
    trust_remote_code: bool = False,
    config: str | None = None,
    sequential_offload: bool = False,
    quantize: str | None = None,
    vae_tiling: bool = False,
    long_prompts: str = "cut",
    offload: str = "none",
    keep_denoiser: bool = False,
) -> Any:
    """Load a DiffusionPipeline onto `device`, with weights from safetensors files or, in a local folder, .bin files.

    variant    of the weight files, such as fp16; None for plain files or, if a local folder has none, its variant
    adapters   path or Hub id of a LoRA -> its weight; the adapters are named start0, start1, ... in this order
    scheduler  class name of a diffusers scheduler that replaces the pipeline's scheduler but keeps its config, except
               that clip_sample (meant for pixels) is off if the config does not set it
    parts      which of "denoiser", "vae" and "text" to load, default all. Text encoders that are not loaded are None; a
               denoiser or VAE that is not loaded is on the meta device, without weights
    config     for a single file: folder or Hub id of a pipeline of the same kind, which provides the configuration
    sequential_offload    load each part when it is called and free the previous part (models/offload.py); ignored for a
               single file
    quantize   store the denoiser's linear layers in nf4, int8 or fp8 (models/quantize.py)
    vae_tiling encode and decode large images in tiles
    long_prompts  cut | chunks (models/prompt_chunks.py)
    offload    none | model | sequential: keep parts in CPU memory until they are called (models/cpu_offload.py);
               keep_denoiser: the denoiser stays on the device nevertheless
    Raises UsageError for a missing path, a folder that is not a pipeline, an unknown name or missing weights;
    TrainingError for an adapter that changes a text encoder, if no text encoder is loaded.
    """
    _silence_libraries()
    torch_dtype = dtype_of(dtype)
    wanted = set(PARTS if parts is None else parts)
    if wanted - set(PARTS):
        raise UsageError(f"parts {sorted(wanted - set(PARTS))} are not known; choose from {', '.join(PARTS)}.")
    source = located(base)
    files = _check_source(source, wanted, variant)
    check_quantize(quantize, device)
    open_pipeline = partial(_from_pretrained, source, revision, torch_dtype, trust_remote_code, files)
    if source.endswith(SINGLE_FILES):
        pipe = from_single_file(source, torch_dtype, config)
        _set_eval(pipe)  # diffusers (0.42.1) leaves a T5 in training mode, with its dropout on
    elif sequential_offload:
        load = partial(load_pipeline, base, revision=revision, variant=variant, trust_remote_code=trust_remote_code)
        part = partial(_load_part, partial(load, device=device, quantize=quantize), adapters)
        pipe = _with_offload(open_pipeline, part, (source, revision, torch_dtype, device))
        adapters = None  # loaded with the denoiser
    else:
        few_bits = quantize if "denoiser" in wanted else None
        pipe = open_pipeline(lambda: _replaced(source, revision, wanted, torch_dtype, device, few_bits))
    _adjust(pipe, scheduler, adapters, vae_tiling, long_prompts)
    return place(pipe, device, offload, denoiser_name(pipe) if keep_denoiser else None)


def _adjust(
    pipe: Any, scheduler: str | None, adapters: Mapping[str, float] | None, vae_tiling: bool, long_prompts: str
) -> None:
    """Apply these arguments of load_pipeline to a loaded pipeline."""
    if scheduler is not None:
        _set_scheduler(pipe, scheduler)
    if adapters:
        _load_adapters(pipe, adapters)
    if vae_tiling:
        _enable_tiling(pipe)
    if long_prompts == "chunks":
        encode_in_chunks(pipe)


def _replaced(
    source: str, revision: str | None, wanted: set[str], dtype: torch.dtype, device: str, quantize: str | None
) -> dict[str, Any]:
    """Return from_pretrained arguments that leave out unwanted parts and quantise the denoiser."""
    absent = left_out(source, revision, wanted, dtype, device)
    return absent | (quantized(source, revision, quantize, dtype) if quantize else {})


def _with_offload(open_pipeline: Callable[[Any], Any], load_part: Any, where: tuple[Any, ...]) -> Any:
    """Open a pipeline whose parts are loaded when they are called. where: (source, revision, dtype, device)."""
    from prefkit.models.offload import SequentialOffload, cache_prompts, meta_components

    source, revision, dtype, device = where
    offload = SequentialOffload(load_part)
    pipe = open_pipeline(lambda: meta_components(source, revision, dtype, device, offload))
    cache_prompts(pipe)
    pipe.sequential_offload = offload
    return pipe


def _enable_tiling(pipe: Any) -> None:
    try:
        pipe.vae.enable_tiling()
    except (AttributeError, NotImplementedError) as error:
        kind = type(getattr(pipe, "vae", None)).__name__
        raise UsageError(
            f"model.vae_tiling: the VAE of {type(pipe).__name__} ({kind}) does not support tiling. Remove the key."
        ) from error


def model_arguments(model: Model) -> dict[str, Any]:
    """Return the settings in the recipe's `model` as arguments for load_pipeline."""
    return {field.name: getattr(model, field.name) for field in fields(model) if field.name != "inputs"}


def denoiser_name(pipe: Any) -> str:
    """Return "unet" or "transformer". Raises CaptureError if the pipeline has no denoiser, or two, like Wan 2.2."""
    components = sorted(name for name, component in pipe.components.items() if isinstance(component, torch.nn.Module))
    denoisers = [name for name in components if re.fullmatch(r"(unet|transformer)(_\w+)?", name)]
    if len(denoisers) != 1 or denoisers[0] not in ("unet", "transformer"):
        problem = (
            f"has the denoisers {', '.join(denoisers)}" if denoisers else "has no denoiser called unet or transformer"
        )
        raise CaptureError(
            f"{type(pipe).__name__} {problem} (components: {', '.join(components)}); prefkit supports exactly one. "
            "Such a model needs a family plug-in of its own."
        )
    return denoisers[0]


def check_model(model: Model, device: str, dtype: str = "float32", scheduler: str | None = None) -> None:
    """Check the arguments of load_pipeline without loading weights. Raises UsageError."""
    dtype_of(dtype)
    source = located(model.base)
    _check_source(source, PARTS, model.variant)
    check_quantize(model.quantize, device)
    if scheduler is not None:
        _scheduler(scheduler)
    for adapter in model.adapters:
        path = Path(located(adapter))
        if path.is_dir() and not any(path.glob("*.safetensors")):
            raise UsageError(f"the adapter {adapter} is a folder without .safetensors weights. Give another folder.")
        if not path.exists() and (_looks_local(adapter) or adapter.count("/") != 1):
            raise UsageError(f"the adapter {adapter} was not found. Give an existing file or folder, or a Hub id.")
    if model.config is not None:
        _check_source(located(model.config), ())


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(SINGLE_FILES)


def _check_source(source: str, wanted: Collection[str], variant: str | None = None) -> Files:
    """Return which weight files to load (see files_of). Raises UsageError if `source` is not a pipeline."""
    path = Path(source)
    if path.is_dir() and not (path / INDEX).is_file():
        raise UsageError(not_a_pipeline(path))
    if not path.exists() and _looks_local(source):
        raise UsageError(f"{source} does not exist. Give an existing folder or file, or a Hub id such as owner/name.")
    if path.is_file() and not source.endswith(SINGLE_FILES):
        raise UsageError(f"{source} is neither a folder nor a .safetensors or .ckpt file, so it is not a pipeline.")
    return files_of(source, wanted, variant)


def _from_pretrained(
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    trust_remote_code: bool,
    files: Files,
    arguments: Callable[[], dict[str, Any]],
) -> Any:
    """Load a folder or Hub id. arguments: a function that returns more from_pretrained arguments. Raises UsageError."""
    from diffusers import DiffusionPipeline

    if files.only:
        output.note(
            f"model: {source} holds only weights of the variant {files.variant}; they are converted to {dtype}."
        )
    try:
        # diffusers warns about an unusual VAE class, but the capture proves that the parts fit together
        with _without_warning("diffusers.pipelines.pipeline_utils", "Expected types for"):
            return DiffusionPipeline.from_pretrained(
                source,
                revision=revision,
                variant=files.variant,
                dtype=dtype,
                use_safetensors=None if files.pickled else True,  # None: diffusers loads pickles with weights_only
                trust_remote_code=trust_remote_code,
                **arguments(),
            )
    except (OSError, ValueError, AttributeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        if "MeshPipeline" in str(error):
            raise UsageError(
                f"{source} is a mesh model, not an image pipeline. Set use: mesh in generate and family: mesh in train."
            ) from error
        hint = (
            "" if Path(source).is_dir() or files.variant else " If its files have a variant, set model.variant: fp16."
        )
        raise UsageError(f"the pipeline {source} could not be loaded: {_short(error)}{hint}") from error


def _load_part(
    load: Callable[..., Any], adapters: Mapping[str, float] | None, part: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Return {component name: module} of a part. load: load_pipeline with its other arguments already set."""
    name = str(dtype).removeprefix("torch.")
    pipe = load(parts={part}, dtype=name, adapters=adapters if part == "denoiser" else None)
    return {name: module for name, module in pipe.components.items() if part_of(name) == part and module is not None}


def _scheduler(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UsageError(f"diffusers has no scheduler called {name!r}; give a class name such as DDIMScheduler.")
    return kind


def _set_scheduler(pipe: Any, name: str) -> None:
    kind = _scheduler(name)
    unclipped = {"clip_sample": False} if "clip_sample" in inspect.signature(kind.__init__).parameters else {}
    pipe.scheduler = kind.from_config({**unclipped, **pipe.scheduler.config})


def _load_adapters(pipe: Any, adapters: Mapping[str, float]) -> None:
    denoiser = denoiser_name(pipe)
    net = getattr(pipe, denoiser)
    names: list[str] = []
    for source in adapters:
        names.append(ADAPTER_NAME.format(len(names)))
        try:
            path = _adapter_file(source)
            state, metadata = read_file(path)
            refuse_unread(state, source)
            _load_file(pipe, denoiser, path, names[-1])
            check_whole(pipe, names[-1], state, metadata, source)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise UsageError(f"the adapter {source} could not be loaded: {_short(error)}") from error
        if names[-1] not in getattr(net, "peft_config", {}):
            raise UsageError(f"the adapter {source} holds no weights for the {denoiser} of this {type(pipe).__name__}.")
    owner = pipe if hasattr(pipe, "set_adapters") else net
    owner.set_adapters(names, list(adapters.values()))
    _set_eval(pipe)  # new layers are in training mode, with their dropout on


def _set_eval(pipe: Any) -> None:
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()


def _adapter_file(source: str) -> Path:
    """Return the weight file of an adapter. source: a file, a folder or a Hub id. Raises UsageError."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(located(source))
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.safetensors"))
        if ADAPTER_FILE not in files and len(files) != 1:
            content = f"several adapters: {', '.join(files)}" if files else "no .safetensors file"
            raise UsageError(f"the adapter folder {source} holds {content}. Give the path of one adapter file.")
        return path / (ADAPTER_FILE if ADAPTER_FILE in files else files[0])
    try:
        return Path(huggingface_hub.hf_hub_download(source, ADAPTER_FILE))
    except EntryNotFoundError:
        files = [file for file in huggingface_hub.list_repo_files(source) if file.endswith(".safetensors")]
        if len(files) != 1:
            raise UsageError(
                f"the Hub repository {source} holds {len(files)} .safetensors files, none called {ADAPTER_FILE}. "
                "Download the adapter and give the path of its file."
            ) from None
        return Path(huggingface_hub.hf_hub_download(source, files[0]))


def _load_file(pipe: Any, denoiser: str, path: Path, name: str) -> None:
    """Load one LoRA file in any layout that diffusers can read."""
    source = str(path.parent)
    settings: dict[str, Any] = {"use_safetensors": True, "weight_name": path.name}
    net = getattr(pipe, denoiser)
    if not hasattr(pipe, "load_lora_weights"):
        net.load_lora_adapter(source, prefix=denoiser, adapter_name=name, **settings)
        return
    config = (
        {"unet_config": net.config} if denoiser == "unet" else {}
    )  # other programs number SDXL's blocks differently from diffusers
    result: Any = pipe.lora_state_dict(source, **settings, **config)
    state, alphas = result[:2] if isinstance(result, tuple) else (result, None)
    others = sorted({key.split(".")[0] for key in state if key.startswith("text_encoder")})
    if others and not any(isinstance(getattr(pipe, name, None), torch.nn.Module) for name in others):
        raise text_adapter_error(others[0])
    with (
        _without_warning("diffusers.loaders.lora_base", "No LoRA keys"),  # most adapters do not change text encoders
        _without_warning("transformers.integrations.peft", "LOAD REPORT"),  # lists other adapters' weights as missing
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended here
        if alphas:
            pipe.load_lora_weights(even_state(state, alphas), adapter_name=name)
        else:
            pipe.load_lora_weights(source, adapter_name=name, **settings)


def text_adapter_error(component: str) -> TrainingError:
    return TrainingError(
        f"an adapter in model.adapters (or of train.NAME.start) also changes {component}. Only offline training with "
        "lora.text_encoder: true can start from it. Set that, or fuse the adapter into the pipeline with diffusers "
        "(fuse_lora, save_pretrained) and set the saved folder as model.base."
    )


@contextmanager
def _without_warning(logger: str, text: str) -> Iterator[None]:
    """Temporarily suppress the messages of the logger called `logger` that contain `text`."""

    def other(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logging.getLogger(logger).addFilter(other)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(other)


def silence_bars(*libraries: str) -> None:
    """If stderr is not a terminal, disable the progress bars of these libraries (default: transformers)."""
    if not sys.stderr.isatty():
        for name in libraries or ("transformers",):
            importlib.import_module(f"{name}.utils.logging").disable_progress_bar()


#: how the libraries' warnings about a truncated prompt start; prefkit warns once instead (models/long_prompts.py)
TRUNCATION = ("The following part of your input was truncated", "Token indices sequence length is longer")


def _silence_libraries() -> None:
    silence_bars("diffusers", "transformers")
    for name in ("diffusers", "transformers"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_no_truncation)  # adding it again has no effect


def _no_truncation(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(TRUNCATION)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
