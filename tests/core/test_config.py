"""Every field of the configuration is on one side: it changes what rows mean, or it does not."""

from __future__ import annotations

import dataclasses

from prefkit import config

# decided by hand; a new field must be added to one of the two
CONTENT = {
    "Model": {"base", "revision", "adapters", "config"},
    "Requests": {"source", "prompt_column", "split_column", "test_share"},
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
    "Pair": {"use", "options", "weights", "normalise", "missing", "tie", "generators"},
}
FREE = {
    "Model": {"trust_remote_code"},
    "Requests": set(),
    "Generate": {"n", "latents", "format", "splits", "batch_size", "compile", "device", "max_failed"},
    "Score": {"generators", "batch_size", "device", "max_failed"},
    "Pair": set(),
}


def test_every_field_is_on_one_side():
    for name in CONTENT:
        kind = getattr(config, name)
        sides = {f.name: f.metadata.get("content", True) for f in dataclasses.fields(kind)}
        assert {k for k, v in sides.items() if v} == CONTENT[name]
        assert {k for k, v in sides.items() if not v} == FREE[name]


def test_train_fields_that_are_free():
    free = {f.name for f in dataclasses.fields(config.Train) if not f.metadata.get("content", True)}
    expected = {
        "controls",
        "gradient_checkpointing",
        "compile",
        "checkpoint_every",
        "validate_every",
        "device",
        "report_to",
    }
    assert free == expected


def test_defaults_are_not_content():
    assert config.content(config.Generate()) == {}
    assert config.content(config.Generate(n=9, batch_size=1, steps=30)) == {}
    assert config.content(config.Generate(steps=31)) == {"steps": 31}


def test_every_field_has_help():
    from prefkit.helptext import field_docs

    for name in ("Model", "Requests", "Generate", "Score", "Pair", "Train", "Eval"):
        docs = field_docs(getattr(config, name))
        assert set(docs) == {f.name for f in dataclasses.fields(getattr(config, name))}
