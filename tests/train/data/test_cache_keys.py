"""Each setting changes exactly the keys of caches and trainings that the tables below list."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from prefkit.config import Choice, Generate, Lora, Model, Online, Train
from prefkit.distributed.collectives import Processes
from prefkit.errors import FingerprintError
from prefkit.models.lora.files import ADAPTER_FILE
from prefkit.store.files import read_json, write_json
from prefkit.train.data import cache_keys
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.run import checked, fingerprint, run_train
from prefkit.train.setup import ModelLoader

NOTHING: set[str] = set()
RESULT = {"result"}
REFERENCE = {"reference", "result"}
ALL = {"wiring", "latents", "conditions", "reference", "result"}
#: field of Train -> (another value, what changes)
TRAIN = {
    "pairs": ("other", RESULT),
    "objective": (Choice("ipo"), RESULT),
    "online": (Online(), RESULT),  # its own fingerprint: test_fingerprint of tests/train/online
    "lora": (Lora(rank=8), RESULT),
    "family": ("FAMILY", ALL),
    "steps": (9, NOTHING),
    "start": ("other", RESULT),
    "batch_size": (3, RESULT),
    "accumulation": (2, RESULT),
    "learning_rate": (1e-4, RESULT),
    "warmup": (1, RESULT),
    "schedule": ("cosine", RESULT),
    "weight_decay": (0.1, RESULT),
    "optimizer": ("adafactor", RESULT),
    "optimizer_options": ({"eps": 1e-6}, RESULT),
    "max_grad_norm": (0.5, RESULT),
    "ema": (0.9, RESULT),
    "precision": ("bf16", ALL),
    "time_sampling": ("uniform", RESULT),
    "guidance": (5.0, RESULT),  # conditions too where the network takes it in: below
    "resolution": (64, RESULT),
    "flip": (True, RESULT),
    "mask": ("box", RESULT),
    "seed": (1, REFERENCE),
    "text_cache": ("off", NOTHING),
    "validation": (2, RESULT),
    "patience": (2, RESULT),
    "watch": (["size"], RESULT),
    "watch_requests": (3, RESULT),
    "watch_every": (7, NOTHING),
    "sample_every": (7, NOTHING),
    "stop_drop": (0.7, RESULT),
    "controls": (True, NOTHING),
    "cache_reference": (True, NOTHING),
    "shard": ("fsdp2", NOTHING),
    "gradient_checkpointing": (True, NOTHING),
    "compile": (True, NOTHING),
    "attention": ("native", NOTHING),
    "checkpoint_every": (7, NOTHING),
    "validate_every": (7, NOTHING),
    "device": ("meta", NOTHING),
    "report_to": ("tensorboard", NOTHING),
}
MODEL = {
    "base": ("OTHER", ALL),
    "revision": ("main", NOTHING),  # of a Hub id alone, whose commit then is the base
    "adapters": ("ADAPTER", REFERENCE),
    "config": ("OTHER", ALL),
    "inputs": ({"image": "photo"}, {"wiring", "conditions", "reference", "result"}),
    "quantize": ("nf4", REFERENCE),
    "trust_remote_code": (True, NOTHING),
    "vae_tiling": (True, ALL),
    "variant": ("fp16", ALL),
    "long_prompts": ("chunks", ALL - {"latents"}),
}


def keys(store, recipe, **changes):
    config = replace(recipe.train["dpo"], **changes)
    plan = ModelLoader(store, recipe, config, store.train("dpo"))
    config = replace(config, mask=None)  # read from requests, which these pairs do not have
    return {
        "wiring": plan.wiring_file(),
        "latents": plan.latents_folder(),
        "conditions": plan.conditions_folder(),
        "reference": plan.reference_folder(),
        "result": str(fingerprint(config, plan, read_pairs(PairSource.find(store, "main")), Processes("cpu"))),
    }


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_every_field_is_marked():
    assert TRAIN.keys() == {field.name for field in fields(Train)}
    assert MODEL.keys() == {field.name for field in fields(Model)}


@pytest.mark.parametrize("field", sorted(TRAIN.keys() - {"mask"}))
def test_keys_follow_a_field_of_a_training(run, tmp_path, field):
    value, expected = TRAIN[field]
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    value = f"{tmp_path}/mine.py:Mine" if value == "FAMILY" else value
    store, recipe = run()
    assert changed(keys(store, recipe), keys(store, recipe, **{field: value})) == expected


@pytest.mark.parametrize("field", sorted(MODEL))
def test_keys_follow_a_field_of_the_model(run, folders, tmp_path, field):
    value, expected = MODEL[field]
    (tmp_path / ADAPTER_FILE).write_bytes(b"an adapter")
    value = {"OTHER": str(folders["sd-v"]), "ADAPTER": {str(tmp_path): 1.0}}.get(str(value), value)
    store, recipe = run()
    other = replace(recipe, model=replace(recipe.model, **{field: value}))
    assert changed(keys(store, recipe), keys(store, other)) == expected


def test_how_often_is_measured_counts_where_it_chooses_the_result(run):
    store, recipe = run()
    for given, field in (({"patience": 2}, "validate_every"), ({"watch": ["size"]}, "watch_every")):
        assert changed(keys(store, recipe, **given), keys(store, recipe, **given, **{field: 7})) == RESULT


def test_the_call_counts_for_conditions_where_the_network_takes_it_in(run):
    store, recipe = run()

    def made(**given):
        generate = {"own": Generate(**({"guidance": 3.0} | given))}
        return keys(store, replace(recipe, generate=generate))

    before = made()
    assert changed(before, made(guidance=5.0)) == RESULT
    assert not changed(before, made(negative_prompt="bad")) and not changed(
        before, made(call={"negative_prompt": "bad"})
    )
    assert changed(before, made(call={"clip_skip": 1})) == {"wiring", "conditions", "reference", "result"}
    free, embedded = SimpleNamespace(no_guidance={"guidance_scale": 1.0}), SimpleNamespace(no_guidance={})
    calls = [{"guidance_scale": value} for value in (3.0, 5.0)]
    keys_of = [[cache_keys.conditions_key("base", None, call, wiring) for call in calls] for wiring in (free, embedded)]
    assert keys_of[0][0] == keys_of[0][1] and keys_of[1][0] != keys_of[1][1]


@pytest.mark.parametrize("name", cache_keys.SCHEME)
def test_a_new_scheme_makes_anew(run, monkeypatch, name):
    store, recipe = run()
    before = keys(store, recipe)
    monkeypatch.setitem(cache_keys.SCHEME, name, 99)
    follows = {"latents": {"reference"}, "conditions": {"reference"}}.get(name, NOTHING)
    assert changed(before, keys(store, recipe)) == {name} | follows | (RESULT if name != "reference" else NOTHING)


def test_other_guidance_and_a_start_adapter_encode_nothing_again(run, monkeypatch, tmp_path):
    from prefkit.models.load.pipeline import load_pipeline
    from prefkit.models.lora import adapters
    from prefkit.train.families.diffusers import DiffusersFamily

    store, recipe = run(steps=1)
    run_train(store, recipe, "dpo")
    pipe = load_pipeline(recipe.model.base)
    adapters.add_lora(pipe.unet, rank=2, alpha=2)
    adapters.export_adapter(pipe.unet, "unet", tmp_path / "start")

    def encodes(*given):
        raise AssertionError("encoded again")

    monkeypatch.setattr(DiffusersFamily, "latents", encodes)
    monkeypatch.setattr(DiffusersFamily, "conditions", encodes)
    model = replace(recipe.model, adapters={str(tmp_path / "start"): 1.0})
    config = replace(recipe.train["dpo"], guidance=3.0, batch_size=1, checkpoint_every=1)
    found = run_train(store, replace(recipe, model=model, train={"again": config}), "again")
    assert found["done"]


def test_a_training_of_another_scheme_is_not_continued(run):
    store, recipe = run()
    run_train(store, recipe, "dpo", limit=2)
    path = store.train("dpo") / "spec.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "scheme"})
    with pytest.raises(FingerprintError, match="a version of prefkit that draws noise or captures pipelines"):
        run_train(store, recipe, "dpo")


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_another_minor_release_continues_no_training_but_reports_a_finished_one(run, monkeypatch, library):
    from prefkit.train.families.diffusers import DiffusersFamily

    store, recipe = run()
    run_train(store, recipe, "dpo", limit=2)
    minor, encode = cache_keys._minor, DiffusersFamily.latents
    monkeypatch.setattr(cache_keys, "_minor", lambda name: "99.0" if name == library else minor(name))
    monkeypatch.setattr(DiffusersFamily, "latents", lambda *given: pytest.fail("encoded again"))
    for attempt in (run_train, checked):
        with pytest.raises(
            FingerprintError, match=f"began with .*{library} {minor(library)}.* but .*{library} 99.0.* are installed"
        ):
            attempt(store, recipe, "dpo")
    monkeypatch.setattr(cache_keys, "_minor", minor)
    monkeypatch.setattr(DiffusersFamily, "latents", encode)
    done = run_train(store, recipe, "dpo")
    assert done["done"]
    monkeypatch.setattr(cache_keys, "_minor", lambda name: "99.0" if name == library else minor(name))
    assert run_train(store, recipe, "dpo") == done
    longer = replace(recipe, train={"dpo": replace(recipe.train["dpo"], steps=done["steps"] + 1)})
    with pytest.raises(FingerprintError, match=f"{library} 99.0"):
        run_train(store, longer, "dpo")
    fresh = replace(recipe, train={"fresh": recipe.train["dpo"]})
    assert run_train(store, fresh, "fresh")["done"]  # its caches are its own
