"""The table of options that do not go together: every row is met, names its key and says how to fix it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace as Has

import pytest

from prefkit.config import Choice, Generate, Lora, Model, Online, Recipe, Train, compatibility, plugin_options
from prefkit.config.compatibility import check
from prefkit.errors import UsageError

OWN = {"own": Generate()}
ONLINE = Online(rewards={"size": 1.0})


def objective(shape="pair", reference="frozen", needs_residual=False, **options):
    return Has(shape=shape, reference=reference, needs_residual=needs_residual, options=Has(**options))


def real(name, **options):
    return plugin_options.make("objective", name, options)


def refused(entry, of=None, generate=OWN, **model):
    recipe = Recipe(model=Model(**model), generate=generate)
    with pytest.raises(UsageError) as error:
        check("train", "a", recipe, entry, of or objective())
    return str(error.value)


OFFLINE = [
    (Train(lora=None), {"quantize": "int8"}, objective(), "train.a.lora is null"),
    (Train(cache_reference=True), {}, objective(reference="ema"), "train.a.cache_reference needs a fixed reference"),
    (Train(cache_reference=True), {}, objective(reference="none"), "train.a.cache_reference is set, but"),
    (
        Train(cache_reference=True),
        {},
        objective(needs_residual=True),
        "train.a.cache_reference stores only mean errors",
    ),
    (Train(patience=1, validation=0), {}, objective(), "train.a.patience is 1, but validation is 0"),
    (Train(flip=True), {"inputs": {"image": "extra.image"}}, objective(), "train.a.flip mirrors"),
    (Train(watch=["size"], family="f.py:F"), {}, objective(), "but the family is f.py:F"),
    (
        Train(family="mesh"),
        {"long_prompts": "chunks"},
        objective(),
        "model.long_prompts is set, but has no effect on a mesh",
    ),
    (Train(family="mesh"), {"variant": "fp16"}, objective(), "model.variant is set, but has no effect on a mesh"),
    (Train(), {"long_prompts": "whole"}, objective(), "model.long_prompts is whole, which is unknown"),
    (Train(), {"base": "a.ckpt", "variant": "fp16"}, objective(), "model.variant is fp16, but a.ckpt is a single file"),
    (Train(start="b", lora=None), {}, objective(), "train.a.start is b, whose adapter is trained further, but lora is"),
    (
        Train(),
        {},
        real("nft", decay=0.9),
        "train.a.objective.decay is set, but has an effect",
    ),
    (
        Train(),
        {},
        real("nft", ramp=0.1),
        "train.a.objective.ramp is set, but has an effect",
    ),
    (Train(family="f.py:F"), {}, real("nft"), "train.a.objective dpo needs the clean samples that predictions imply"),
    (Train(mask="where"), {}, real("nft"), "train.a.mask limits squared errors"),
    *(
        (Train(shard="fsdp2", **{"validation": 4} | change), model, of, "train.a.shard is fsdp2, but ")
        for change, model, of in (
            ({}, {"quantize": "nf4"}, objective()),
            ({"precision": "fp16"}, {}, objective()),
            ({"compile": True}, {}, objective()),
            ({"optimizer": "adafactor"}, {}, objective()),
            ({"watch": ["size"]}, {}, objective()),
            ({"cache_reference": True}, {}, objective()),
            ({}, {}, objective(reference="ema")),
        )
    ),
]


@pytest.mark.parametrize(("entry", "model", "of", "message"), OFFLINE)
def test_offline_training(entry, model, of, message):
    check("train", "a", Recipe(generate=OWN), Train(), objective())
    assert message in refused(entry, of, **model)


ONLINE_ROWS = [
    ({"rewards": {}}, {}, objective(), "train.a.online.rewards is empty"),
    ({}, {"lora": Lora(dropout=0.1)}, objective(), "train.a.lora.dropout is 0.1"),
    ({}, {"compile": True}, objective(), "train.a.compile is only for offline training"),
    ({"noise": "cps"}, {}, objective("step", trust="guard"), "train.a.online.noise is cps"),
    ({"samples": 1}, {}, objective(), "train.a.online.samples is 1"),
    ({"samples": 1, "statistics": "grouped"}, {}, objective("step"), "train.a.online.samples is 1"),
    ({"samples": 2000, "requests": 2000}, {}, objective(), "a round has 4,000,000 samples"),
    ({"updates": 65}, {}, objective("step"), "train.a.online.updates is 65, but a round has only 64"),
    ({"generator": "other"}, {}, objective(), "train.a.online.generator is other, which is not an entry"),
    ({"generator": "drawn"}, {}, objective(), "train.a.online.generator must name an entry with use: diffusers"),
    ({"pair": "main"}, {}, real("gpo"), "train.a.online.pair is main, but dpo learns from all samples of a round"),
    ({"refresh": 2}, {}, real("nft"), "train.a.online.refresh is 2, but the reference of dpo samples and follows"),
    ({}, {"shard": "fsdp2"}, objective(), "online training samples with the full model"),
    ({}, {"accumulation": 2}, objective("step"), "train.a.accumulation is 2, but online training does not read it"),
    ({}, {"time_sampling": "uniform"}, objective("step_pair"), "train.a.time_sampling is uniform"),
    *(
        ({}, {key: value}, objective(), f"train.a.{key} is {value}, but online training does not read it: ")
        for key, value in {
            "steps": 3, "validation": 4, "validate_every": 7, "patience": 1, "checkpoint_every": 7, "watch": ["size"],
            "watch_requests": 3, "watch_every": 7, "stop_drop": 0.1, "sample_every": 5, "ema": 0.5, "resolution": 512, "flip": True, "mask": "where",
            "text_cache": "off", "cache_reference": True,
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("online", "train", "of", "message"), ONLINE_ROWS)
def test_online_training(online, train, of, message):
    generate = {**OWN, "drawn": Generate(use="g.py:draw")}
    check("train", "a", Recipe(generate=generate), Train(online=ONLINE, validation=0, warmup=0), objective())
    assert message in refused(Train(online=replace(ONLINE, **online), **train), of, generate)


def test_every_setting_that_online_training_does_not_read_is_met_above():
    met = {key for _, train, *_ in ONLINE_ROWS for key in train}
    assert met | {"guidance"} >= {*compatibility.UNREAD, *compatibility.UNREAD_ON_STEPS}


def test_online_training_needs_a_generator_and_no_inputs():
    entry = Train(online=ONLINE)
    assert "online.generator is not set, and no entry under generate" in refused(entry, generate={})
    assert "model.inputs" in refused(entry, inputs={"image": "extra.image"})
    assert "rewards is empty" in refused(Train(objective=Choice("ddpo")), objective("step"))  # online by its shape


@pytest.mark.parametrize(
    ("entry", "model", "message"),
    [
        (
            Generate(use="mesh", offload="model"),
            {},
            "generate.own.offload is model, but mesh is not a diffusers pipeline",
        ),
        (Generate(offload="model", compile=True), {}, "generate.own.offload is model, but compile is on"),
        (Generate(offload="sequential"), {"quantize": "nf4"}, "generate.own.offload is sequential, which cannot move"),
    ],
)
def test_offloading(entry, model, message):
    check("generate", "own", Recipe(generate={"own": Generate(offload="model")}))
    with pytest.raises(UsageError) as error:
        check("generate", "own", Recipe(model=Model(**model), generate={"own": entry}))
    assert message in str(error.value)


def test_online_options_of_nft_and_long_prompts():
    nft, entry = real("nft", decay=0.9, ramp=0.1), Train(online=ONLINE, validation=0, warmup=0)
    check("train", "a", Recipe(generate=OWN), entry, nft)
    assert "model.long_prompts is chunks, which online training" in refused(entry, nft, long_prompts="chunks")


def test_warnings(capsys):
    check("train", "a", Recipe(generate=OWN), Train(steps=3, warmup=20), objective())
    entry = Train(online=replace(ONLINE, statistics="group", rounds=3), pairs="main")
    check("train", "a", Recipe(generate=OWN), entry, objective("step"))
    err = capsys.readouterr().err
    assert "warmup is 20 steps, but the training has only 3," in err and "pairs (main) has no effect" in err
    assert "online.samples is 8: groups below 12" in err
