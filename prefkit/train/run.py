"""`prefkit train`: trains on pairs from a run, a folder or the Hub, and writes train/<name>/final and metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from prefkit import output, registry
from prefkit.config import Recipe, Train, bounds, compatibility, content
from prefkit.distributed import check_device, device_of
from prefkit.distributed.collectives import Processes
from prefkit.errors import PluginError, UsageError
from prefkit.images import Background
from prefkit.models.load.pipeline import check_model
from prefkit.models.load.trained import trained_model
from prefkit.models.lora.adapters import check_targets
from prefkit.models.lora.text_encoders import check_text_encoders
from prefkit.registry import Passed
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.train import checkpoint, diagnose, fsdp, optimizers, precision, summary
from prefkit.train.data import cache_keys, draws
from prefkit.train.data.batches import PairData
from prefkit.train.data.pairs import PairRow, PairSource, read_pairs
from prefkit.train.data.prompt_cache import CACHES
from prefkit.train.export import export, write_result
from prefkit.train.monitor.boards import BOARDS, check_board
from prefkit.train.monitor.early_stop import load_weights
from prefkit.train.monitor.preflight import preflight
from prefkit.train.monitor.validation import split
from prefkit.train.setup import Job, ModelLoader, build, jobs_of, load_objective, prepare, too_few_pairs
from prefkit.train.trainer import Trainer
from prefkit.types import digest

REMEDY = (
    "Train under another name, or undo the change in the recipe. With a constant schedule, `steps` may be increased. If `scheme` differs, the run was begun with a version of prefkit that draws noise or captures "
    "pipelines differently."
)
SHAPES = ("pair", "list", "single")
REFERENCES = ("none", "frozen", "ema")
CHOICES = {
    "precision": precision.CHOICES,
    "schedule": optimizers.SCHEDULES,
    "report_to": BOARDS,
    "text_cache": CACHES,
    "shard": fsdp.SHARDS,
}


def check(recipe: Recipe, name: str) -> Any:
    """Check all settings of train.NAME and return its objective. Raises UsageError, PluginError."""
    if name not in recipe.train:
        raise UsageError(f"train: {name!r} is not in the recipe; `train:` has {', '.join(recipe.train) or 'none'}.")
    config = recipe.train[name]
    check_settings(name, config)
    check_device(config.device or "cpu")
    objective = load_objective(name, config)
    compatibility.check("train", name, recipe, replace(config, shard=fsdp.shard_of(config)), objective)
    if is_online(config, objective):
        from prefkit.train.online.run import check_recipe

        check_recipe(recipe, name, objective)
        return objective
    if objective.shape not in SHAPES or objective.reference not in REFERENCES:
        raise PluginError(
            f"objective {config.objective.use}: shape {objective.shape!r} or reference {objective.reference!r} is "
            f"unknown; shapes are {', '.join(SHAPES)}; references are {', '.join(REFERENCES)}."
        )
    registry.load_class("family", config.family)
    return objective


def check_settings(name: str, config: Train) -> None:
    """Raise UsageError for settings of train.NAME that are invalid in any recipe."""
    where = f"train.{name}"
    fsdp.check_launch(name, config)
    bounds.check(config, where)
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise UsageError(f"{where}.{key}: {getattr(config, key)!r} is unknown; choose {', '.join(choices)}.")
    check_board(config.report_to)
    precision.check(name, config)
    optimizers.check(name, config)


def check_start(recipe: Recipe, config: Train) -> None:
    """Raise UsageError if model.base is unset or unusable, without reading weights."""
    if not recipe.model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    if config.family == "diffusers":  # other families check model.base when they load it
        check_model(recipe.model, device_of(config.device))
        if config.lora is not None and config.lora.targets:
            check_targets(recipe.model, config.lora.targets)
        if config.lora is not None and config.lora.text_encoder:
            check_text_encoders(recipe.model)


def started(store: Store, recipe: Recipe, name: str) -> Recipe:
    """Return the recipe in which `model` is the result of the training train.NAME.start, if there is one.

    Raises UsageError if it cannot be trained further, NotYet if it is not finished.
    """
    config = recipe.train[name]
    if config.start is None:
        return recipe
    if config.start == name:
        raise UsageError(f"train.{name}.start names this training itself. Name another training, or remove the key.")
    model = trained_model(store.folder, recipe.model, config.start)
    if not model.adapters:
        raise UsageError(
            f"train.{name}.start: {config.start} trained full weights, but only adapters can be trained further. Set "
            f"train.{config.start}.lora, or set model.base of another recipe to {model.base}."
        )
    lora = None if config.lora is None else replace(config.lora, resume=True)
    return replace(recipe, model=model, train={**recipe.train, name: replace(config, lora=lora)})


def is_online(config: Train, objective: Any) -> bool:
    return config.online is not None or objective.shape.startswith("step")


def run_train(
    store: Store, recipe: Recipe, name: str, *, controls: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Train recipe.train[name] in the folder store.train(name), resuming from the last checkpoint.

    limit: maximum number of additional optimizer steps (online: rounds) in this call; a later call resumes. Returns a
    summary: name, steps, pairs, validation_pairs, final (path or None), done, and the controls' summaries by name.
    Raises UsageError, FingerprintError, TrainingError; KeyboardInterrupt after saving a checkpoint.
    """
    recipe = precision.settled(store, recipe, name)
    objective = check(recipe, name)
    recipe = started(store, recipe, name)
    config = recipe.train[name]
    controls = controls or config.controls
    if is_online(config, objective):
        from prefkit.train.online.run import run_online

        check_start(recipe, config)
        if controls:
            output.warn(
                f"train {name}: --controls has no effect on online training, because controls need existing pairs."
            )
        return run_online(store, recipe, name, objective=objective, limit=limit)
    processes = Processes(config.device)
    source = PairSource.find(store, config.pairs)
    pairs = read_pairs(source)
    check_start(recipe, config)
    jobs = jobs_of(name, config, controls)
    with processes.group.held(*(store.lock(f"train/{job.name}") for job in jobs)):
        summaries = _run_jobs(
            ModelLoader(store, recipe, config, store.train(name)), jobs, source, pairs, processes, limit
        )
    return summaries[0] | ({"controls": {s["name"]: s for s in summaries[1:]}} if controls else {})


def checked(store: Store, recipe: Recipe, name: str) -> None:
    """Run every check that needs no weights, for a dry run, without writing.

    Raises UsageError (NotYet for missing pairs), FingerprintError if the folder holds a run with different settings.
    """
    recipe = precision.settled(store, recipe, name)
    objective = check(recipe, name)
    recipe = started(store, recipe, name)
    config = recipe.train[name]
    if is_online(config, objective):
        from prefkit.train.online.run import checked as checked_online

        check_start(recipe, config)
        checked_online(store, recipe, name, objective)
        return
    processes = Processes(config.device)
    pairs = read_pairs(PairSource.find(store, config.pairs))
    check_start(recipe, config)
    loader = ModelLoader(store, recipe, config, store.train(name))
    for job in jobs_of(name, config, config.controls):
        _claim(job, loader, pairs, processes, write=False)
        training, held_out = split(pairs, job.config.validation)
        job.groups(load_objective(job.name, job.config), training)
        if config.patience and not held_out:
            raise too_few_pairs(job.name)


def _claim(job: Job, loader: ModelLoader, pairs: list[PairRow], processes: Processes, *, write: bool = True) -> bool:
    """Record the job's fingerprint; return True if the job is done. Raises FingerprintError for changed settings."""
    key = fingerprint(job.config, loader, pairs, processes) | ({"flipped": True} if job.flip else {})
    return checkpoint.claim(loader.store.train(job.name), key, "steps", job.config.steps, REMEDY, write=write)


def _run_jobs(
    loader: ModelLoader,
    jobs: list[Job],
    source: PairSource,
    pairs: list[PairRow],
    processes: Processes,
    limit: int | None,
) -> list[dict[str, Any]]:
    store, recipe = loader.store, loader.recipe

    def begin() -> list[bool]:
        done = [_claim(job, loader, pairs, processes) for job in jobs]
        for job in jobs:
            folder = store.train(job.name)
            captions = {pair.prompt for pair in split(pairs, job.config.validation)[0]}
            fresh = checkpoint.untrained(folder)
            checkpoint.record_data(
                folder, captions, source.scorers(), recipe.model, loader.revision["base"], fresh=fresh
            )
        return done

    open_jobs = [job for job, done in zip(jobs, processes.group.lead(begin), strict=True) if not done]
    data = prepare(loader, pairs, source, processes, open_jobs) if open_jobs else None
    summaries = []
    for job in jobs:
        if job in open_jobs and data is not None:
            with precision.numerical_settings(job.config, processes.device):
                summaries.append(_train(loader, job, data, processes, limit))
        else:
            output.note(f"train {job.name}: already done.")
            summaries.append(read_json(store.train(job.name) / "result.json"))
    return summaries


def make_trainer(loader: ModelLoader, job: Job, data: PairData, processes: Processes) -> Trainer:
    """Return the trainer of a job, ready for its first step. data: all pairs, with their caches."""
    return Trainer(build(loader, job, data, processes))


def _train(loader: ModelLoader, job: Job, data: PairData, processes: Processes, limit: int | None) -> dict[str, Any]:
    remedy = "Free the device, or set `precision: bf16`, model.quantize or a smaller lora.rank."
    with diagnose.explain_out_of_memory(job.name, processes.device, "while loading the denoiser", remedy):
        setup = build(loader, job, data, processes)
        trainer = Trainer(setup)
    held_out = len(setup.validation.pairs) if setup.validation is not None else 0
    if processes.main:
        elements = data.latents.get(data.example())["latents"].numel()
        summary.show(setup, job.name, held_out, elements)
    if not job.flip:
        with diagnose.explain_step_out_of_memory(trainer, lambda: "the preflight"):
            preflight(trainer, loader, data)
    trainer.run(limit)
    result: dict[str, Any] = {"steps": trainer.step, "pairs": len(setup.data.pairs), "validation_pairs": held_out}
    if trainer.early_stopping is not None:
        result |= {"best_step": trainer.early_stopping.step, "out_of_patience": trainer.early_stopping.over}
    if trainer.sample_evaluation is not None:
        result |= {"best_look": trainer.sample_evaluation.best_step, "stopped": trainer.sample_evaluation.stopped}
    if trainer.done:
        _load_best(trainer)
        fsdp.gather(trainer.policy, processes.main)
    denoiser = setup.family.wiring.denoiser
    return write_result(trainer, result, lambda path: export(trainer.policy, denoiser, loader.recipe.model, path))


def _load_best(trainer: Trainer) -> None:
    """Load the best weights that the sample evaluation (if it ended the training) or early stopping (if on) found.

    Otherwise, the result is the moving average of the weights if train.ema is set, else the last weights.
    """
    evaluation, stopping = trainer.sample_evaluation, trainer.early_stopping
    if evaluation is not None and evaluation.stopped:
        path, say = evaluation.path, output.warn
        text = (
            f"stopped after step {trainer.step}: {evaluation.stopped}. The result is the model of step "
            f"{evaluation.best_step}, whose watched scores were the best (gain {evaluation.best:+.2f})."
        )
    elif stopping is not None:
        path, say = stopping.path, output.note
        text = (
            f"the result is the model of step {stopping.step}, whose implicit accuracy on the held-out pairs was the "
            f"best ({stopping.best:.3f})."
        )
    else:
        if trainer.average is not None:
            trainer.policy.set_weights(trainer.average.weights)
        return
    trainer.policy.load_state(fsdp.shard_state(load_weights(path), trainer.policy.state()))
    if trainer.processes.main:
        say(f"train {trainer.folder.name}: {text}")


def fingerprint(config: Train, loader: ModelLoader, pairs: list[PairRow], processes: Processes) -> dict[str, Any]:
    """Return everything that the result depends on; with a constant learning rate, the number of steps is left out.

    The split of a global batch into micro-batches and processes is left out too, except with dropout: dropout masks
    are drawn per micro-batch and process.
    """
    train = precision.stored({k: v for k, v in content(config).items() if k not in ("batch_size", "accumulation")})
    if config.schedule == "constant":
        train.pop("steps", None)
    train.pop("guidance", None)  # guidance is part of `call`
    batch = [config.batch_size, config.accumulation, processes.count]
    rows = digest([(pair.id, pair.win.key, pair.lose.key, pair.p, pair.score_gap) for pair in pairs])
    key = {
        "train": train,
        "global_batch": math.prod(batch),
        "model": loader.revision,
        "call": loader.call,
        "pairs": rows,
    }
    key["scheme"] = {"draws": draws.SCHEME, **{k: cache_keys.SCHEME[k] for k in ("wiring", "latents", "conditions")}}
    if config.patience:  # these measurements choose the result's weights or stop training
        key["measured"] = {"every": config.validate_every}
    if config.watch and config.stop_drop:
        key["watched"] = {"every": config.watch_every}
    if config.lora is not None and config.lora.dropout:
        key["split"] = batch
    masks = loader.masks(pairs)
    if masks is not None:
        key["masks"] = digest([masks.lookup(pair, image) for pair in pairs for image in pair.images])
    if Background.suffix():
        key["background"] = Background.name()
    code = {
        kind: registry.code_hash(use, kind)
        for kind, use in (("objective", config.objective.use), ("family", config.family))
    }
    own_optimizer = ".py:" in config.optimizer or isinstance(config.optimizer, Passed)
    code["optimizer"] = registry.code_hash(config.optimizer) if own_optimizer else None
    if any(code.values()):
        key["code"] = {kind: value for kind, value in code.items() if value is not None}
    return key
