"""`prefkit train`: pairs of a run, a folder or the Hub -> train/<name>/final, and what shows whether it was worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.config import Recipe, Train
from prefkit.distributed import Processes
from prefkit.errors import FingerprintError, UsageError
from prefkit.models.load.trained import TRAINED_ON, write_trained_on
from prefkit.store import Store
from prefkit.store.files import read_json, sound_json, write_json
from prefkit.train import diagnose as failures
from prefkit.train import fsdp as sharding
from prefkit.train import launch
from prefkit.train import precision as computing
from prefkit.train import summary as table
from prefkit.train.claim import claim, untrained
from prefkit.train.data.batches import PairData
from prefkit.train.data.pairs import PairRow, PairSource, read_pairs
from prefkit.train.data.reference_cache import ReferenceErrorCache
from prefkit.train.export import export, sound_result
from prefkit.train.jobs import Job, jobs_of, load_objective
from prefkit.train.monitor import validation
from prefkit.train.monitor.early_stop import load_weights
from prefkit.train.monitor.preflight import preflight
from prefkit.train.monitor.sample_eval import sample_evaluation
from prefkit.train.policy import make_policy
from prefkit.train.settings import check, check_start, is_online, make_objective
from prefkit.train.setup import ModelLoader, fingerprint, prepare
from prefkit.train.trainer import Trainer

REMEDY = (
    "Train under another name, put the recipe back as it was, or remove this folder. At a constant rate, `steps` may "
    "grow without a mismatch. Another `scheme` means a version of prefkit that draws or captures otherwise."
)


def run_train(
    store: Store, recipe: Recipe, name: str, *, controls: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Train recipe.train[name] into store.train(name), going on from its last checkpoint.

    limit: at most so many optimizer steps now; the same call goes on later. Returns a summary: name, steps, pairs,
    validation_pairs, final (path or None), done, and with controls theirs by name.
    Raises UsageError, FingerprintError, TrainingError; KeyboardInterrupt after saving a checkpoint.
    """
    objective = check(recipe, name)
    config = recipe.train[name]
    controls = controls or config.controls
    if is_online(config, objective):
        from prefkit.train.online.run import run_online

        check_start(recipe, config)

        if controls:
            output.warn(
                f"train {name}: --controls are for training on pairs that are there; online there are none yet."
            )
        return run_online(store, recipe, name, objective=objective, limit=limit)
    processes = Processes(config.device)
    source = PairSource.find(store, config.pairs)
    pairs = read_pairs(source)
    check_start(recipe, config)
    jobs = jobs_of(name, config, controls)
    with processes.group.held(*(store.lock(f"train/{job.name}") for job in jobs)):
        summaries = _run_jobs(store, recipe, jobs, source, pairs, processes, limit)
    return summaries[0] | ({"controls": {s["name"]: s for s in summaries[1:]}} if controls else {})


def checked(store: Store, recipe: Recipe, name: str) -> None:
    """Every further check of a training that needs what earlier stages made, and no weights. A dry run: nothing is written.

    Raises UsageError (NotYet for pairs that are not made), FingerprintError for a folder that was trained otherwise.
    """
    objective, config = check(recipe, name), recipe.train[name]
    if is_online(config, objective):
        from prefkit.train.online.run import checked as checked_online

        checked_online(store, recipe, name, objective)
        return
    processes = Processes(config.device)
    pairs = read_pairs(PairSource.find(store, config.pairs))
    plan = ModelLoader(store, recipe, config, store.train(name))
    for job in jobs_of(name, config, config.controls):
        _claim(job, plan, pairs, processes, write=False)
        training, held = validation.split(pairs, job.config.validation)
        job.groups(objective if job.name == name else load_objective(job.name, job.config), training)
        if config.patience and not held:
            raise _too_few(job.name)


def _too_few(name: str) -> UsageError:
    return UsageError(f"train.{name}.patience: there are too few pairs to keep any aside. Set it to 0.")


def _claim(job: Job, plan: ModelLoader, pairs: list[PairRow], processes: Processes, *, write: bool = True) -> bool:
    """Whether this training is done. Raises FingerprintError where its folder holds another."""
    own = fingerprint(job.config, plan, pairs, processes) | ({"flipped": True} if job.flip else {})
    folder = plan.store.train(job.name)
    return claim(folder, own, lambda: _finished(folder, job.config, write), REMEDY, write=write)


def _run_jobs(
    store: Store,
    recipe: Recipe,
    jobs: list[Job],
    source: PairSource,
    pairs: list[PairRow],
    processes: Processes,
    limit: int | None,
) -> list[dict[str, Any]]:
    plan = ModelLoader(store, recipe, jobs[0].config, store.train(jobs[0].name))

    def begin() -> list[bool]:
        done = [_claim(job, plan, pairs, processes) for job in jobs]
        for job in jobs:
            folder = store.train(job.name)
            if untrained(folder) or sound_json(folder / TRAINED_ON) is None:
                captions = {pair.prompt for pair in validation.split(pairs, job.config.validation)[0]}
                write_trained_on(folder, captions, source.scorers(), recipe.model, plan.revision["base"])
        return done

    open_jobs = [job for job, done in zip(jobs, processes.group.lead(begin), strict=True) if not done]
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


def _finished(folder: Path, config: Train, write: bool) -> bool:
    """Whether the result is there. Raises FingerprintError where it was trained for longer than asked."""
    result = sound_result(folder, aside=write)
    if result is None:
        return False
    steps = result["steps"]
    if steps > config.steps:
        raise FingerprintError(f"{folder} was trained for {steps} steps, asked for {config.steps}. {REMEDY}")
    return steps == config.steps or bool(result.get("out_of_patience") or result.get("stopped"))


def _train(
    plan: ModelLoader, job: Job, data: PairData, folder: Path, processes: Processes, limit: int | None
) -> dict[str, Any]:
    fit = "Free the device, or set precision: bf16, model.quantize or a smaller lora.rank."
    with failures.explained(job.name, processes.device, "loading the denoiser", fit):
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
        with failures.in_step(loop, lambda: "the preflight"):
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


def _settle(loop: Trainer, name: str) -> None:
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
    loop.policy.load_state(sharding.spread(load_weights(path), loop.policy.state()))
    if loop.processes.main:
        say(f"train {name}: {said}")


def make_loop(plan: ModelLoader, job: Job, data: PairData, folder: Path, processes: Processes) -> Trainer:
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
    groups = job.groups(objective, training)
    own = data.of(groups)
    measured = None
    if held:
        beta = getattr(objective.options, "beta", None)
        measured = validation.Validation(family, own, held, config.batch_size, 1.0 if beta is None else beta / 2)
    elif config.patience:
        raise _too_few(job.name)
    kept = None
    if config.cache_reference and objective.reference == "frozen" and not objective.needs_residual:
        kept = ReferenceErrorCache(plan.reference_folder())
    looks = sample_evaluation(plan, config, data, training, held, folder)
    loop = Trainer(config, family, objective, policy, own, measured, processes, folder, kept, looks)
    loop.computed = computing.arrange(loop)
    return loop
