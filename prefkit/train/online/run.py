"""`prefkit train` of an entry with `online`: requests and scorers in, train/<name>/final and its rounds out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit import output, registry
from prefkit.config import Generate, Online, Recipe, Train, content
from prefkit.distributed import Processes
from prefkit.errors import FingerprintError, UsageError
from prefkit.generate.generators import generator_spec
from prefkit.generate.requests import keep_known, read_requests
from prefkit.generate.run import sync_requests
from prefkit.models.capture.record import replaced
from prefkit.models.load.trained import TRAINED_ON, write_trained_on
from prefkit.models.sample import Sampled, Sampler
from prefkit.score.scorer_set import ScorerSet
from prefkit.store import Store
from prefkit.store.files import read_json, sound_json, write_json
from prefkit.train import precision as computing
from prefkit.train.claim import claim, untrained
from prefkit.train.data import cache_keys, draws
from prefkit.train.export import export, sound_result
from prefkit.train.monitor.sample_monitor import SEEDS, SampleMonitor
from prefkit.train.online import guards
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.noise import Noise
from prefkit.train.online.pair_learner import PairLearner
from prefkit.train.online.pairing import Chooser, pair_settings
from prefkit.train.online.rollout import Rollout, recordable
from prefkit.train.online.rounds import Kept, set_aside
from prefkit.train.online.step_learner import StepLearner
from prefkit.train.online.updates import Updates
from prefkit.train.online.weights import Refreshed
from prefkit.train.policy import make_policy
from prefkit.train.setup import ModelLoader
from prefkit.train.trainer import AUTOCAST
from prefkit.types import Request

REMEDY = (
    "Train under another name, put the recipe back as it was, or remove this folder. `rounds` may grow. Another `scheme` "
    "means a version of prefkit that draws or captures otherwise."
)
ON_STEPS = ("step", "step_pair")


def run_online(store: Store, recipe: Recipe, name: str, *, objective: Any, limit: int | None = None) -> dict[str, Any]:
    """Train recipe.train[name] by rewards into store.train(name), going on at the start of the round it was in.

    limit: at most so many rounds now. Returns a summary: name, rounds, queries, last, done, final (path or None).
    Raises UsageError, FingerprintError, TrainingError; KeyboardInterrupt after the round in hand.
    """
    config = recipe.train[name]
    online = config.online or Online()
    jury, chooser = check_recipe(recipe, name, objective)
    processes = Processes(config.device)
    folder = store.train(name)
    with processes.group.held(store.lock(f"train/{name}")):
        requests, watched = _requests(store, recipe, online, processes)
        settings = _generator(recipe, online, f"train.{name}.online")
        plan = ModelLoader(store, replace(recipe, generate={"policy": settings}), config, folder)
        own = _fingerprint(config, online, settings, plan, requests, jury)

        if processes.group.lead(lambda: _claim(folder, own, requests, online, recipe, plan)):
            output.note(f"train {name}: already done.")
            return read_json(folder / "result.json")
        loop = make_loop(plan, name, objective, settings, jury, chooser, requests, watched, processes)
        with computing.computing(config, processes.device):
            return _train(loop, plan, name, folder, limit)


def checked(store: Store, recipe: Recipe, name: str, objective: Any) -> None:
    """Every check that needs no weights, for a dry run: nothing is written. Raises UsageError, FingerprintError."""
    config = recipe.train[name]
    online = config.online or Online()
    jury, _ = check_recipe(recipe, name, objective)
    folder = store.train(name)
    known = store.requests()
    if recipe.requests.source:
        known = keep_known(known, read_requests(recipe.requests, recipe.model.inputs), store.folder)
    requests, _ = _shared_out(known, online)
    settings = _generator(recipe, online, f"train.{name}.online")
    plan = ModelLoader(store, replace(recipe, generate={"policy": settings}), config, folder)
    own = _fingerprint(config, online, settings, plan, requests, jury)
    claim(folder, own, lambda: _finished(folder, online, write=False), REMEDY, write=False)


def check_recipe(recipe: Recipe, name: str, objective: Any) -> tuple[ScorerSet, Chooser | None]:
    """Everything that can be wrong with the recipe before a request is read or weights are loaded. Raises UsageError.

    Returns the scorers, not loaded, and how pairs are chosen (None for an objective without pairs).
    """
    config, where = recipe.train[name], f"train.{name}.online"
    online = config.online or Online()
    guards.check(name, config, online, objective)
    _refuse_inputs(recipe, f"train.{name}")
    _generator(recipe, online, where)
    jury = _jury(recipe, online, where, objective)
    return jury, Chooser.of(recipe, online, jury.signs(), where) if objective.shape != "step" else None


def _refuse_inputs(recipe: Recipe, where: str) -> None:
    if recipe.model.inputs:
        raise UsageError(f"{where}: online training does not know model.inputs ({', '.join(recipe.model.inputs)}) yet. Make "
                         "pairs with `prefkit generate` and train on those.")  # fmt: skip


def _requests(
    store: Store, recipe: Recipe, online: Online, processes: Processes
) -> tuple[list[Request], list[Request]]:
    """(trained on, watched): of the split `train`, whatever is held out staying held out."""
    processes.group.lead(lambda: sync_requests(store, recipe) and None)
    return _shared_out(sync_requests(store, recipe), online)


def _shared_out(found: Sequence[Request], online: Online) -> tuple[list[Request], list[Request]]:
    """(trained on, watched). Raises UsageError for fewer than a round asks for."""
    chosen = [r for r in found if r.split == "train"]
    requests, watched = set_aside(chosen, online.watch_requests if online.watch_every else 0)
    if len(requests) < online.requests:
        raise UsageError(
            f"a round asks for {online.requests} requests, and the split train has {len(requests)} beside the "
            f"{len(watched)} that are watched. Lower online.requests, or add prompts."
        )
    return requests, watched


def _generator(recipe: Recipe, online: Online, where: str) -> Generate:
    """The settings of generation. Raises UsageError."""
    name = online.generator or next((n for n, g in recipe.generate.items() if g.use == "diffusers"), None)
    if name is None or name not in recipe.generate:
        what = (
            "no entry of the recipe's `generate:` uses diffusers" if name is None else f"{name!r} is not in the recipe"
        )
        raise UsageError(f"{where}.generator: {what}; add an entry under `generate:` that says with how many steps and which "
                         "guidance to sample, as in generate: {own: {steps: 20, guidance: 7.5}}.")  # fmt: skip
    found = recipe.generate[name]
    if found.use != "diffusers" or found.model is not None or found.compile:
        raise UsageError(f"{where}.generator: {name} must be a diffusers generator of `model` itself, not compiled: what "
                         "samples is what is trained.")  # fmt: skip
    return found


def _jury(recipe: Recipe, online: Online, where: str, objective: Any) -> ScorerSet:
    """Scorers of the reward, of the pairs where the objective learns from pairs, of what is watched and of the mask."""
    learned = [alias for alias, weight in online.rewards.items() if weight]
    if objective.shape != "step":
        learned += pair_settings(recipe, online, where).weights
    aliases = dict.fromkeys([*learned, *online.watch, *([online.mask] if online.mask else [])])
    jury = ScorerSet(recipe, list(aliases), where)
    jury.refuse_judges(list(dict.fromkeys(learned)), where)
    return jury


def _fingerprint(
    config: Train, online: Online, settings: Generate, plan: ModelLoader, requests: list[Request], jury: ScorerSet
) -> dict[str, Any]:
    """What the result means; how long it runs is not part of it."""
    train = {k: v for k, v in content(config).items() if k not in ("pairs", "steps", "validation", "online")}
    rounds = ("rounds",) if config.schedule == "constant" else ()
    said = {k: v for k, v in content(online).items() if k not in rounds}
    code = registry.code_hash(config.objective.use, "objective")
    return {
        "train": train,
        "online": said,
        "generator": content(settings),
        "model": plan.revision,
        "scorers": jury.specs(),
        "pair": content(pair_settings(plan.recipe, online, "online")),
        "requests": [r.request_id for r in requests],
        "scheme": {"draws": draws.SCHEME, "wiring": cache_keys.SCHEME["wiring"]},
        **({"code": code} if code is not None else {}),
    }


def _claim(
    folder: Path, own: dict[str, Any], requests: list[Request], online: Online, recipe: Recipe, plan: ModelLoader
) -> bool:
    """Whether the training is done."""
    done = claim(folder, own, lambda: _finished(folder, online), REMEDY)
    fresh = untrained(folder)
    if fresh:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if fresh or sound_json(folder / TRAINED_ON) is None:
        captions = {r.prompt for r in requests}
        write_trained_on(folder, captions, list(online.rewards), recipe.model, plan.revision["base"])
    return done


def _finished(folder: Path, online: Online, write: bool = True) -> bool:
    found = sound_result(folder, aside=write)
    if found is None:
        return False
    if found["rounds"] > online.rounds:
        raise FingerprintError(
            f"{folder} was trained for {found['rounds']} rounds, asked for {online.rounds}. {REMEDY}"
        )
    return found["rounds"] == online.rounds or bool(found["stopped"])


def make_loop(
    plan: ModelLoader,
    name: str,
    objective: Any,
    settings: Generate,
    jury: ScorerSet,
    chooser: Chooser | None,
    requests: list[Request],
    watched: list[Request],
    processes: Processes,
) -> OnlineTrainer:
    """The pipeline whole, its denoiser made trainable, and what samples, scores and learns with it."""
    config, online, folder = plan.config, plan.config.online or Online(), plan.store.train(name)
    sampled = replace(settings, steps=online.steps or settings.steps)
    size: Any = (settings.height, settings.width)
    family = plan.load(processes.device, size, None, None)
    policy = Refreshed.of(make_policy(family.net, config, frozen=False))
    computing.check_dispatched(family.net, config.attention)
    users = Sampler(family.pipe, **_call(settings)), family.pipe.scheduler
    records = objective.shape in ON_STEPS
    if records:
        recordable(family.pipe, family.wiring.prediction)
    noise = Noise.of(online.noise, online.noise_level, family.pipe.scheduler, family.wiring.prediction)
    rollout = Rollout(family.pipe, family.wiring, noise, _call(sampled), AUTOCAST[config.precision])
    updates = Updates(config, policy, processes, online.rounds * online.updates * online.epochs, name)
    pair = pair_settings(plan.recipe, online, f"train.{name}.online")
    learner: Any
    if records:
        learner = StepLearner(config, online, objective, policy, rollout, updates, chooser)
    else:
        learner = PairLearner(config, online, objective, policy, family, updates, pair, plan.recipe, folder)
    jury.load()
    loop = OnlineTrainer(
        config,
        online,
        policy,
        rollout,
        learner,
        jury,
        Kept(folder, settings, jury.specs(), online.keep_rounds),
        updates,
        _watch(rollout, users, jury, watched, config, online, folder) if watched else None,
        requests,
        generator_spec(plan.recipe.model, sampled) | {"train": name},
        folder,
        lambda path: export(policy, family.wiring.denoiser, plan.recipe.model, path),
    )
    if processes.main:
        guards.table(name, config, online, objective, _facts(loop, sampled, objective), processes.count)
    return loop


def _call(settings: Generate) -> dict[str, Any]:
    """Arguments of models.sample.Sampler."""
    names = ("steps", "guidance", "height", "width", "negative_prompt")
    return {name: getattr(settings, name) for name in names} | {"extra_call": settings.call}


def _watch(
    rollout: Rollout,
    users: tuple[Sampler, Any],
    jury: ScorerSet,
    watched: list[Request],
    config: Train,
    online: Online,
    folder: Path,
) -> SampleMonitor:
    """users: the sampler and the scheduler of the generator as it stands in the recipe."""

    def sample(requests: Sequence[Request], seeds: Sequence[int]) -> list[Sampled]:
        with replaced(rollout.pipe, "scheduler", users[1]), rollout.computing():
            return users[0].sample([r.prompt for r in requests], seeds)

    rewards = [alias for alias, weight in online.rewards.items() if weight]
    batch = online.sample_batch or config.batch_size
    return SampleMonitor(watched, sample, jury, online.watch, rewards, config.seed, batch, folder / "watch")


def _facts(loop: OnlineTrainer, settings: Generate, objective: Any) -> dict[str, Any]:
    """What the start-up table says of the model as loaded."""
    online, rollout = loop.online, loop.rollout
    window = min(online.window or settings.steps, settings.steps)
    trained = max(1, int(window * online.timestep_fraction))
    count = sum(parameter.numel() for parameter in loop.policy.parameters())
    facts: dict[str, Any] = {"sample_batch": online.sample_batch or loop.config.batch_size}
    if objective.shape in ON_STEPS:
        facts["steps"] = f"{settings.steps}, {window} of them stochastic, {trained} learned from (at most)"
        facts["noise"] = f"{rollout.noise.kind}, level {rollout.noise.level:g}"
    else:
        facts["steps"] = f"{settings.steps}, with the generator's own sampler"
    facts["trainable parameters"] = f"{count:,} ({'LoRA' if loop.policy.lora is not None else 'full weights'})"
    renewed = f"renewed every {online.refresh} rounds" if online.refresh else "the start"
    facts["reference"] = "none" if objective.reference == "none" else renewed
    facts["requests"] = (
        f"{len(loop.requests)} trained on, {len(loop.watch.specs) // SEEDS if loop.watch else 0} watched"
    )
    return facts


def _train(loop: OnlineTrainer, plan: ModelLoader, name: str, folder: Path, limit: int | None) -> dict[str, Any]:
    shown = loop.run(limit)
    done = bool(loop.stopped) or loop.number >= loop.online.rounds
    summary = {
        "name": name,
        "rounds": loop.number,
        "queries": loop.number * loop.online.requests * loop.online.samples,
        "updates": loop.updates.count,
        "trainable": sum(parameter.numel() for parameter in loop.policy.parameters()),
        "last": shown,
        "stopped": loop.stopped,
        "done": done,
        "final": str(folder / "final") if done else None,
    }
    if done and loop.processes.main:
        with loop.tuned():
            loop.export(folder / "final")
        write_json(folder / "result.json", summary)
    loop.processes.wait()
    return summary
