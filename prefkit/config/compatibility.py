"""Settings that need, exclude or ignore each other. Every stage checks them before it loads anything.

To refuse a combination, add a row to the stage's table. The ranges of single numbers are in `bounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefkit.config import Eval, Model, Online, Recipe, Train
from prefkit.errors import UsageError
from prefkit.output import warn

STEADY = 12  # training with fewer samples per group collapsed in Flow-GRPO's ablation (arXiv 2505.05470)
MOST_SAMPLES = 1_000_000  # per round, whose images are all in memory
SINGLE_FILES = (".safetensors", ".ckpt")
SAMPLERS = ("diffusers", "mesh")  # generators that can sample a trained model
MESH_MODEL = (
    "revision",
    "variant",
    "config",
    "quantize",
    "vae_tiling",
    "long_prompts",
    "inputs",
    "trust_remote_code",
)  # ignored for mesh models


@dataclass(frozen=True)
class Case:
    """An entry of a stage, with its recipe. objective: the plug-in that a train entry names, else None."""

    recipe: Recipe
    entry: Any
    objective: Any = None

    @cached_property
    def model(self) -> Any:
        return self.recipe.model

    @cached_property
    def online(self) -> Any:
        """The settings of online training; None if training is offline."""
        online = getattr(self.entry, "online", None)
        return online or (Online() if self.objective and self.objective.shape.startswith("step") else None)

    @cached_property
    def samples(self) -> int:
        """The number of samples per round."""
        return int(self.online.requests * self.online.samples)

    @cached_property
    def updates(self) -> int:
        """The number of optimizer steps of the whole training."""
        online = self.online
        return int(online.rounds * online.updates * online.epochs if online else self.entry.steps)

    @cached_property
    def on_steps(self) -> bool:
        """True if the objective learns from the denoising steps of samples."""
        return self.objective.shape in ("step", "step_pair")

    @cached_property
    def scored(self) -> bool:
        """True if the objective learns from scored images instead of pairs."""
        return bool(getattr(self.objective, "needs_advantage", False))

    @cached_property
    def following(self) -> str:
        """The first option that is set for how a reference follows the policy after each round; "" if there is none."""
        options: Any = self.objective.options if hasattr(self.objective, "kept") else None
        keys = [key for key in ("decay", "ramp") if hasattr(options, key)]
        return next((key for key in keys if getattr(options, key) != getattr(type(options)(), key)), "")

    @cached_property
    def compares(self) -> bool:
        """True if samples are compared with the others of their group (same request)."""
        relative = self.online.statistics in ("group", "grouped") or getattr(self.objective, "group_relative", False)
        return self.objective.shape != "step" or relative

    @cached_property
    def generator(self) -> Any:
        """The entry of `generate` whose settings are used for sampling; None if the recipe has none."""
        evaluated = isinstance(self.entry, Eval)
        name = (self.entry if evaluated else self.online).generator
        name = name or first_sampler(self.recipe, SAMPLERS if evaluated else ("diffusers",))
        return self.recipe.generate.get(name) if name else None

    @cached_property
    def for_images(self) -> str:
        """The first image setting that a mesh training sets, although it has no images; "" if there is none."""
        keys = ("resolution", "mask", "flip", "guidance", "time_sampling") if self.entry.family == "mesh" else ()
        return next((key for key in keys if getattr(self.entry, key)), "")

    @cached_property
    def unread(self) -> str:
        """The first setting that has no effect because the entry uses meshes; "" if there is none."""
        if "mesh" not in (getattr(self.entry, "use", ""), getattr(self.entry, "family", "")):
            return ""
        keys = ["guidance", "width", "negative_prompt", "scheduler", "compile"] if hasattr(self.entry, "use") else []
        keys += ["height"] if keys and self.entry.call.get("render") is False else []
        model = next((f".model.{key}" for key in MESH_MODEL if getattr(self.model, key) != getattr(Model(), key)), "")
        return next((key for key in keys if getattr(self.entry, key) not in (None, False)), model)

    @cached_property
    def samples_model(self) -> bool:
        """True if a diffusers generator in the recipe samples `model` rather than a trained model."""
        return any(g.use == "diffusers" and g.model is None for g in self.recipe.generate.values())


#: error message -> condition for the error. A message starts with the recipe key to change: a key of the entry, or
#: ".section.key"; its placeholders are filled in from the case
Rows = Mapping[str, Callable[[Case], Any]]

MODEL: Rows = {
    ".model.quantize is {model.quantize}, but {model.base} is a single file. Set model.quantize to null, or model.base "
    "to a pipeline folder or a Hub id.": lambda c: c.model.quantize and c.model.base.endswith(SINGLE_FILES),
    ".model.variant is {model.variant}, but {model.base} is a single file. Remove the key.": lambda c: (
        c.model.variant and c.model.base.endswith(SINGLE_FILES)
    ),
    ".model.long_prompts is {model.long_prompts}, which is unknown; choose cut or chunks.": lambda c: (
        c.model.long_prompts not in ("cut", "chunks")
    ),
}
MESH: Rows = {
    "{c.unread} is set, but has no effect on a mesh model with these settings. Remove the key.": lambda c: c.unread,
    "objective {entry.objective.use} trains online, which samples images, but the family is mesh. Make candidates with "
    "`prefkit generate`, and train on pairs of them with an offline objective and without `online`.": lambda c: (
        c.online and c.entry.family == "mesh"
    ),
}
GENERATE: Rows = {
    "model is {entry.model}, a trained model, which {entry.use} cannot load. Set use to diffusers or mesh, or remove "
    "`model`.": lambda c: c.entry.model is not None and ":" in c.entry.use,
    "offload is {entry.offload}, but {entry.use} is not a diffusers pipeline. Remove the key.": lambda c: (
        c.entry.offload != "none" and c.entry.use != "diffusers"
    ),
    "offload is {entry.offload}, but compile is on, which is untested with offloading. Remove one of the keys.": (
        lambda c: c.entry.offload != "none" and c.entry.compile
    ),
    "offload is sequential, which cannot move quantized layers ({model.quantize}). Set offload: model, or "
    "model.quantize: null.": lambda c: c.entry.offload == "sequential" and c.model.quantize,
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
    "generator is not set, and no entry under generate has use: diffusers or use: mesh, whose sampling settings eval "
    "needs. Add one.": (lambda c: c.generator is None and c.entry.generator is None),
    "generator is {entry.generator}, which is not an entry under generate. Choose an entry with use: diffusers or "
    "use: mesh.": (lambda c: c.generator is None),
    "generator is {entry.generator}, but {c.generator.use} cannot load trained models. Choose an entry with use: "
    "diffusers or use: mesh.": (lambda c: c.generator.use not in SAMPLERS),
    "base_guidance is {entry.base_guidance}, but mesh models have no guidance. Remove the key.": (
        lambda c: c.generator.use == "mesh" and c.entry.base_guidance
    ),
    "real is {entry.real}, but encoder is not set, and the distances to real images are computed from its embeddings. "
    "Set encoder, for example to ViT-L-14-336 with encoder_pretrained: openai.": (
        lambda c: c.entry.real is not None and c.entry.encoder is None
    ),
    "encoder_pretrained is {entry.encoder_pretrained}, but encoder is not set. Set encoder to the architecture of the "
    "weights, or remove the key.": lambda c: c.entry.encoder_pretrained is not None and c.entry.encoder is None,
}
TRAIN: Rows = {
    "lora is null, but full weights cannot be trained in {model.quantize}. Set model.quantize to null, or train an "
    "adapter (lora: {{rank: 16}}).": lambda c: c.model.quantize and c.entry.lora is None,
    "start is {entry.start}, whose adapter is trained further, but lora is null. Set lora.rank to that of "
    "train.{entry.start}.": lambda c: c.entry.start is not None and c.entry.lora is None,
    "lora.text_encoder_learning_rate is {entry.lora.text_encoder_learning_rate}, but text encoders are not trained. Set "
    "lora.text_encoder to true, or remove the key.": lambda c: (
        c.entry.lora and not c.entry.lora.text_encoder and c.entry.lora.text_encoder_learning_rate is not None
    ),
}
TEXT_ENCODER: Rows = {
    "the text encoders of family {entry.family} are unknown": lambda c: c.entry.family != "diffusers",
    "online training does not encode the prompts of its samples again when it learns from them": lambda c: c.online,
    "shard is {entry.shard}, which is untested with text encoders": lambda c: c.entry.shard != "none",
    "with model.inputs, the VAE would have to encode the input images again at each step": lambda c: c.model.inputs,
    "text_cache is off, and the reference needs the cached embeddings": lambda c: c.entry.text_cache == "off",
}
SHARDED: Rows = {
    "model.quantize packs weights so that they cannot be split": lambda c: c.model.quantize,
    "online training samples with the full model": lambda c: c.online,
    "precision fp16 needs a loss scale computed from all gradients; use bf16": lambda c: c.entry.precision == "fp16",
    "compile is untested with shards": lambda c: c.entry.compile,
    "optimizer {entry.optimizer} is untested with shards; use adamw": lambda c: c.entry.optimizer != "adamw",
    "`watch` and `sample_every` sample in a single process": lambda c: c.entry.watch or c.entry.sample_every,
    "`ema` averages full weights": lambda c: c.entry.ema,
    "with cache_reference, processes run different numbers of forward passes": lambda c: c.entry.cache_reference,
    "{entry.objective.use} updates its reference weight by weight, which needs full weights": lambda c: (
        c.objective.reference == "ema"
    ),
}
OFFLINE: Rows = {
    "cache_reference needs a fixed reference, but {entry.objective.use} updates its reference. Remove the key.": (
        lambda c: c.entry.cache_reference and c.objective.reference == "ema"
    ),
    "cache_reference is set, but {entry.objective.use} has no reference. Remove the key.": (
        lambda c: c.entry.cache_reference and c.objective.reference == "none"
    ),
    "cache_reference stores only mean errors, but {entry.objective.use} needs the reference's residuals, which are as "
    "large as the latents. Remove the key.": lambda c: c.entry.cache_reference and c.objective.needs_residual,
    "objective {entry.objective.use} needs the clean samples that predictions imply, which only family diffusers has, but "
    "the family is {entry.family}. Use gpo.": lambda c: (
        c.entry.family != "diffusers" and getattr(c.objective, "needs_clean", False)
    ),
    "mask limits squared errors, but {entry.objective.use} computes its own from residuals. Remove the key.": lambda c: (
        c.entry.mask and getattr(c.objective, "needs_clean", False)
    ),
    "objective.{c.following} is set, but has an effect only online, where the reference of {entry.objective.use} follows "
    "the policy. Remove the key.": lambda c: c.following,
    "patience is {entry.patience}, but validation is 0, so no pairs are held out to measure. Set patience to 0, or "
    "validation above 0.": (lambda c: c.entry.patience and not c.entry.validation),
    "flip mirrors the images of a pair, but not the input images of model.inputs. Remove the key.": (
        lambda c: c.entry.flip and c.model.inputs
    ),
    "{c.for_images} is for images, but the family is {entry.family}. Remove the key.": lambda c: c.for_images,
    "watch needs a diffusers pipeline to sample from, but the family is {entry.family}. Remove the key.": (
        lambda c: c.entry.watch and c.entry.family != "diffusers"
    ),
    "sample_every needs a diffusers pipeline to sample from, but the family is {entry.family}. Remove the key.": (
        lambda c: c.entry.sample_every and c.entry.family != "diffusers"
    ),
    "watch needs sampling settings, but no entry under `generate` has use: diffusers and samples `model` itself. Add "
    "one with the steps and the guidance to sample with.": lambda c: c.entry.watch and not c.samples_model,
}
ONLINE: Rows = {
    "online.rewards is empty. Give score names and their weights, as in rewards: {{size: 1}}.": (
        lambda c: not any(c.online.rewards.values())
    ),
    "lora.dropout is {entry.lora.dropout}, but sampling and training must see the same network. Set it to 0.": (
        lambda c: c.entry.lora and c.entry.lora.dropout
    ),
    "compile is only for offline training: online training must compute exactly what sampling computed "
    "(online.max_drift), which is untested for compiled networks. Remove the key.": lambda c: c.entry.compile,
    "online.noise is cps, whose log-probabilities are not normalised, but trust: guard needs normalised ones. Use "
    "another noise, or trust: clip or dppo.": (
        lambda c: c.online.noise == "cps" and getattr(c.objective.options, "trust", None) == "guard"
    ),
    "online.samples is {online.samples}, but this training compares the samples of a request. Set 2 or more (12 or "
    "more for stable training).": lambda c: c.compares and c.online.samples < 2,
    "online.samples is {online.samples}: with {online.requests} requests a round has {c.samples:,} samples, more than "
    "the limit of 1,000,000. Lower online.samples or online.requests.": lambda c: c.samples > MOST_SAMPLES,
    "online.updates is {online.updates}, but a round has only {c.samples} samples. Lower it.": (
        lambda c: c.objective.shape == "step" and c.online.updates > c.samples
    ),
    ".model.long_prompts is chunks, which online training does not support. Set it to cut.": lambda c: (
        c.model.long_prompts == "chunks"
    ),
    "online.pair is {online.pair}, but {entry.objective.use} learns from all samples of a round, by their rewards. Remove "
    "the key.": lambda c: c.online.pair and c.scored,
    "online.refresh is {online.refresh}, but the reference of {entry.objective.use} samples and follows the policy after "
    "every round. Remove the key.": lambda c: c.online.refresh and hasattr(c.objective, "kept"),
    "online training does not support model.inputs yet. Make pairs (`prefkit generate`, `score`, `pair`) and train on "
    "these without `online`.": (lambda c: c.model.inputs),
    "online.generator is not set, and no entry under generate has use: diffusers. Add one with the steps and the "
    "guidance to sample with, as in generate: {{own: {{steps: 20, guidance: 7.5}}}}.": (
        lambda c: c.generator is None and c.online.generator is None
    ),
    "online.generator is {online.generator}, which is not an entry under generate. Add it, or choose another.": (
        lambda c: c.generator is None
    ),
    "online.generator must name an entry with use: diffusers, without `model` and `compile`, because online training "
    "samples with the model that it trains.": lambda c: (
        c.generator.use != "diffusers" or c.generator.model is not None or c.generator.compile
    ),
}
#: setting that online training does not read -> the reason, or the setting to use instead
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
    "sample_every": "online.watch_every sets how often pictures of samples are written",
    "ema": "use online.ema",
    "resolution": "it is for imported images, but online training samples its own",
    "flip": "it is for existing images, but online training samples its own",
    "mask": "use online.mask",
    "text_cache": "it always encodes prompts when it samples",
    "cache_reference": "no other training could reuse the errors, because each samples its own images",
}
#: further setting that objectives on denoising steps do not read -> the reason
UNREAD_ON_STEPS = {
    "time_sampling": "the objective learns from the denoising steps of the samples",
    "guidance": "training uses the generator's guidance",
    "accumulation": "each update uses a round's samples divided by online.updates",
}
WARNINGS: Rows = {
    "warmup is {entry.warmup} steps, but the training has only {c.updates}, so the learning rate never reaches "
    "learning_rate. Lower warmup.": (lambda c: c.entry.warmup > c.updates),
    "pairs ({entry.pairs}) has no effect: online training makes its own pairs.": lambda c: c.online and c.entry.pairs,
    "online.samples is {online.samples}: groups below 12 are noisy, and training may collapse.": (
        lambda c: c.online and c.compares and c.objective.shape == "step" and c.online.samples < STEADY
    ),
}
#: conflicts with offline rounds; the entry is the recipe's only one under `train`
ROUNDS: Rows = {
    ".rounds is {c.recipe.rounds}, but the training is online ({entry.objective.use}), which has rounds of its own. "
    "Remove `rounds`, and set train.NAME.online.rounds instead.": lambda c: c.online,
    ".rounds is {c.recipe.rounds}, but start is {entry.start}. Remove `start`: each round trains the model of the previous "
    "round further.": lambda c: c.entry.start is not None,
    ".rounds is {c.recipe.rounds}, but an entry under `generate` names a trained model. Remove its key `model`: each "
    "round samples the model of the previous round.": lambda c: any(g.model for g in c.recipe.generate.values()),
    ".rounds is {c.recipe.rounds}, but no entry under `generate` can sample a trained model. Add one with use: "
    "diffusers or use: mesh.": lambda c: first_sampler(c.recipe) is None,
    ".rounds is {c.recipe.rounds}, but train.NAME.pairs is not an entry under `pair` of this recipe, so all rounds "
    "would train on the same pairs. Set it to such an entry.": lambda c: c.entry.pairs not in c.recipe.pair,
    ".rounds is {c.recipe.rounds}, but the training would add an adapter to those in model.adapters, and the next "
    "round can continue only a single adapter. Set train.NAME.lora.resume to true, or fuse model.adapters into the "
    "base (fuse_lora, save_pretrained).": lambda c: c.model.adapters and c.entry.lora and not c.entry.lora.resume,
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
    """Return the name of the first entry of `generate` whose `use` is in `uses`; None if there is none."""
    return next((name for name, settings in recipe.generate.items() if settings.use in uses), None)


def check(stage: str, name: str, recipe: Recipe, entry: Any = None, objective: Any = None) -> None:
    """Check an entry (default: the recipe's entry `name`). Raises UsageError for a conflict, and warns about risks."""
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
    if case.entry.lora and case.entry.lora.text_encoder:
        problems = [text for text, when in TEXT_ENCODER.items() if when(case)]
        yield from (f"lora.text_encoder is true, but {text}. Change that, or remove the key." for text in problems)
    if case.online:
        for key, reason in (UNREAD | (UNREAD_ON_STEPS if case.on_steps else {})).items():
            unset = (getattr(Train(), key), *([0] if key == "validation" else []))  # holds out no pairs
            if getattr(case.entry, key) not in unset:
                yield f"{key} is {{entry.{key}}}, but online training does not read it: {reason}. Remove the key."
    yield from (text for text, when in (ONLINE if case.online else OFFLINE).items() if when(case))


def _message(stage: str, name: str, text: str, case: Case) -> str:
    message = text.format(c=case, entry=case.entry, model=case.model, online=case.online)
    return message[1:] if message.startswith(".") else f"{stage}.{name}.{message}"
