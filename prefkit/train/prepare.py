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
from prefkit.errors import DamagedError, UsageError
from prefkit.generate.inputs import Inputs, fields_of
from prefkit.models.revision import base_revision, weights_revision
from prefkit.models.wiring import Wiring
from prefkit.store import Store
from prefkit.store.files import read_json, remedy_for, write_json
from prefkit.train import beside, frames, posterior, preflight, texts, views
from prefkit.train import data as caches
from prefkit.train.cache import WIRING, Cache, check_caches
from prefkit.train.data import PairData
from prefkit.train.jobs import Job, visited
from prefkit.train.masks import Masks
from prefkit.train.pairs import PairRow, PairSource
from prefkit.train.processes import Processes
from prefkit.types import Request, digest

WEIGHTS = {"no": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Plan:
    """How the recipe's model is loaded for a training, and where its caches lie."""

    def __init__(self, store: Store, recipe: Recipe, config: Train, folder: Path) -> None:
        self.store, self.recipe, self.config = store, recipe, config
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
        self.frozen_dtype = WEIGHTS[config.precision] if config.lora is not None else "float32"
        # hidden beside the trainings, so that all of this run share it
        code = registry.code_hash(config.family, "family")
        family = [config.family] if code is None else [config.family, code]
        self.cache = folder.parent / ".cache" / digest(self.revision, *family, self.call, self.frozen_dtype)

    def masks(self, pairs: Sequence[PairRow]) -> Masks | None:
        """What is masked; read once, for the pairs of the first call."""
        if self.config.mask is not None and self._masks is None:
            self._masks = Masks(self.config.mask, pairs, self.store)
        return self._masks

    def load(
        self, device: Any, size: tuple[int, int], parts: set[str] | None, wiring: Wiring | None, in_turn: bool = False
    ) -> Any:
        """The family with the recipe's model loaded. size: (height, width) at which the pipeline is looked at.

        in_turn: text encoders, VAE and denoiser come when they are called, one at a time.
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
            **({"in_turn": True} if in_turn else {}),
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
        path = self.cache / WIRING
        if not path.exists():
            return None
        try:
            return Wiring(**read_json(path))
        except TypeError as error:
            raise DamagedError(path, f"{path} could not be read: {error}. {remedy_for(path)}") from error


def _made_by(store: Store, generator: str, base: dict[str, str]) -> bool:
    """Whether this base's own VAE made the latents that this generator's candidates hold: else images are encoded."""
    spec = store.candidates(generator).spec() or {}
    return {"base": spec.get("model"), **{key: spec[key] for key in ("config", "quantize") if spec.get(key)}} == base


def call_of(recipe: Recipe, config: Train) -> dict[str, Any]:
    """Call arguments of the generation that the denoiser sees: those of the recipe's generators, where they agree.

    Raises UsageError where they do not and train.guidance does not settle it.
    """
    found: list[dict[str, Any]] = []
    for settings in recipe.generate.values():
        guidance = settings.guidance if config.guidance is None else config.guidance
        call = dict(settings.call) | ({} if guidance is None else {"guidance_scale": guidance})
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


def open_caches(plan: Plan, pairs: list[PairRow], source: PairSource) -> PairData:
    """The pairs, in their frames where a resolution is set, with whatever is cached."""
    store = plan.store
    if plan.config.resolution is not None:
        pairs = frames.framed(pairs, source, store, plan.config.resolution)
    requests = {request.request_id: request for request in store.requests()}
    extra = beside.cache_of(plan.config, plan.cache)
    latents, conditions = Cache(plan.cache / posterior.folder_of(plan.config)), Cache(plan.cache / "conditions")
    views.check_prompts(plan.config, plan.recipe.model.inputs, pairs)
    return PairData(pairs, latents, conditions, requests, extra, plan.masks(pairs), views.Views.of(plan.config))


def prepare(
    plan: Plan, pairs: list[PairRow], source: PairSource, processes: Processes, jobs: Sequence[Job] = ()
) -> PairData:
    """All pairs, with latents and conditions of what these trainings visit: from the cache or made now, by all processes.

    Without jobs, those of every pair, in all its views.
    """
    if processes.main:
        check_caches(plan.cache)
    processes.wait()
    store, data = plan.store, open_caches(plan, pairs, source)
    seen = visited(jobs, data.pairs, processes.count) if jobs else [v for p in data.pairs for v in data.views.every(p)]
    wanted = data.of(seen)
    texted = texts.on_disk(plan.config, data, wanted)
    ready = wanted.encoded() and texted.complete() and plan.wiring() is not None and preflight.complete(plan, data)
    processes.wait()
    if not ready:
        size = data.pairs[0].win.frame or caches.first_size(source, store, pairs)
        family: Any = None
        if processes.main:
            family = plan.load(processes.device, size, None, plan.wiring(), in_turn=True)
            write_json(plan.cache / WIRING, dataclasses.asdict(family.wiring))
        processes.wait()
        if family is None:
            family = plan.load(processes.device, size, None, plan.wiring(), in_turn=True)
        _fill(plan, data, wanted, texted, family, source, processes)
        del family
        gc.collect()
    caches.check_sizes(data, source.name)
    return texts.shown(plan, data, processes.device)


def _fill(
    plan: Plan,
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
    views.warn_of_coordinates(plan.config, family)
    encode = posterior.encoder(family, plan.config)
    images = [side for group in [*wanted.pairs, *preflight.foreign(plan, data)] for side in group.sides]
    caches.fill_latents(data, images, encode, source, store, plan.generators, share)
    _agree(processes, data.latents)
    caches.check_sizes(data, source.name)
    measured = preflight.chosen(plan, data)[1:]
    for images_of in measured:
        sides = [group.sides[0] for group in images_of.pairs]
        caches.fill_latents(images_of, sides, encode, source, store, plan.generators, share)
        _agree(processes, data.latents)
    for groups in (texted, *measured):
        caches.fill_conditions(groups, family, share)
        _agree(processes, data.conditions)
    if data.beside is not None:
        beside.fill(wanted, family, plan.config, store, plan.generators, share)
        _agree(processes, data.beside)


def _agree(processes: Processes, cache: Cache) -> None:
    processes.wait()
    cache.refresh()


def fingerprint(config: Train, plan: Plan, pairs: list[PairRow], processes: Processes) -> dict[str, Any]:
    """What the result means. At constant rate and without a curriculum, when it ends is not part of it.

    Nor is how a global batch is split, but for dropout, whose masks are drawn per micro-batch and process.
    """
    train = {key: value for key, value in content(config).items() if key not in ("batch_size", "accumulation")}
    if config.schedule == "constant" and not config.curriculum:
        train.pop("steps", None)
    split = [config.batch_size, config.accumulation, processes.count]
    read = digest([(pair.id, pair.win.key, pair.lose.key, pair.p, pair.score_gap) for pair in pairs])
    found = {"train": train, "global_batch": math.prod(split), "model": plan.revision, "call": plan.call, "pairs": read}
    if config.lora is not None and config.lora.dropout:
        found["split"] = split
    masks = plan.masks(pairs)
    if masks is not None:
        found["masks"] = digest([masks.said(pair, side) for pair in pairs for side in pair.sides])
    if config.curriculum:
        found["rank_gaps"] = digest([pair.rank_gap for pair in pairs])
    plugins = {"objective": config.objective.use, "family": config.family}
    code = {kind: registry.code_hash(use, kind) for kind, use in plugins.items()}
    code["optimizer"] = registry.code_hash(config.optimizer) if ".py:" in config.optimizer else None
    if any(code.values()):
        found["code"] = {kind: value for kind, value in code.items() if value is not None}
    return found
