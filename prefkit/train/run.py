"""`prefkit train`: pairs of a run, a folder or the Hub -> train/<name>/final, and what shows whether it was worth it."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.config import Recipe, Train
from prefkit.errors import FingerprintError, PluginError, UsageError
from prefkit.models.quantize import check_quantize
from prefkit.models.trained import TRAINED_ON, write_trained_on
from prefkit.store import Store
from prefkit.store.files import read_json, sound_json, write_json
from prefkit.store.table import check_fingerprint
from prefkit.train import (
    budget,
    computing,
    launch,
    optimizers,
    posterior,
    sharding,
    stopping,
    table,
    validation,
    views,
)
from prefkit.train.checkpoint import last_step
from prefkit.train.data import PairData
from prefkit.train.export import export, sound_result
from prefkit.train.jobs import Job, jobs_of, load_objective
from prefkit.train.kept import KeptErrors, check_kept
from prefkit.train.lists import groups_of
from prefkit.train.looks import looks_of
from prefkit.train.metrics import BOARDS
from prefkit.train.offline import AUTOCAST, SCHEDULES, Loop
from prefkit.train.pairs import PairRow, PairSource, read_pairs
from prefkit.train.preflight import preflight
from prefkit.train.prepare import Plan, fingerprint, prepare
from prefkit.train.processes import Processes
from prefkit.train.reference import make_policy
from prefkit.train.sharding import SHARDS
from prefkit.train.texts import CACHES

REMEDY = (
    "Train under another name, put the recipe back as it was, or remove this folder. At a constant rate, `steps` may "
    "grow without a mismatch."
)
SHAPES = ("pair", "list", "single")
REFERENCES = ("none", "frozen", "ema")
LEAST_RESOLUTION = 64
NOISES = ("shared", "own")
KNOWN = {
    "precision": AUTOCAST,
    "schedule": SCHEDULES,
    "report_to": BOARDS,
    "noise": NOISES,
    "text_cache": CACHES,
    "shard": SHARDS,
    "posterior": posterior.KINDS,
}
#: smallest value -> the settings that it holds for
LEAST = {
    0: ("warmup", "weight_decay", "validation", "curriculum", "patience", "stop_drop"),
    1: ("steps", "batch_size", "accumulation", "checkpoint_every", "validate_every", "watch_requests", "watch_every"),
}


def run_train(
    store: Store, recipe: Recipe, name: str, *, controls: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Train recipe.train[name] into store.train(name), going on from its last checkpoint.

    limit: at most so many optimizer steps now; the same call goes on later. Returns a summary: name, steps, pairs,
    validation_pairs, final (path or None), done, and with controls theirs by name.
    Raises UsageError, FingerprintError, TrainingError; KeyboardInterrupt after saving a checkpoint.
    """
    if name not in recipe.train:
        raise UsageError(f"train: {name!r} is not in the recipe; it has {', '.join(recipe.train) or 'none'}.")
    config = recipe.train[name]
    controls = controls or config.controls
    began = budget.clock()
    check_settings(name, config)
    check_quantize(recipe.model.quantize, config.device)
    if recipe.model.quantize is not None and config.lora is None:
        raise UsageError(f"train.{name}.lora is null, and full weights cannot be trained in {recipe.model.quantize}: set "
                         "model.quantize to null, or train an adapter (lora: {rank: 16}).")  # fmt: skip
    objective = load_objective(name, config)
    sharding.check(name, recipe, objective, launch.shard_of(config))
    if config.keep_reference:
        check_kept(name, objective, online=config.online is not None)
    if config.online is not None or objective.shape.startswith("step"):
        from prefkit.train.online.run import run_online

        if controls:
            output.warn(
                f"train {name}: --controls are for training on pairs that are there; online there are none yet."
            )
        return run_online(store, recipe, name, objective=objective, limit=limit)
    processes = Processes(config.device)
    source = PairSource.find(store, config.pairs)
    pairs = read_pairs(source)
    with store.lock(f"train/{name}") if processes.main else nullcontext():
        if config.max_hours is not None:
            found = _budget(store, recipe, jobs_of(name, config, controls), source, pairs, processes, began)
            config = budget.applied(config, found)
        summaries = _run_jobs(store, recipe, jobs_of(name, config, controls), source, pairs, processes, limit)
    return summaries[0] | ({"controls": {s["name"]: s for s in summaries[1:]}} if controls else {})


def check_settings(name: str, config: Train) -> None:
    """Raises UsageError, before anything is loaded."""
    launch.check(name, config)
    for key, known in KNOWN.items():
        if getattr(config, key) not in known:
            raise UsageError(f"train.{name}.{key}: {getattr(config, key)!r} is not known; choose {', '.join(known)}.")
    for least, keys in LEAST.items():
        for key in keys:
            if getattr(config, key) < least:
                raise UsageError(f"train.{name}.{key} is {getattr(config, key)}: it must be at least {least}.")
    for key in ("learning_rate", "max_grad_norm"):
        if getattr(config, key) <= 0:
            raise UsageError(f"train.{name}.{key} is {getattr(config, key):g}: it must be above 0.")
    computing.check(name, config)
    optimizers.check(name, config)
    if config.max_hours is not None and (config.max_hours <= 0 or config.online is not None):
        raise UsageError(f"train.{name}.max_hours is above 0, and offline: rounds of online training differ too much to be "
                         "timed by the first. Leave it out.")  # fmt: skip
    if config.resolution is not None:
        if config.resolution < LEAST_RESOLUTION:
            raise UsageError(f"train.{name}.resolution is {config.resolution}: it must be at least {LEAST_RESOLUTION}.")
        if config.online is not None or config.noise != "shared":
            raise UsageError(f"train.{name}.resolution is for imported images; a candidate's own noise and online training "
                             "go with images as they are. Set it to null.")  # fmt: skip
    if config.validation_share is not None and config.validation_share <= 0:
        raise UsageError(f"train.{name}.validation_share is {config.validation_share:g}: it must be above 0. `validation: 0` "
                         "measures nothing.")  # fmt: skip
    views.check(name, config)
    posterior.check(name, config)
    if config.patience and (config.online is not None or not config.validation):
        raise UsageError(f"train.{name}.patience looks at the pairs that `validation` keeps aside, offline. Set it to 0, or "
                         "validation above 0.")  # fmt: skip
    if config.watch and config.online is not None:
        raise UsageError(f"train.{name}.watch is for pairs that are there; online.watch is the one online.")
    if config.curriculum and (config.online is not None or load_objective(name, config).shape != "pair"):
        raise UsageError(f"train.{name}.curriculum orders pairs that are there by their gaps: a single has none, a list one "
                         "for every two of its images. Take an objective on pairs, offline, or set it to 0.")  # fmt: skip
    if config.online is not None and (config.mask is not None or config.noise != "shared"):
        raise UsageError(f"train.{name}: mask and noise are for pairs that are there; online.mask is the one online.")
    if config.online is not None and config.text_cache != "full":
        raise UsageError(f"train.{name}.text_cache: online training encodes the prompts that it samples. Leave it out.")
    if config.lora is not None and config.lora.rank < 1:
        raise UsageError(
            f"train.{name}.lora.rank is {config.lora.rank}: give 1 or more, or lora: null for full weights."
        )
    if config.lora is not None and not 0 <= config.lora.dropout < 1:
        raise UsageError(f"train.{name}.lora.dropout is {config.lora.dropout:g}: it must be from 0 to below 1.")
    if (getattr(load_objective(name, config).options, "beta", None) or 1) < 0:
        raise UsageError(f"train.{name}.objective.beta is negative: that would teach the losers.")


def _budget(
    store: Store,
    recipe: Recipe,
    jobs: list[Job],
    source: PairSource,
    pairs: list[PairRow],
    processes: Processes,
    began: float,
) -> dict[str, Any]:
    """The first job's, as it is written or, before its first checkpoint, decided now."""
    folder = store.train(jobs[0].name)
    found = budget.written(folder)
    if found is None or _untrained(folder):
        plan = Plan(store, recipe, jobs[0].config, folder)
        data = prepare(plan, pairs, source, processes, jobs)
        with computing.computing(jobs[0].config, processes.device):
            found = budget.decide(lambda: make_loop(plan, jobs[0], data, folder, processes), began)
        gc.collect()  # the timed network goes before the trained one comes
    return found


def _untrained(folder: Path) -> bool:
    return not (folder / "final").exists() and last_step(folder / "checkpoints") == 0


def _run_jobs(
    store: Store,
    recipe: Recipe,
    jobs: list[Job],
    source: PairSource,
    pairs: list[PairRow],
    processes: Processes,
    limit: int | None,
) -> list[dict[str, Any]]:
    plan = Plan(store, recipe, jobs[0].config, store.train(jobs[0].name))
    open_jobs = []
    for job in jobs:
        own = fingerprint(job.config, plan, pairs, processes) | ({"flipped": True} if job.flip else {})
        if processes.main:
            folder = store.train(job.name)
            untrained = _untrained(folder)
            check_fingerprint(folder / "spec.json", own, REMEDY, fresh=untrained)
            if untrained or sound_json(folder / TRAINED_ON) is None:
                captions = {pair.prompt for pair in validation.split(pairs, job.config.validation)[0]}
                write_trained_on(folder, captions, source.scorers(), recipe.model, plan.revision["base"])
        if not _finished(store.train(job.name), job.config):
            open_jobs.append(job)
    processes.wait()
    data = prepare(plan, pairs, source, processes, open_jobs) if open_jobs else None
    summaries = []
    for job in jobs:
        if job in open_jobs and data is not None:
            with computing.computing(job.config, processes.device):
                summaries.append(_train(plan, job, data, store.train(job.name), processes, limit))
        else:
            output.note(f"train {job.name}: already done.")
            summaries.append(read_json(store.train(job.name) / "result.json"))
    return summaries


def _finished(folder: Path, config: Train) -> bool:
    """Whether the result is there. Raises FingerprintError where it was trained for longer than asked."""
    result = sound_result(folder)
    if result is None:
        return False
    steps = result["steps"]
    if steps > config.steps:
        raise FingerprintError(f"{folder} was trained for {steps} steps, asked for {config.steps}. {REMEDY}")
    return steps == config.steps or bool(result.get("out_of_patience") or result.get("stopped"))


def _train(
    plan: Plan, job: Job, data: PairData, folder: Path, processes: Processes, limit: int | None
) -> dict[str, Any]:
    loop = make_loop(plan, job, data, folder, processes)
    held = loop.validation.pairs if loop.validation is not None else []
    if processes.main:
        elements = data.latents.get(data.example())["latents"].numel()
        table.show(
            job.config,
            job.name,
            loop.policy,
            loop.objective,
            len(loop.data.pairs),
            len(held),
            elements,
            processes.count,
            loop.computed,
        )
    if not job.flip:
        preflight(loop, plan, data)
    shown = loop.run(limit)
    done = loop.done
    summary = {
        "name": job.name,
        "steps": loop.step,
        "pairs": len(loop.data.pairs),
        "validation_pairs": len(held),
        "trainable": sum(parameter.numel() for parameter in loop.policy.parameters()),
        "last": shown,
        "done": done,
        "final": str(folder / "final") if done else None,
    }
    if loop.stopping is not None:
        summary |= {"best_step": loop.stopping.step, "out_of_patience": loop.stopping.over}
    if loop.looks is not None:
        summary |= {"best_look": loop.looks.best_step, "stopped": loop.looks.stopped}
    if done:
        _settle(loop, job.name)
        sharding.gather(loop.policy, processes.main)
    if done and processes.main:
        export(loop.policy, loop.family.wiring.denoiser, plan.recipe.model, folder / "final")
        write_json(folder / "result.json", summary)
    processes.wait()
    return summary


def _settle(loop: Loop, name: str) -> None:
    """The weights that are the result: the last ones, or the best of those that decided when to stop."""
    if loop.looks is not None and loop.looks.stopped:
        path, say = loop.looks.path, output.warn
        said = (f"stopped after step {loop.step}: {loop.looks.stopped}. The result is the model of step "
                f"{loop.looks.best_step}, whose watched scores were the best (gain {loop.looks.best:+.2f}).")  # fmt: skip
    elif loop.stopping is not None:
        path, say = loop.stopping.path, output.note
        said = (f"the result is the model of step {loop.stopping.step}, whose implicit accuracy on the held-out pairs was "
                f"the best ({loop.stopping.best:.3f}).")  # fmt: skip
    else:
        return
    loop.policy.load_state(sharding.spread(stopping.kept(path), loop.policy.state()))
    if loop.processes.main:
        say(f"train {name}: {said}")


def make_loop(plan: Plan, job: Job, data: PairData, folder: Path, processes: Processes) -> Loop:
    """The denoiser alone, made trainable, with the training pairs and those kept aside."""
    config = job.config
    objective = make_objective(job.name, config)
    training, held = validation.split(data.pairs, config.validation)
    shard = launch.shard_of(config) if processes.count > 1 else "none"
    family = plan.load_denoiser(processes.device if shard == "none" else "cpu", data)  # no GPU need hold it whole
    policy = make_policy(family.net, config, frozen=objective.reference == "frozen")
    sharding.shard_policy(policy, shard, processes, job.name)
    if objective.reference == "ema":
        policy.start_average(objective.decay)
    groups = groups_of(objective, training, config.pairs, job.flip)
    own = data.of(groups)
    measured = None
    if held:
        beta = getattr(objective.options, "beta", None)
        measured = validation.Validation(family, own, held, config.batch_size, 1.0 if beta is None else beta / 2)
    elif config.patience:
        raise UsageError(f"train.{job.name}.patience: there are too few pairs to keep any aside. Set it to 0.")
    kept = None
    if config.keep_reference and objective.reference == "frozen" and not objective.needs_residual:
        kept = KeptErrors(plan.cache / f"reference-{config.precision}")
    looks = looks_of(plan, config, data, training, held, folder)
    loop = Loop(config, family, objective, policy, own, measured, processes, folder, kept, looks)
    loop.computed = computing.arrange(loop)
    return loop


def make_objective(name: str, config: Train) -> Any:
    objective = load_objective(name, config)
    _check_objective(objective, config.objective.use)
    return objective


def _check_objective(objective: Any, name: str) -> None:
    if objective.shape not in SHAPES or objective.reference not in REFERENCES:
        raise PluginError(
            f"objective {name}: it asks for groups of shape {objective.shape!r} and a reference {objective.reference!r}; "
            f"training offers the shapes {', '.join(SHAPES)}, and the references {', '.join(REFERENCES)}."
        )
