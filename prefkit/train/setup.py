"""Prepares offline training: the model loader, the caches of latents and conditions, and the `Setup`."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import Choice, Recipe, Train, plugin_options
from prefkit.distributed import Group
from prefkit.distributed.collectives import Processes
from prefkit.errors import DamagedError, UsageError
from prefkit.generate.inputs import Inputs, fields_of
from prefkit.images import Background
from prefkit.models.capture.wiring import Wiring
from prefkit.models.load.pipeline import model_arguments
from prefkit.models.load.revision import base_revision, weights_revision
from prefkit.store import Store
from prefkit.store.files import read_json, remedy_for, sound_json, write_json
from prefkit.train import diagnose, fsdp, precision
from prefkit.train.data import aspect_buckets, batches, cache_keys, loss_weights, prompt_cache
from prefkit.train.data.augment import Augmentation, check_prompts
from prefkit.train.data.batches import PairData, order
from prefkit.train.data.cache import Cache, check_cache
from prefkit.train.data.groups import groups_of
from prefkit.train.data.masks import Masks
from prefkit.train.data.pairs import PairRow, PairSource
from prefkit.train.data.reference_cache import ReferenceErrorCache
from prefkit.train.monitor import preflight
from prefkit.train.monitor.sample_eval import SampleEvaluation, sample_evaluation
from prefkit.train.monitor.validation import Validation, split
from prefkit.train.policy import Policy, make_policy
from prefkit.types import Request


@dataclass(frozen=True)
class Job:
    """One training run. flip: swap a pair's labels with probability 1/2, by a hash of pair id and train.seed."""

    name: str
    config: Train
    flip: bool = False

    def groups(self, objective: Any, pairs: Sequence[PairRow]) -> list[Any]:
        """Return the training pairs in the objective's shape: pairs, single images or lists."""
        return groups_of(objective, pairs, self.config.pairs, self.config.seed if self.flip else None)


def jobs_of(name: str, config: Train, controls: bool) -> list[Job]:
    """Return the job of train.NAME and, with `controls`, two more: SFT on the winners, and training on flipped pairs.

    In flipped pairs, winner and loser are swapped at random. Controls make the same number of steps and ignore `watch`.
    """
    jobs = [Job(name, config)]
    if controls:
        jobs.append(Job(f"{name}-sft", dataclasses.replace(config, objective=Choice("sft"), watch=[], sample_every=0)))
        jobs.append(Job(f"{name}-flipped", dataclasses.replace(config, watch=[], sample_every=0), flip=True))
    return jobs


def load_objective(name: str, config: Train) -> Any:
    return plugin_options.make("objective", config.objective.use, config.objective.options, f"train.{name}.objective")


@dataclass(frozen=True)
class Setup:
    """Everything that a trainer works with, built once and never changed. folder: train/<name>.

    network: rows of the start-up table about compilation, attention and gradient checkpointing.
    """

    config: Train
    folder: Path
    processes: Processes
    family: Any
    objective: Any
    policy: Policy
    data: PairData
    validation: Validation | None = None
    reference_cache: ReferenceErrorCache | None = None
    sample_evaluation: SampleEvaluation | None = None
    network: Mapping[str, str] = field(default_factory=dict)


def build(loader: ModelLoader, job: Job, data: PairData, processes: Processes) -> Setup:
    """Load only the denoiser, make it trainable, hold out validation pairs, and return the job's Setup.

    data: all pairs, with their caches. Raises UsageError, TrainingError.
    """
    config, folder = job.config, loader.store.train(job.name)
    objective = load_objective(job.name, config)
    training, held_out = split(data.pairs, config.validation)
    shard = fsdp.shard_of(config) if processes.count > 1 else "none"
    # if sharded, load on the CPU, because the full network may not fit on a GPU
    family = loader.load_denoiser(processes.device if shard == "none" else "cpu", data)
    text_encoders = family.text_encoders() if loader.trains_text else {}
    policy = make_policy(family.net, config, objective.reference == "frozen", text_encoders)
    fsdp.shard_policy(policy, shard, processes, job.name)
    groups = data.of(job.groups(objective, training))
    validation = None
    if held_out:
        beta = getattr(objective.options, "beta", None)
        validation = Validation(family, groups, held_out, config.batch_size, 1.0 if beta is None else beta / 2)
    elif config.patience:
        raise too_few_pairs(job.name)
    cache = None
    if config.cache_reference and objective.reference == "frozen" and not objective.needs_residual:
        cache = ReferenceErrorCache(loader.reference_folder())
    evaluation = sample_evaluation(loader, config, data, training, held_out, folder)
    network = precision.prepare_network(policy, config)
    parts = (family, objective, policy, groups, validation, cache, evaluation, network)
    return Setup(config, folder, processes, *parts)


def too_few_pairs(name: str) -> UsageError:
    return UsageError(f"train.{name}.patience: there are too few pairs to hold any out. Set patience to 0.")


class ModelLoader:
    """Loads the recipe's model for training, and determines the cache folders."""

    def __init__(self, store: Store, recipe: Recipe, config: Train, folder: Path) -> None:
        self.store, self.recipe, self.config, self.folder = store, recipe, config, folder
        model = recipe.model
        adapters = [[weights_revision(path), weight] for path, weight in model.adapters.items()]
        base = base_revision(model)
        self.revision: dict[str, Any] = {**base, "adapters": adapters}
        if model.inputs:
            self.revision["inputs"] = dict(model.inputs)
        self.generators = [name for name in store.names("candidates") if _made_by(store, name, base)]
        self.call = call_of(recipe, config)
        self._masks: Masks | None = None
        self._wiring: Wiring | None = None
        self.trains_text = config.lora is not None and config.lora.text_encoder
        self.frozen_dtype = precision.WEIGHTS[config.precision] if config.lora is not None else "float32"
        self.caches = folder.parent / ".cache"  # shared by all entries of `train`
        files = {key: value for key, value in base.items() if key != "quantize"}
        code = registry.code_hash(config.family, "family")
        self._without_prompts = {key: value for key, value in files.items() if key != "long_prompts"}
        self._common = [files, config.family, code, self.frozen_dtype, Background.rules()]

    def latents_folder(self) -> Path:
        """Return the folder with the images' latents and loss weights."""
        return self.caches / cache_keys.latents_key([self._without_prompts, *self._common[1:]])

    def conditions_folder(self) -> Path:
        """Return the folder of the prompts' conditions. Its name depends on the recorded pipeline call, if there is one."""
        key = cache_keys.conditions_key(self._common, self.revision.get("inputs"), self.call, self.wiring())
        return self.caches / key / "conditions"

    def reference_folder(self) -> Path:
        """Return the folder with the frozen reference's errors."""
        names = self.latents_folder().name, self.conditions_folder().parent.name
        key = cache_keys.reference_key(*names, self.revision, self.config.precision, self.config.seed)
        return self.caches / key / "reference"

    def wiring_file(self) -> Path:
        key = cache_keys.wiring_key(self._common, self.revision.get("inputs"), self.call)
        return self.caches / key / "wiring.json"

    def masks(self, pairs: Sequence[PairRow]) -> Masks | None:
        """Return the masks of the pairs' images, which are looked up only once, or None without train.mask."""
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
        offload: str = "none",
    ) -> Any:
        """Load the recipe's model through its family plug-in. size: (height, width) at which the pipeline is captured.

        sequential_offload: text encoders, VAE and denoiser move to the device one at a time, when they are called.
        offload: mode (models/cpu_offload.py) of text encoders and VAE, while the denoiser stays on the device.
        """
        model = self.recipe.model
        settings: dict[str, Any] = {**model_arguments(model), "device": str(device), "dtype": self.frozen_dtype}
        settings |= {"sequential_offload": True} if sequential_offload else {}
        settings |= {"offload": offload, "keep_denoiser": True} if offload != "none" else {}
        call = {**self.call, "height": size[0], "width": size[1]}
        options: dict[str, Any] = {"inputs": Inputs(model.inputs, self.store)} if model.inputs else {}
        if self.trains_text:
            options["text_encoder"] = True
            if sequential_offload:  # cached conditions are those of the base's text encoders
                settings["adapters"] = {}
        kind = registry.load_class("family", self.config.family)
        family = kind(time_sampling=self.config.time_sampling, call=call, **options)
        if model.inputs and wiring is None:
            family.example = self._example()
        family.load(settings, parts=parts, **({"wiring": wiring} if wiring is not None else {}))
        return family

    def _example(self) -> Request:
        """Return a request that has all of model.inputs, with which to capture the pipeline. Raises UsageError."""
        keys = set(fields_of(self.recipe.model.inputs).values())
        example = next((request for request in self.store.requests() if keys <= request.extra.keys()), None)
        if example is None:
            raise UsageError(
                f"model.inputs: no request in {self.store.folder} has all of {', '.join(sorted(keys))}, so the "
                "pipeline cannot be captured. Run `prefkit generate` with requests that have them."
            )
        return example

    def load_denoiser(self, device: Any, data: PairData) -> Any:
        height, width = data.latents.notes[data.example()]
        parts = {"denoiser", "text"} if self.trains_text else {"denoiser"}
        return self.load(device, (height, width), parts, self.wiring())

    def wiring(self) -> Wiring | None:
        """Return the pipeline's wiring (how it calls its denoiser) if a capture has recorded it, else None."""
        path = self.wiring_file()
        if self._wiring is None and path.exists():
            try:
                self._wiring = Wiring(**read_json(path))
            except TypeError as error:
                raise DamagedError(path, f"{path} could not be read: {error}. {remedy_for(path)}") from error
        return self._wiring

    def share_wiring(self, group: Group) -> None:
        """Use rank 0's wiring in all processes, because the wiring file may not be visible on other machines yet."""
        wiring = self.wiring() if group.main else None
        text = group.broadcast(None if wiring is None else wiring.to_json())
        self._wiring = None if text is None else Wiring.from_json(text)

    def save_wiring(self, wiring: Wiring) -> None:
        write_json(self.wiring_file(), dataclasses.asdict(wiring))
        self._wiring = wiring

    def cache_folders(self) -> list[Path]:
        """Return the folders of latents, of conditions and, if train.mask is set, of loss weights."""
        weights = loss_weights.folder_of(self.config)
        latents = self.latents_folder()
        return [latents / "latents", self.conditions_folder(), *([latents / weights] if weights is not None else [])]

    def check_caches(self) -> None:
        """Rename damaged files in the caches that training will read, so that their entries are computed again."""
        sound_json(self.wiring_file())
        for folder in self.cache_folders():
            check_cache(folder)


def _made_by(store: Store, generator: str, base: dict[str, str]) -> bool:
    """True if this base model made the generator's candidates, and so their stored latents."""
    spec = store.candidates(generator).spec() or {}
    return spec.get("model") == base["base"] and (spec.get("config") or None) == base.get("config")


def call_of(recipe: Recipe, config: Train) -> dict[str, Any]:
    """Return the pipeline's call arguments that affect the denoiser, taken from the recipe's generators.

    If train.guidance is set, it replaces the generators' guidance. Raises UsageError if these arguments still differ.
    """
    calls: list[dict[str, Any]] = []
    for settings in recipe.generate.values():
        guidance = settings.guidance if config.guidance is None else config.guidance
        call = {name: value for name, value in settings.call.items() if not name.startswith("negative_")}
        call |= {} if guidance is None else {"guidance_scale": guidance}
        if settings.use == "diffusers" and call not in calls:
            calls.append(call)
    if len(calls) > 1:
        raise UsageError(
            f"train: the generators' call arguments differ ({' against '.join(map(str, calls[:2]))}), but training "
            "uses one set of arguments. Set train.guidance, and give all generators the same `call`."
        )
    if calls:
        return calls[0]
    return {} if config.guidance is None else {"guidance_scale": config.guidance}


def visited(jobs: Sequence[Job], pairs: Sequence[PairRow], processes: int) -> list[Any]:
    """Return the held-out pairs and all groups that these jobs visit, as each visit sees them (mirrored or not).

    The order of groups depends only on the position in training, so the visits are known in advance.
    """
    groups: list[Any] = []
    for job in jobs:
        config = job.config
        training, held_out = split(pairs, config.validation)
        all_groups = job.groups(load_objective(job.name, config), training)
        length = config.steps * config.batch_size * config.accumulation * processes
        views = Augmentation(config.flip, config.seed)
        if not views.flip:  # the first permutation contains every group
            length = min(length, len(all_groups))
        visits = sorted({order(len(all_groups), config.seed, position) for position in range(length)})
        shown = (views.at(all_groups[index], visit) for index, visit in visits)
        groups += {(group.id, *(image.key for image in group.images)): group for group in shown}.values()
        groups += held_out
    return groups


def open_caches(loader: ModelLoader, pairs: list[PairRow], source: PairSource) -> PairData:
    """Return the pairs with opened caches. If train.resolution is set, images are assigned to aspect buckets."""
    store, config = loader.store, loader.config
    if config.resolution is not None:
        pairs = aspect_buckets.assign_buckets(pairs, source, store, config.resolution)
    requests = {request.request_id: request for request in store.requests()}
    latents, conditions, *weights = map(Cache, loader.cache_folders())
    check_prompts(config, pairs)
    views, masks = Augmentation(config.flip, config.seed), loader.masks(pairs)
    return PairData(pairs, latents, conditions, requests, next(iter(weights), None), masks, views, config.seed)


def prepare(
    loader: ModelLoader, pairs: list[PairRow], source: PairSource, processes: Processes, jobs: Sequence[Job] = ()
) -> PairData:
    """Return all pairs, once all processes have cached the missing latents and conditions that `jobs` need.

    Without jobs, every pair is cached and, if train.flip is set, its mirrored version too.
    """
    processes.group.lead(loader.check_caches)
    store, data = loader.store, open_caches(loader, pairs, source)
    size = data.pairs[0].win.bucket or batches.first_size(source, store, pairs)
    family: Any = None
    loader.share_wiring(processes.group)
    if loader.wiring() is None:  # the name of the conditions folder depends on the wiring
        family = _capture(loader, size, processes)
        processes.group.lead(lambda: check_cache(loader.conditions_folder()))
        data.conditions = Cache(loader.conditions_folder())
    every = (view for pair in data.pairs for view in data.augmentation.every(pair))
    wanted = data.of(visited(jobs, data.pairs, processes.count) if jobs else list(every))
    prompted = prompt_cache.encoded_ahead(loader.config, data, wanted)
    for cache in (data.latents, data.conditions, data.weights):
        if cache is not None:
            _synchronize(processes, cache)
    # rank 0 decides for all, because processes that disagree would wait for each other for ever
    complete = processes.group.broadcast(wanted.encoded() and prompted.complete() and preflight.complete(loader, data))
    if not complete:
        family = family or loader.load(processes.device, size, None, loader.wiring(), sequential_offload=True)
        doing = "while encoding the pairs' candidates and prompts"
        remedy = "Free the device, or set model.quantize."
        with diagnose.explain_out_of_memory(loader.folder.name, processes.device, doing, remedy):
            _fill(loader, data, wanted, prompted, family, source, processes)
    del family
    gc.collect()
    batches.check_sizes(data, source.name)
    return prompt_cache.with_text_cache(loader, data, processes.device)


def _capture(loader: ModelLoader, size: tuple[int, int], processes: Processes) -> Any:
    """Capture the pipeline on rank 0, share the wiring with all processes, and return the loaded family."""
    family: Any = None
    if processes.main:
        family = loader.load(processes.device, size, None, None, sequential_offload=True)
        loader.save_wiring(family.wiring)
    loader.share_wiring(processes.group)
    return family or loader.load(processes.device, size, None, loader.wiring(), sequential_offload=True)


def _fill(
    loader: ModelLoader,
    data: PairData,
    wanted: PairData,
    prompted: PairData,
    family: Any,
    source: PairSource,
    processes: Processes,
) -> None:
    """Encode the images of `wanted`, then the prompts of `prompted`, so that each model is loaded only once."""
    store, share = loader.store, (processes.rank, processes.count)
    generators = loader.generators
    if getattr(family, "from_payload", False):
        generators = store.names("candidates")
    else:
        family.pipe.vae.float()  # latents are encoded only once, so full precision costs little
    images = [image for group in [*wanted.pairs, *preflight.foreign(loader, data)] for image in group.images]
    batches.fill_latents(data, images, family, source, store, generators, share)
    _synchronize(processes, data.latents)
    batches.check_sizes(data, source.name)
    measured = preflight.groups_to_measure(loader, data)[1:]
    for groups in measured:
        firsts = [group.images[0] for group in groups.pairs]
        batches.fill_latents(groups, firsts, family, source, store, generators, share)
        _synchronize(processes, data.latents)
    for groups in (prompted, *measured):
        batches.fill_conditions(groups, family, share)
        _synchronize(processes, data.conditions)
    if data.weights is not None:
        loss_weights.fill(wanted, family, store, share)
        _synchronize(processes, data.weights)


def _synchronize(processes: Processes, cache: Cache) -> None:
    """Make all processes use the same files of a cache: those that some process uses and all processes can read."""
    cache.expect({name for names in processes.group.gather(cache.parts()) for name in names})
    cache.keep(set.intersection(*map(set, processes.group.gather(cache.parts()))))
