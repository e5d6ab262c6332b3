"""From a recipe to caches that a training needs: what to load, at which settings, and what is computed once."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import Recipe, Train, content
from prefkit.distributed import Group, Processes
from prefkit.errors import DamagedError, UsageError
from prefkit.generate.inputs import Inputs, fields_of
from prefkit.images import Background
from prefkit.models.capture.wiring import Wiring
from prefkit.models.load.revision import base_revision, weights_revision
from prefkit.store import Store
from prefkit.store.files import read_json, remedy_for, sound_json, write_json
from prefkit.train import diagnose as failures
from prefkit.train.data import aspect_buckets as frames
from prefkit.train.data import augment as views
from prefkit.train.data import batches as caches
from prefkit.train.data import cache_keys, draws
from prefkit.train.data import loss_weights as beside
from prefkit.train.data import prompt_cache as texts
from prefkit.train.data.batches import PairData
from prefkit.train.data.cache import Cache, check_cache
from prefkit.train.data.masks import Masks
from prefkit.train.data.pairs import PairRow, PairSource
from prefkit.train.jobs import Job, visited
from prefkit.train.monitor import preflight
from prefkit.types import Request, digest

WEIGHTS = {"no": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class ModelLoader:
    """How the recipe's model is loaded for a training, and where its caches lie."""

    def __init__(self, store: Store, recipe: Recipe, config: Train, folder: Path) -> None:
        self.store, self.recipe, self.config, self.folder = store, recipe, config, folder
        model = recipe.model
        weights = {path: weights_revision(path) for path in model.adapters}
        base = base_revision(model)
        self.revision: dict[str, Any] = {
            **base,
            "adapters": [[weights[path], weight] for path, weight in model.adapters.items()],
        }
        if model.inputs:
            self.revision["inputs"] = dict(model.inputs)
        self.generators = [name for name in store.names("candidates") if _made_by(store, name, base)]
        self.call = call_of(recipe, config)
        self._masks: Masks | None = None
        self._wiring: Wiring | None = None
        self.frozen_dtype = WEIGHTS[config.precision] if config.lora is not None else "float32"
        # hidden beside the trainings, so that all of this run share them
        self.caches = folder.parent / ".cache"
        own = {key: base[key] for key in ("base", "config") if key in base}
        code = registry.code_hash(config.family, "family")
        self._common = [own, config.family, code, self.frozen_dtype, Background.rules()]

    def latents_folder(self) -> Path:
        """Latents of images and what lies beside them."""
        return self.caches / cache_keys.latents_key(self._common)

    def conditions_folder(self) -> Path:
        """Hangs on the wiring: once that is known, ask again."""
        key = cache_keys.conditions_key(self._common, self.revision.get("inputs"), self.call, self.wiring())
        return self.caches / key / "conditions"

    def reference_folder(self) -> Path:
        """Errors of the frozen start."""
        names = self.latents_folder().name, self.conditions_folder().parent.name
        config = self.config
        return (
            self.caches / cache_keys.reference_key(*names, self.revision, config.precision, config.seed) / "reference"
        )

    def wiring_file(self) -> Path:
        key = cache_keys.wiring_key(self._common, self.revision.get("inputs"), self.call)
        return self.caches / key / "wiring.json"

    def masks(self, pairs: Sequence[PairRow]) -> Masks | None:
        """What is masked; read once, for the pairs of the first call."""
        if self.config.mask is not None and self._masks is None:
            self._masks = Masks(self.config.mask, pairs, self.store)
        return self._masks

    def load(
        self,
        device: Any,
        size: tuple[int, int],
        parts: set[str] | None,
        wiring: Wiring | None,
        sequential_offload: bool = False,
    ) -> Any:
        """The family with the recipe's model loaded. size: (height, width) at which the pipeline is looked at.

        sequential_offload: text encoders, VAE and denoiser come when they are called, one at a time.
        """
        model = self.recipe.model
        settings = {
            "base": model.base,
            "revision": model.revision,
            "adapters": model.adapters,
            "device": str(device),
            "dtype": self.frozen_dtype,
            "trust_remote_code": model.trust_remote_code,
            "config": model.config,
            "quantize": model.quantize,
            **({"sequential_offload": True} if sequential_offload else {}),
        }
        call = {**self.call, "height": size[0], "width": size[1]}
        options = {"inputs": Inputs(model.inputs, self.store)} if model.inputs else {}
        kind = registry.load_class("family", self.config.family)
        family = kind(time_sampling=self.config.time_sampling, call=call, **options)
        if model.inputs and wiring is None:
            family.example = self._example()
        family.load(settings, parts=parts, **({"wiring": wiring} if wiring is not None else {}))
        return family

    def _example(self) -> Request:
        """A request of the run to look at the pipeline with. Raises UsageError where none has an input."""
        keys = set(fields_of(self.recipe.model.inputs).values())
        found = next((request for request in self.store.requests() if keys <= request.extra.keys()), None)
        if found is None:
            raise UsageError(
                f"model.inputs: no request of {self.store.folder} has {', '.join(sorted(keys))}, so there is no image to "
                "look at the pipeline with. Run `prefkit generate` with requests that have them."
            )
        return found

    def load_denoiser(self, device: Any, data: PairData) -> Any:
        height, width = data.latents.notes[data.example()]
        return self.load(device, (height, width), {"denoiser"}, self.wiring())

    def wiring(self) -> Wiring | None:
        path = self.wiring_file()
        if self._wiring is None and path.exists():
            try:
                self._wiring = Wiring(**read_json(path))
            except TypeError as error:
                raise DamagedError(path, f"{path} could not be read: {error}. {remedy_for(path)}") from error
        return self._wiring

    def agree(self, processes: Group) -> None:
        """Take the first process's wiring: another machine may not see its file yet."""
        wiring = self.wiring() if processes.main else None
        text = processes.broadcast(None if wiring is None else wiring.to_json())
        self._wiring = None if text is None else Wiring.from_json(text)

    def keep_wiring(self, wiring: Wiring) -> None:
        write_json(self.wiring_file(), dataclasses.asdict(wiring))
        self._wiring = wiring

    def caches_read(self) -> list[Path]:
        """Folders of latents, of conditions, and of what lies beside the latents if anything does."""
        names = "latents", beside.folder_of(self.config)
        latents, *more = [self.latents_folder() / name for name in names if name is not None]
        return [latents, self.conditions_folder(), *more]

    def check_caches(self) -> None:
        """Set aside what is damaged of the caches that this training reads."""
        sound_json(self.wiring_file())
        for folder in self.caches_read():
            check_cache(folder)


def _made_by(store: Store, generator: str, base: dict[str, str]) -> bool:
    """Whether this base's own VAE made the latents that this generator's candidates hold: else images are encoded."""
    spec = store.candidates(generator).spec() or {}
    return spec.get("model") == base["base"] and (spec.get("config") or None) == base.get("config")


def call_of(recipe: Recipe, config: Train) -> dict[str, Any]:
    """Call arguments of the generation that the denoiser sees: those of the recipe's generators, where they agree.

    Raises UsageError where they do not and train.guidance does not settle it.
    """
    found: list[dict[str, Any]] = []
    for settings in recipe.generate.values():
        guidance = settings.guidance if config.guidance is None else config.guidance
        call = {name: value for name, value in settings.call.items() if not name.startswith("negative_")}
        call |= {} if guidance is None else {"guidance_scale": guidance}
        if settings.use == "diffusers" and call not in found:
            found.append(call)
    if len(found) > 1:
        raise UsageError(
            f"train: the generators of this recipe differ in their call ({' against '.join(map(str, found[:2]))}), and "
            "a model with embedded guidance must see in training what it saw in generation. Set train.guidance, and keep "
            "generate.call equal."
        )
    if found:
        return found[0]
    return {} if config.guidance is None else {"guidance_scale": config.guidance}


def open_caches(plan: ModelLoader, pairs: list[PairRow], source: PairSource) -> PairData:
    """The pairs, in their frames where a resolution is set, with whatever is cached."""
    store = plan.store
    if plan.config.resolution is not None:
        pairs = frames.assign_buckets(pairs, source, store, plan.config.resolution)
    requests = {request.request_id: request for request in store.requests()}
    latents, conditions, *extra = map(Cache, plan.caches_read())
    views.check_prompts(plan.config, pairs)
    flips, masks = views.Augmentation(plan.config.flip, plan.config.seed), plan.masks(pairs)
    return PairData(pairs, latents, conditions, requests, next(iter(extra), None), masks, flips, plan.config.seed)


def prepare(
    plan: ModelLoader, pairs: list[PairRow], source: PairSource, processes: Processes, jobs: Sequence[Job] = ()
) -> PairData:
    """All pairs, with latents and conditions of what these trainings visit: from the cache or made now, by all processes.

    Without jobs, those of every pair, in all its views.
    """
    processes.group.lead(plan.check_caches)
    store, data = plan.store, open_caches(plan, pairs, source)
    size = data.pairs[0].win.bucket or caches.first_size(source, store, pairs)
    family: Any = None
    plan.agree(processes.group)
    if plan.wiring() is None:  # the folder of conditions hangs on it
        family = _capture(plan, size, processes)
        processes.group.lead(lambda: check_cache(plan.conditions_folder()))
        data.conditions = Cache(plan.conditions_folder())
    seen = (
        visited(jobs, data.pairs, processes.count)
        if jobs
        else [v for p in data.pairs for v in data.augmentation.every(p)]
    )
    wanted = data.of(seen)
    texted = texts.encoded_ahead(plan.config, data, wanted)
    for cache in (data.latents, data.conditions, data.weights):
        if cache is not None:
            _agree(processes, cache)
    # decided by one: processes that disagreed would wait for each other for ever
    ready = processes.group.broadcast(wanted.encoded() and texted.complete() and preflight.complete(plan, data))
    if not ready:
        family = family or plan.load(processes.device, size, None, plan.wiring(), sequential_offload=True)
        doing = "encoding the pairs' images and prompts"
        with failures.explained(plan.folder.name, processes.device, doing, "Free the device, or set model.quantize."):
            _fill(plan, data, wanted, texted, family, source, processes)
    del family
    gc.collect()
    caches.check_sizes(data, source.name)
    return texts.with_text_cache(plan, data, processes.device)


def _capture(plan: ModelLoader, size: tuple[int, int], processes: Processes) -> Any:
    """The family, looked at by the main process, whose wiring the others read."""
    family: Any = None
    if processes.main:
        family = plan.load(processes.device, size, None, None, sequential_offload=True)
        plan.keep_wiring(family.wiring)
    plan.agree(processes.group)
    return family or plan.load(processes.device, size, None, plan.wiring(), sequential_offload=True)


def _fill(
    plan: ModelLoader,
    data: PairData,
    wanted: PairData,
    texted: PairData,
    family: Any,
    source: PairSource,
    processes: Processes,
) -> None:
    """First all that takes the VAE, then all that takes the text encoders: each part is loaded once.

    wanted: whose images are encoded; texted: whose conditions are made.
    """
    store, share = plan.store, (processes.rank, processes.count)
    family.pipe.vae.float()  # latents are made once, so they are made well
    images = [image for group in [*wanted.pairs, *preflight.foreign(plan, data)] for image in group.images]
    caches.fill_latents(data, images, family, source, store, plan.generators, share)
    _agree(processes, data.latents)
    caches.check_sizes(data, source.name)
    measured = preflight.groups_to_measure(plan, data)[1:]
    for images_of in measured:
        firsts = [group.images[0] for group in images_of.pairs]
        caches.fill_latents(images_of, firsts, family, source, store, plan.generators, share)
        _agree(processes, data.latents)
    for groups in (texted, *measured):
        caches.fill_conditions(groups, family, share)
        _agree(processes, data.conditions)
    if data.weights is not None:
        beside.fill(wanted, family, store, share)
        _agree(processes, data.weights)


def _agree(processes: Processes, cache: Cache) -> None:
    """The same parts in all processes: those that any of them has written, or knows from before."""
    known = processes.group.gather(cache.parts())
    cache.expect({name for own in known for name in own})
    both = set.intersection(*map(set, processes.group.gather(cache.parts())))
    cache.keep(both)


def fingerprint(config: Train, plan: ModelLoader, pairs: list[PairRow], processes: Processes) -> dict[str, Any]:
    """What the result means. At a constant rate, when it ends is not part of it.

    Nor is how a global batch is split, but for dropout, whose masks are drawn per micro-batch and process.
    """
    train = {key: value for key, value in content(config).items() if key not in ("batch_size", "accumulation")}
    if config.schedule == "constant":
        train.pop("steps", None)
    split = [config.batch_size, config.accumulation, processes.count]
    train.pop("guidance", None)  # it is in `call`
    read = digest([(pair.id, pair.win.key, pair.lose.key, pair.p, pair.score_gap) for pair in pairs])
    found = {"train": train, "global_batch": math.prod(split), "model": plan.revision, "call": plan.call, "pairs": read}
    found["scheme"] = {"draws": draws.SCHEME, **{k: cache_keys.SCHEME[k] for k in ("wiring", "latents", "conditions")}}
    found |= _measured(config)
    if config.lora is not None and config.lora.dropout:
        found["split"] = split
    masks = plan.masks(pairs)
    if masks is not None:
        found["masks"] = digest([masks.lookup(pair, image) for pair in pairs for image in pair.images])
    if Background.suffix():
        found["background"] = Background.name()
    plugins = {"objective": config.objective.use, "family": config.family}
    code = {kind: registry.code_hash(use, kind) for kind, use in plugins.items()}
    code["optimizer"] = registry.code_hash(config.optimizer) if ".py:" in config.optimizer else None
    if any(code.values()):
        found["code"] = {kind: value for kind, value in code.items() if value is not None}
    return found


def _measured(config: Train) -> dict[str, Any]:
    """How often there is a measurement that may choose the weights of the result, or stop the training."""
    found: dict[str, Any] = {}
    if config.patience:
        found["measured"] = {"every": config.validate_every}
    if config.watch and config.stop_drop:
        found["watched"] = {"every": config.watch_every}
    return found
