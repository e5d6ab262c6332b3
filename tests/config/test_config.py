"""Every field of the configuration is on one side: it changes what rows mean, or it does not."""

from __future__ import annotations

import dataclasses

from prefkit import config

# decided by hand; a new field must be added to one of the two
CONTENT = {
    "Model": {"base", "revision", "adapters", "config", "inputs", "quantize", "vae_tiling", "variant", "long_prompts"},
    "Requests": {"source", "prompt_column", "split_column", "test_share", "images"},
    "Generate": {
        "use",
        "steps",
        "guidance",
        "height",
        "width",
        "negative_prompt",
        "scheduler",
        "dtype",
        "seed",
        "model",
        "call",
    },
    "Score": {"use", "options", "dtype"},
    "Compare": {"use", "options", "aspect", "template", "dtype"},
    "Pair": {
        "use",
        "options",
        "weights",
        "normalise",
        "scope",
        "decimals",
        "missing",
        "tie",
        "ties",
        "top_pairs",
        "generators",
        "filter",
        "duplicates",
        "degenerate",
        "lists",
        "embed",
    },
    "Choice": {"use", "options"},
    "Lora": {"rank", "alpha", "targets", "dropout", "resume", "text_encoder", "text_encoder_learning_rate"},
    "Online": {
        "rewards",
        "normalise",
        "rounds",
        "requests",
        "samples",
        "generator",
        "steps",
        "noise",
        "noise_level",
        "window",
        "window_every",
        "statistics",
        "buffer",
        "minimum",
        "advantage_clip",
        "updates",
        "epochs",
        "timestep_fraction",
        "pair",
        "mask",
        "refresh",
        "ema",
        "max_drift",
        "watch",
        "watch_requests",
        "stop_drop",
    },
    "Train": {
        "pairs",
        "objective",
        "start",
        "online",
        "lora",
        "family",
        "steps",
        "batch_size",
        "accumulation",
        "learning_rate",
        "warmup",
        "schedule",
        "weight_decay",
        "optimizer",
        "optimizer_options",
        "max_grad_norm",
        "ema",
        "precision",
        "time_sampling",
        "guidance",
        "resolution",
        "flip",
        "mask",
        "seed",
        "validation",
        "patience",
        "watch",
        "watch_requests",
        "stop_drop",
    },
    "Set": {"source", "split", "prompt_column"},
    "Eval": {
        "models",
        "scorers",
        "sets",
        "generator",
        "seed",
        "base",
        "base_guidance",
        "base_steps",
        "tie",
        "bootstrap",
        "encoder",
        "encoder_pretrained",
        "real",
        "explicit",
        "superficial",
        "by",
    },
    "Recipe": {
        "run",
        "rounds",
        "model",
        "requests",
        "generate",
        "score",
        "compare",
        "pair",
        "train",
        "eval",
        "background",
    },
}
FREE = {
    "Model": {"trust_remote_code"},
    "Requests": set(),
    "Generate": {"offload", "n", "latents", "format", "splits", "batch_size", "compile", "device", "max_failed"},
    "Score": {"generators", "batch_size", "device", "max_failed", "accept_license"},
    "Compare": {"pairs", "by", "most", "generators", "batch_size", "device", "max_failed", "accept_license"},
    "Pair": set(),
    "Choice": set(),
    "Lora": set(),
    "Online": {"watch_every", "sample_batch", "reward_timeout", "max_failed", "checkpoint_every", "keep_rounds"},
    "Train": {
        "controls",
        "cache_reference",
        "gradient_checkpointing",
        "compile",
        "attention",
        "checkpoint_every",
        "validate_every",
        "text_cache",
        "sample_every",
        "watch_every",
        "shard",
        "device",
        "report_to",
    },
    "Set": set(),
    "Eval": {"seeds", "best_of", "max_requests", "batch_size", "device", "judges"},
    "Recipe": {"about", "fast"},
}


def test_no_block_is_left_out():
    blocks = {name for name, kind in vars(config).items() if dataclasses.is_dataclass(kind)}
    assert blocks == set(CONTENT) == set(FREE)


def test_every_field_is_on_one_side():
    for name in CONTENT:
        kind = getattr(config, name)
        sides = {f.name: f.metadata.get("content", True) for f in dataclasses.fields(kind)}
        assert {k for k, v in sides.items() if v} == CONTENT[name]
        assert {k for k, v in sides.items() if not v} == FREE[name]


def test_defaults_are_not_content():
    assert config.content(config.Generate()) == {}
    assert config.content(config.Generate(n=9, batch_size=1, steps=30)) == {}
    assert config.content(config.Generate(steps=31)) == {"steps": 31}


def test_every_field_has_help():
    from prefkit.cli.help import field_docs

    for name in ("Model", "Requests", "Generate", "Score", "Compare", "Pair", "Online", "Train", "Eval"):
        docs = field_docs(getattr(config, name))
        assert set(docs) == {f.name for f in dataclasses.fields(getattr(config, name))}
