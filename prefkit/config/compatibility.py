"""Options that need, exclude or ignore each other: one table, which every stage checks before it loads anything.

To refuse a combination, add a row to the stage's table. Limits of single numbers are in `bounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefkit.config import Eval, Online, Recipe, Train
from prefkit.errors import UsageError
from prefkit.output import warn

STEADY = 12  # training with smaller groups collapsed in Flow-GRPO's ablation (arXiv 2505.05470)
MOST_SAMPLES = 1_000_000  # per round; its images stay in memory until training has used them
SINGLE_FILES = (".safetensors", ".ckpt")
SAMPLERS = ("diffusers", "mesh")  # generators that sample `model`, or a model trained from it
MESH_MODEL = ("revision", "config", "quantize", "vae_tiling", "inputs", "trust_remote_code")  # not read for mesh models


@dataclass(frozen=True)
class Case:
    """One entry of a stage, and the recipe that it belongs to. objective: that of the entry, if the stage is train."""

    recipe: Recipe
    entry: Any
    objective: Any = None

    @cached_property
    def model(self) -> Any:
        return self.recipe.model

    @cached_property
    def online(self) -> Any:
        """Settings of online training (defaults if an objective on steps has none); None if training is offline."""
        online = getattr(self.entry, "online", None)
        return online or (Online() if self.objective and self.objective.shape.startswith("step") else None)

    @cached_property
    def samples(self) -> int:
        """Samples per round."""
        return int(self.online.requests * self.online.samples)

    @cached_property
    def updates(self) -> int:
        """Optimizer steps of the whole training."""
        online = self.online
        return int(online.rounds * online.updates * online.epochs if online else self.entry.steps)

    @cached_property
    def on_steps(self) -> bool:
        """True if the objective learns from the steps of sampled chains."""
        return self.objective.shape in ("step", "step_pair")

    @cached_property
    def compares(self) -> bool:
        """True if samples are compared within their group."""
        relative = self.online.statistics in ("group", "grouped") or getattr(self.objective, "group_relative", False)
        return self.objective.shape != "step" or relative

    @cached_property
    def generator(self) -> Any:
        """The entry of `generate` to sample with; None if the recipe has none."""
        evaluated = isinstance(self.entry, Eval)
        name = (self.entry if evaluated else self.online).generator
        name = name or first_sampler(self.recipe, SAMPLERS if evaluated else ("diffusers",))
        return self.recipe.generate.get(name) if name else None

    @cached_property
    def for_images(self) -> str:
        """The first setting that changes the images of a training whose family has none; "" if there is none."""
        keys = ("resolution", "mask", "flip", "guidance", "time_sampling") if self.entry.family == "mesh" else ()
        return next((key for key in keys if getattr(self.entry, key)), "")

    @cached_property
    def unread(self) -> str:
        """The first setting that the generator or family mesh does not read; "" if all of them have an effect."""
        if "mesh" not in (getattr(self.entry, "use", ""), getattr(self.entry, "family", "")):
            return ""
        keys = ["guidance", "width", "negative_prompt", "scheduler", "compile"] if hasattr(self.entry, "use") else []
        keys += ["height"] if keys and self.entry.call.get("render") is False else []
        model = next((f".model.{key}" for key in MESH_MODEL if getattr(self.model, key)), "")
        return next((key for key in keys if getattr(self.entry, key) not in (None, False)), model)

    @cached_property
    def samples_model(self) -> bool:
        """True if a generator of the recipe samples `model` itself."""
        return any(g.use == "diffusers" and g.model is None for g in self.recipe.generate.values())


#: message -> condition under which it applies. A message starts with the key to change: a key of the entry, or
#: ".section.key". It is formatted with the fields of the case, and names the conflict and the fix
Rows = Mapping[str, Callable[[Case], Any]]

MODEL: Rows = {
    ".model.quantize is {model.quantize}, but {model.base} is a single file. Set model.quantize to null, or model.base "
    "to a pipeline folder or a Hub id.": lambda c: c.model.quantize and c.model.base.endswith(SINGLE_FILES),
}
MESH: Rows = {
    "{c.unread} is set, but has no effect on a mesh model with these settings. Remove the key.": lambda c: c.unread,
    "objective {entry.objective.use} trains online, which samples images, but the family is mesh. Make candidates with "
    "`prefkit generate`, and train on pairs of them with an offline objective and without `online`.": lambda c: (
        c.online and c.entry.family == "mesh"
    ),
}
GENERATE: Rows = {
    "model is {entry.model}, a trained model, which {entry.use} would not load. Set use to diffusers or mesh, or remove "
    "`model`.": lambda c: c.entry.model is not None and ":" in c.entry.use,
}
COMPARE: Rows = {
    "by is for pairs: extremes. Set pairs: extremes, or remove `by`.": lambda c: c.entry.by and c.entry.pairs == "all",
}
PAIR: Rows = {
    "scope is global, but winrate compares candidates of one request. Set scope: request, or another normalise.": (
        lambda c: c.entry.scope == "global" and c.entry.normalise == "winrate"
    ),
}
EVAL: Rows = {
    "generator is unset, and no entry under generate has use: diffusers or use: mesh, which sample base and trained "
    "models. Add one.": (lambda c: c.generator is None and c.entry.generator is None),
    "generator is {entry.generator}, which is not an entry under generate. Choose an entry with use: diffusers or "
    "use: mesh.": (lambda c: c.generator is None),
    "generator is {entry.generator}, but {c.generator.use} loads no trained model. Choose one with use: diffusers or "
    "use: mesh.": (lambda c: c.generator.use not in SAMPLERS),
    "base_guidance is {entry.base_guidance}, but the generator mesh has no guidance. Remove the key.": (
        lambda c: c.generator.use == "mesh" and c.entry.base_guidance
    ),
    "real is {entry.real}, but encoder is unset, and distances to real images are distances between embeddings. Set "
    "encoder, for example to ViT-L-14-336 with encoder_pretrained: openai.": (
        lambda c: c.entry.real is not None and c.entry.encoder is None
    ),
    "encoder_pretrained is {entry.encoder_pretrained}, but encoder is unset, so these weights have no use. Set encoder to "
    "their model, or remove the key.": lambda c: c.entry.encoder_pretrained is not None and c.entry.encoder is None,
}
TRAIN: Rows = {
    "lora is null, but full weights cannot be trained in {model.quantize}. Set model.quantize to null, or train an "
    "adapter (lora: {{rank: 16}}).": lambda c: c.model.quantize and c.entry.lora is None,
}
SHARDED: Rows = {
    "model.quantize packs weights so that they cannot be split": lambda c: c.model.quantize,
    "online training samples with the full model": lambda c: c.online,
    "precision fp16 needs a loss scale from all gradients; use bf16": lambda c: c.entry.precision == "fp16",
    "compile is untested with shards": lambda c: c.entry.compile,
    "optimizer {entry.optimizer} is untested with shards; use adamw": lambda c: c.entry.optimizer != "adamw",
    "`watch` samples in a single process": lambda c: c.entry.watch,
    "with cache_reference the processes run different numbers of forward passes": lambda c: c.entry.cache_reference,
    "{entry.objective.use} updates its reference weight by weight": lambda c: c.objective.reference == "ema",
}
OFFLINE: Rows = {
    "cache_reference needs a fixed reference, but that of {entry.objective.use} moves in training. Remove the key.": (
        lambda c: c.entry.cache_reference and c.objective.reference == "ema"
    ),
    "cache_reference needs a reference, but {entry.objective.use} has no reference. Remove the key.": (
        lambda c: c.entry.cache_reference and c.objective.reference == "none"
    ),
    "cache_reference stores only mean errors, but {entry.objective.use} needs the reference's residuals, a whole image "
    "each. Remove the key.": lambda c: c.entry.cache_reference and c.objective.needs_residual,
    "patience is {entry.patience}, but validation: 0 holds out no pairs to measure. Set patience to 0, or "
    "validation above 0.": (lambda c: c.entry.patience and not c.entry.validation),
    "flip mirrors the images of a pair, but not the input images of model.inputs. Remove the key.": (
        lambda c: c.entry.flip and c.model.inputs
    ),
    "{c.for_images} works on images, but the family is {entry.family}. Remove the key.": lambda c: c.for_images,
    "watch samples from a diffusers pipeline, but the family is {entry.family}. Remove the key.": (
        lambda c: c.entry.watch and c.entry.family != "diffusers"
    ),
    "watch samples as a generator does, but the recipe has no diffusers generator of `model` itself. Add an entry "
    "under `generate:` with the steps and the guidance to sample with.": lambda c: (
        c.entry.watch and not c.samples_model
    ),
}
ONLINE: Rows = {
    "online.rewards is empty. Give score names and their weights, as in rewards: {{size: 1}}.": (
        lambda c: not any(c.online.rewards.values())
    ),
    "lora.dropout is {entry.lora.dropout}, but sampling and training must see the same network. Set it to 0.": (
        lambda c: c.entry.lora and c.entry.lora.dropout
    ),
    "compile is for offline training. In online training, sampling and training must round identically "
    "(online.max_drift), which is untested for compiled networks. Remove the key.": lambda c: c.entry.compile,
    "online.noise is cps, whose log-probability has no normaliser, but trust: guard corrects probability ratios that "
    "have one. Use another noise, or trust: clip or dppo.": (
        lambda c: c.online.noise == "cps" and getattr(c.objective.options, "trust", None) == "guard"
    ),
    "online.samples is {online.samples}, but a group needs at least 2 samples to compare. Set 2 or more (12 or more is "
    "steady).": lambda c: c.compares and c.online.samples < 2,
    "online.samples is {online.samples}: with {online.requests} requests a round has {c.samples:,} samples, more than "
    "the limit of 1,000,000. Lower online.samples or online.requests.": lambda c: c.samples > MOST_SAMPLES,
    "online.updates is {online.updates}, but a round has only {c.samples} samples. Lower it.": (
        lambda c: c.objective.shape == "step" and c.online.updates > c.samples
    ),
    "online does not support model.inputs yet. Make pairs with `prefkit generate` and train on those.": (
        lambda c: c.model.inputs
    ),
    "online.generator is unset, and no entry under generate has use: diffusers. Add one with the steps and the "
    "guidance to sample with, as in generate: {{own: {{steps: 20, guidance: 7.5}}}}.": (
        lambda c: c.generator is None and c.online.generator is None
    ),
    "online.generator is {online.generator}, which is not an entry under generate. Add it, or choose another.": (
        lambda c: c.generator is None
    ),
    "online.generator must be a diffusers generator of `model` itself, not compiled: the model that samples is the "
    "one that is trained.": lambda c: (
        c.generator.use != "diffusers" or c.generator.model is not None or c.generator.compile
    ),
}
#: settings that online training does not read -> the reason, or the setting to use
UNREAD = {
    "steps": "online.rounds sets the length of the training",
    "validation": "no pairs exist to hold out; online.watch measures on requests that are not trained on",
    "validate_every": "no pairs are held out; use online.watch_every",
    "patience": "no pairs are held out; use online.stop_drop",
    "checkpoint_every": "online.checkpoint_every counts rounds",
    "watch": "use online.watch",
    "watch_requests": "use online.watch_requests",
    "watch_every": "online.watch_every counts rounds",
    "stop_drop": "use online.stop_drop",
    "resolution": "it is for imported images, but online training samples its images itself",
    "flip": "it is for existing images, but online training samples its images itself",
    "mask": "use online.mask",
    "text_cache": "it encodes the prompts that it samples",
    "cache_reference": "no other training uses the same samples",
}
#: further settings that objectives on steps do not read -> the reason
UNREAD_ON_STEPS = {
    "time_sampling": "it learns from the steps that were sampled",
    "guidance": "training uses the guidance of the generator",
    "accumulation": "each update uses a round's samples divided by online.updates",
}
WARNINGS: Rows = {
    "warmup is {entry.warmup} updates but the training has {c.updates}, so the learning rate never reaches "
    "learning_rate. Lower warmup.": (lambda c: c.entry.warmup > c.updates),
    "pairs ({entry.pairs}) has no effect: online training makes its own pairs.": lambda c: c.online and c.entry.pairs,
    "online.samples is {online.samples}: groups below 12 are noisy, and training may collapse.": (
        lambda c: c.online and c.compares and c.objective.shape == "step" and c.online.samples < STEADY
    ),
}
#: offline rounds; the entry is the only one under `train`
ROUNDS: Rows = {
    ".rounds is {c.recipe.rounds}, but the training is online ({entry.objective.use}) and has rounds of its own. Remove "
    "`rounds`, and set train.NAME.online.rounds instead.": lambda c: c.online,
    ".rounds is {c.recipe.rounds}, but an entry under `generate` names a trained model. Remove its key `model`: each "
    "round samples the model of the round before.": lambda c: any(g.model for g in c.recipe.generate.values()),
    ".rounds is {c.recipe.rounds}, but no entry under `generate` samples the trained model. Add one with use: diffusers "
    "or use: mesh.": lambda c: first_sampler(c.recipe) is None,
    ".rounds is {c.recipe.rounds}, but the training does not learn from an entry under `pair` of this recipe, so all "
    "rounds would have the same pairs. Set train.NAME.pairs to such an entry.": lambda c: (
        c.entry.pairs not in c.recipe.pair
    ),
    ".rounds is {c.recipe.rounds} and model.adapters is set, but the training adds a second adapter, and the next round "
    "can only continue a single one. Set train.NAME.lora.resume to true, or fuse the adapter into the base "
    "(fuse_lora, save_pretrained).": lambda c: c.model.adapters and c.entry.lora and not c.entry.lora.resume,
}
TABLE = {
    "rounds": ROUNDS,
    "generate": {**MESH, **GENERATE, **MODEL},
    "compare": COMPARE,
    "pair": PAIR,
    "train": {**MESH, **MODEL, **TRAIN},
    "eval": {**EVAL, **MODEL},
}


def first_sampler(recipe: Recipe, uses: Collection[str] = SAMPLERS) -> str | None:
    """Return the name of the first entry of `generate` with one of these generators; None if there is none."""
    return next((name for name, settings in recipe.generate.items() if settings.use in uses), None)


def check(stage: str, name: str, recipe: Recipe, entry: Any = None, objective: Any = None) -> None:
    """Check `entry` (default: the recipe's entry `name`). Raises UsageError for the first conflict; warns of risks."""
    case = Case(recipe, entry or getattr(recipe, stage)[name], objective)
    for text in _conflicts(stage, case):
        raise UsageError(_message(stage, name, text, case))
    for text in [text for text, when in WARNINGS.items() if stage == "train" and when(case)]:
        warn(_message(stage, name, text, case))


def _conflicts(stage: str, case: Case) -> Iterator[str]:
    yield from (text for text, when in TABLE[stage].items() if when(case))
    if stage != "train":
        return
    if case.entry.shard != "none":
        problems = [text for text, when in SHARDED.items() if when(case)]
        yield from (f"shard is {{entry.shard}}, but {text}. Change that, or set shard: none." for text in problems)
    if case.online:
        for key, reason in (UNREAD | (UNREAD_ON_STEPS if case.on_steps else {})).items():
            unset = (getattr(Train(), key), *([0] if key == "validation" else []))  # no pair is held out
            if getattr(case.entry, key) not in unset:
                yield f"{key} is {{entry.{key}}}, but online training does not read it: {reason}. Remove the key."
    yield from (text for text, when in (ONLINE if case.online else OFFLINE).items() if when(case))


def _message(stage: str, name: str, text: str, case: Case) -> str:
    message = text.format(c=case, entry=case.entry, model=case.model, online=case.online)
    return message[1:] if message.startswith(".") else f"{stage}.{name}.{message}"
