"""`prefkit train` for online entries: trains on scored samples, and writes train/<name>/final and the rounds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit import output, registry
from prefkit.config import Generate, Online, Recipe, content
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.generate.generators import generator_spec
from prefkit.generate.requests import keep_known, read_requests
from prefkit.generate.run import sync_requests
from prefkit.models.capture.record import replaced
from prefkit.models.cpu_offload import check_offload
from prefkit.models.memory import free_memory
from prefkit.models.sample import Sampled, Sampler
from prefkit.score.scorer_set import ScorerSet
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.train import checkpoint, precision, summary
from prefkit.train.data import cache_keys, draws
from prefkit.train.export import export, write_result
from prefkit.train.monitor.sample_monitor import SampleMonitor
from prefkit.train.online.checks import check_settings
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.noise import Noise
from prefkit.train.online.pair_learner import PairChooser, PairLearner, empty_data, pair_settings
from prefkit.train.online.rollout import Rollout, set_recordable_scheduler
from prefkit.train.online.rounds import RoundWriter, split_watched
from prefkit.train.online.step_learner import StepLearner
from prefkit.train.optimizers import PolicyOptimizer
from prefkit.train.policy import make_policy
from prefkit.train.setup import ModelLoader, Setup
from prefkit.train.trainer import Trainer
from prefkit.types import Request

REMEDY = (
    "Train under another name, or undo the change in the recipe. `rounds` may be increased. If "
    "`scheme` differs, the run was begun with a version of prefkit that draws noise or captures pipelines differently."
)
Requests = tuple[list[Request], list[Request]]  # (trained on, watched)


def run_online(store: Store, recipe: Recipe, name: str, *, objective: Any, limit: int | None = None) -> dict[str, Any]:
    """Train recipe.train[name] on rewards in the folder store.train(name), resuming at the start of a round.

    limit: maximum number of further rounds. Returns a summary: name, rounds, queries, last, done, final (path or None).
    Raises UsageError, FingerprintError, TrainingError; KeyboardInterrupt after the current round is saved.
    """
    config = recipe.train[name]
    online = config.online or Online()
    scorer_set, chooser = check_recipe(recipe, name, objective, store)
    processes = Processes(config.device)
    with processes.group.held(store.lock(f"train/{name}")):
        processes.group.lead(lambda: sync_requests(store, recipe) and None)
        requests = _split_requests(sync_requests(store, recipe), online)
        loader, key = _loader_and_fingerprint(store, recipe, name, requests[0], scorer_set)

        def begin() -> bool:
            folder = loader.folder
            done = checkpoint.claim(folder, key, "rounds", online.rounds, REMEDY)
            fresh = checkpoint.untrained(folder)
            if fresh:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            captions, base = {request.prompt for request in requests[0]}, loader.revision["base"]
            checkpoint.record_data(folder, captions, list(online.rewards), recipe.model, base, fresh=fresh)
            return done

        if processes.group.lead(begin):
            output.note(f"train {name}: already done.")
            result: dict[str, Any] = read_json(loader.folder / "result.json")
            return result
        trainer = make_trainer(loader, name, objective, scorer_set, chooser, requests, processes)
        with precision.numerical_settings(config, processes.device):
            trainer.run(limit)
            queries = trainer.step * online.requests * online.samples
            values: dict[str, Any] = {"rounds": trainer.step, "queries": queries}
            values |= {"updates": trainer.optimizer.count, "stopped": trainer.stopped}
            with trainer.exported_weights():
                return write_result(trainer, values, trainer.export)


def checked(store: Store, recipe: Recipe, name: str, objective: Any) -> None:
    """Run every check that needs no weights, for a dry run, without writing. Raises UsageError, FingerprintError."""
    online = recipe.train[name].online or Online()
    scorer_set, _ = check_recipe(recipe, name, objective)
    known = store.requests()
    if recipe.requests.source:
        known = keep_known(known, read_requests(recipe.requests, recipe.model.inputs), store.folder)
    loader, key = _loader_and_fingerprint(store, recipe, name, _split_requests(known, online)[0], scorer_set)
    checkpoint.claim(loader.folder, key, "rounds", online.rounds, REMEDY, write=False)


def check_recipe(
    recipe: Recipe, name: str, objective: Any, store: Store | None = None
) -> tuple[ScorerSet, PairChooser | None]:
    """Check the recipe before requests are read or weights are loaded. Raises UsageError.

    Returns the scorers, not yet loaded, and the chooser of pairs (None if the objective does not use pairs).
    """
    config, where = recipe.train[name], f"train.{name}.online"
    online = config.online or Online()
    check_settings(name, online)
    check_offload("generate.NAME.offload", _generator(recipe, online).offload, config.device)
    rewarded = [alias for alias, weight in online.rewards.items() if weight]
    on_pairs = objective.shape != "step" and not getattr(objective, "needs_advantage", False)
    if on_pairs:
        rewarded += pair_settings(recipe, online, where).weights
    aliases = dict.fromkeys([*rewarded, *online.watch, *([online.mask] if online.mask else [])])
    scorer_set = ScorerSet(recipe, list(aliases), where, store)
    scorer_set.refuse_judges(list(dict.fromkeys(rewarded)), where)
    chooser = PairChooser.of(recipe, online, scorer_set.signs(), where) if on_pairs else None
    return scorer_set, chooser


def _split_requests(requests: Sequence[Request], online: Online) -> Requests:
    """Split the requests in split `train` into (trained on, watched). Raises UsageError if there are too few."""
    usable = [request for request in requests if request.split == "train"]
    trained, watched = split_watched(usable, online.watch_requests if online.watch_every else 0)
    if len(trained) < online.requests:
        raise UsageError(
            f"a round needs {online.requests} requests, but the split `train` has {len(trained)}, not counting the "
            f"{len(watched)} watched ones. Lower online.requests, or add prompts."
        )
    return trained, watched


def _generator(recipe: Recipe, online: Online) -> Generate:
    """Return the generator settings for sampling; config.compatibility has checked that they exist."""
    name = online.generator or next(n for n, g in recipe.generate.items() if g.use == "diffusers")
    return recipe.generate[name]


def _loader_and_fingerprint(
    store: Store, recipe: Recipe, name: str, requests: list[Request], scorer_set: ScorerSet
) -> tuple[ModelLoader, dict[str, Any]]:
    """Return the model loader and the fingerprint, without the number of rounds if the learning rate is constant."""
    config = recipe.train[name]
    online = config.online or Online()
    settings = _generator(recipe, online)
    loader = ModelLoader(store, replace(recipe, generate={"policy": settings}), config, store.train(name))
    key = {
        "train": precision.stored(
            {k: v for k, v in content(config).items() if k not in ("pairs", "steps", "validation", "online")}
        ),
        "online": {k: v for k, v in content(online).items() if k != "rounds" or config.schedule != "constant"},
        "generator": content(settings),
        "model": loader.revision,
        "scorers": scorer_set.specs(),
        "pair": content(pair_settings(recipe, online, "online")),
        "requests": [request.request_id for request in requests],
        "scheme": {"draws": draws.SCHEME, "wiring": cache_keys.SCHEME["wiring"]},
    }
    code = registry.code_hash(config.objective.use, "objective")
    return loader, key | ({"code": code} if code is not None else {})


def make_trainer(
    loader: ModelLoader,
    name: str,
    objective: Any,
    scorer_set: ScorerSet,
    chooser: PairChooser | None,
    requests: Requests,
    processes: Processes,
) -> OnlineTrainer:
    """Return the trainer, with pipeline and scorers loaded and the denoiser made trainable."""
    config, recipe, folder = loader.config, loader.recipe, loader.folder
    online, settings = config.online or Online(), recipe.generate["policy"]
    sampled = replace(settings, steps=online.steps or settings.steps)
    size: Any = (settings.height, settings.width)
    family = _load_family(loader, processes, size, settings.offload)
    policy = make_policy(family.net, config, frozen=False)
    policy.refresh_reference()
    precision.check_dispatched(family.net, config.attention)
    user_sampler, user_scheduler = Sampler(family.pipe, **_sampler_arguments(settings)), family.pipe.scheduler
    on_steps = objective.shape in ("step", "step_pair")
    if on_steps:
        set_recordable_scheduler(family.pipe, family.wiring.prediction)
    noise = Noise.of(online.noise, online.noise_level, family.pipe.scheduler, family.wiring.prediction)
    dtype = precision.AUTOCAST[config.precision]
    rollout = Rollout(family.pipe, family.wiring, noise, _sampler_arguments(sampled), dtype)
    config_of_updates = replace(config, steps=online.rounds * online.updates * online.epochs)
    learner: Any
    if on_steps:
        optimizer = PolicyOptimizer(config_of_updates, policy, processes)
        learner = StepLearner(config, online, objective, rollout, optimizer, chooser)
    else:
        setup = Setup(config_of_updates, folder, processes, family, objective, policy, empty_data())
        learner = PairLearner(Trainer(setup), online, pair_settings(recipe, online, f"train.{name}.online"), recipe)
    scorer_set.load()
    monitor = None
    if requests[1]:

        def sample(watched: Sequence[Request], seeds: Sequence[int]) -> list[Sampled]:
            with replaced(rollout.pipe, "scheduler", user_scheduler), rollout.training_precision():
                return user_sampler.sample([request.prompt for request in watched], seeds)

        rewarded = [alias for alias, weight in online.rewards.items() if weight]
        batch = online.sample_batch or config.batch_size
        watch = folder / "watch"
        monitor = SampleMonitor(requests[1], sample, scorer_set, online.watch, rewarded, config.seed, batch, watch)
    writer = RoundWriter(folder, settings, scorer_set.specs(), online.keep_rounds)
    spec = generator_spec(recipe.model, sampled) | {"train": name}

    def write(path: Path) -> None:
        export(policy, family.wiring.denoiser, recipe.model, path)

    if processes.main:
        counts = len(requests[0]), len(requests[1])
        noise_row = f"{noise.kind}, level {noise.level:g}"
        rows = summary.online_model_rows(config, objective, policy, sampled.steps, noise_row, counts)
        summary.show_online(name, config, online, objective, rows, processes.count)
    return OnlineTrainer(config, rollout, learner, scorer_set, writer, monitor, requests[0], spec, folder, write)


def _load_family(loader: ModelLoader, processes: Processes, size: Any, offload: str) -> Any:
    """Load and capture the pipeline. With `offload`, the capture loads each part in turn, before any hook is set."""
    if offload == "none":
        return loader.load(processes.device, size, None, None)
    wiring = loader.load(processes.device, size, None, None, sequential_offload=True).wiring
    free_memory()
    return loader.load(processes.device, size, None, wiring, offload=offload)


def _sampler_arguments(settings: Generate) -> dict[str, Any]:
    names = ("steps", "guidance", "height", "width", "negative_prompt")
    return {name: getattr(settings, name) for name in names} | {"extra_call": settings.call}
