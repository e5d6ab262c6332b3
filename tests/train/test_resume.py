"""Kill -9, Ctrl-C, several processes, and what other programs make of the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from prefkit.config import Lora, Model
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.load.trained import trained_model
from prefkit.store import litter
from prefkit.train import checkpoint
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.run import Job, checked, make_trainer, run_train
from prefkit.train.setup import ModelLoader, prepare

ENTRY = """
import json, pathlib, sys
from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.store import Store
from prefkit.train.run import run_train
given = json.loads(pathlib.Path(sys.argv[1]).read_text())
objective, lora = Choice(**given["train"].pop("objective")), given["train"].pop("lora")
train = Train(**given["train"], objective=objective, lora=Lora(**lora) if lora else None)
run_train(Store(given["run"]), Recipe(run=given["run"], model=Model(**given["model"]), train={"dpo": train}), "dpo")
"""


@pytest.fixture
def start(tmp_path, forks):
    """start(store, recipe, ranks=1): processes that run this training."""
    from prefkit.config import plain

    def call(store, recipe, ranks=1):
        settings = tmp_path / f"{store.folder.name}.json"
        given = {"run": str(store.folder), "model": plain(recipe.model), "train": plain(recipe.train["dpo"])}
        settings.write_text(json.dumps(given))
        return forks.start(settings, code=ENTRY) if ranks == 1 else forks.ranks(settings, code=ENTRY, count=ranks)

    return call


def weights(store):
    folder = store.train("dpo") / "final"
    file = next(f for f in (folder / "pytorch_lora_weights.safetensors", folder / "unet") if f.exists())
    if file.is_dir():
        file = file / "diffusion_pytorch_model.safetensors"
    return safetensors.torch.load_file(file)


def steps(store):
    """Lines of metrics.jsonl, without what a clock measured."""
    found = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in found]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_killed_training_ends_as_if_nothing_had_happened(run, start):
    lora = Lora(rank=4, dropout=0.1)
    settings = {"steps": 24, "checkpoint_every": 3, "validate_every": 7, "validation": 1, "lora": lora}
    store, recipe = run(where="killed", **settings)
    whole, other = run(where="whole", **settings)
    run_train(whole, other, "dpo")
    process = start(store, recipe)
    metrics = store.train("dpo") / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 6):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (store.train("dpo") / "final").exists()
    run_train(store, recipe, "dpo")
    assert same(weights(store), weights(whole))
    assert steps(store) == steps(whole)


def test_a_kill_beside_a_measurement_loses_none(run, monkeypatch):
    from prefkit.train.trainer import Trainer

    def dies(loop, log):
        if loop.step == 2:
            raise SystemExit("killed here")
        measure(loop, log)

    store, recipe = run(steps=4, validation=1, validate_every=2, checkpoint_every=2)
    measure = Trainer._validate
    monkeypatch.setattr(Trainer, "_validate", dies)
    with pytest.raises(SystemExit):
        run_train(store, recipe, "dpo")
    monkeypatch.setattr(Trainer, "_validate", measure)
    run_train(store, recipe, "dpo")
    assert [line["step"] for line in steps(store) if "validation" in line] == [0, 2, 4]


def test_full_weights_resume_exactly(run):
    settings = {"steps": 5, "validation": 1, "lora": None, "schedule": "cosine", "warmup": 2}
    store, recipe = run(where="halted", **settings)
    whole, other = run(where="whole", **settings)
    run_train(whole, other, "dpo")
    run_train(store, recipe, "dpo", limit=3)
    run_train(store, recipe, "dpo")
    assert same(weights(store), weights(whole))
    assert steps(store) == steps(whole)


def test_ctrl_c_saves_and_goes_on(run, start):
    settings = {"steps": 40, "checkpoint_every": 1000, "validate_every": 1000}
    store, recipe = run(where="stopped", **settings)
    process = start(store, recipe)
    metrics = store.train("dpo") / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    saved = checkpoint.last_step(store.train("dpo") / "checkpoints")
    assert saved == len(steps(store)) and 0 < saved < 40
    run_train(store, recipe, "dpo")
    whole, other = run(where="whole", **settings)
    run_train(whole, other, "dpo")
    assert same(weights(store), weights(whole))


def test_two_processes_give_what_one_gives(run, start, pair_rows):
    rows = pair_rows(5) + pair_rows(4, seed=1, size=(128, 64))
    settings = {"rows": rows, "steps": 5, "validation": 2, "validate_every": 5, "lora": None, "learning_rate": 1e-5}
    one, recipe = run(where="one", batch_size=4, **settings)
    run_train(one, recipe, "dpo")
    otherwise = {"gradient_checkpointing": True, "cache_reference": True}
    two, other = run(where="two", batch_size=2, **settings, **otherwise)
    ranks = start(two, other, ranks=2)
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.wait() for rank in ranks] == [0, 0], said
    assert "2 x 1 accumulated x 2 processes" in said[0]
    for mine, theirs in zip(steps(one), steps(two), strict=True):
        assert mine.keys() == theirs.keys() and mine["step"] == theirs["step"]
        for key in mine.keys() - {"step", "validation"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-6 if "advantage" in key else 2e-3), key
        for key in ("margin", "win_advantage", "lose_advantage"):
            if "validation" in mine:
                assert theirs["validation"][key] == pytest.approx(mine["validation"][key], rel=1e-2, abs=5e-3), key
    a, b = weights(one), weights(two)
    assert max((a[key] - b[key]).abs().max() for key in a) < 2e-5
    assert run_train(two, recipe, "dpo")["steps"] == 5  # one process with the same global batch: the same training


@pytest.mark.slow  # the sum over processes is that of every training
def test_two_processes_give_what_one_gives_with_text_encoders(run, start):
    settings = {"steps": 2, "lora": Lora(rank=2, text_encoder=True), "max_grad_norm": 0.1}
    one, recipe = run(where="one", batch_size=4, **settings)
    run_train(one, recipe, "dpo")
    two, other = run(where="two", batch_size=2, **settings)
    ranks = start(two, other, ranks=2)
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.wait() for rank in ranks] == [0, 0], said
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys() and a["text_encoder.text_model.encoder.layers.1.self_attn.v_proj.lora_B.weight"].any()
    assert max((a[key] - b[key]).abs().max() for key in a) < 2e-5
    assert steps(one)[-1]["grad_norm"] == pytest.approx(steps(two)[-1]["grad_norm"], rel=1e-3)


def trained_loop(run, kind, **settings):
    store, recipe = run(kind, learning_rate=1e-2, **settings)
    run_train(store, recipe, "dpo")
    source = PairSource.find(store, "main")
    pairs, folder = read_pairs(source), store.train("dpo")
    plan = ModelLoader(store, recipe, recipe.train["dpo"], folder)
    data = prepare(plan, pairs, source, Processes("cpu"))
    loop = make_trainer(plan, Job("dpo", recipe.train["dpo"]), data, Processes("cpu"))
    loop.resume()
    return store, recipe, loop


WITH_DIFFUSERS_ALONE = """
import sys
import torch
from diffusers import DiffusionPipeline
for base, final, given, answer in zip(*[iter(sys.argv[1:])] * 4):
    pipe = DiffusionPipeline.from_pretrained(final if base == "-" else base)
    if base != "-":
        pipe.load_lora_weights(final)
    given = torch.load(given, weights_only=True)
    with torch.no_grad():
        predicted = pipe.unet(given["x_t"], given["time"], given["text"]).sample
    torch.save(((predicted - given["noise"]) ** 2).mean((1, 2, 3)), answer)
assert "prefkit" not in sys.modules
"""


def test_the_result_gives_the_same_error_with_diffusers_alone(run, tmp_path):
    arguments, errors = [], []
    for where, lora in (("lora", Lora(rank=4, alpha=7.0)), ("full", None)):
        store, recipe, loop = trained_loop(run, "sd", where=where, lora=lora)
        (batch,) = loop.micro_batches(0)[0]
        with torch.no_grad():
            inside = loop.residuals(loop.policy.net, batch)["image"].square().mean((1, 2, 3))
            with loop.policy.reference() as net:
                before = loop.residuals(net, batch)["image"].square().mean((1, 2, 3))
        assert (inside - before).abs().max() > 1e-4
        x_t = loop.family.schedule.add_noise(batch.latents, batch.draw.noise, batch.draw.time)
        text = batch.condition["encoder_hidden_states"]
        given = {"x_t": x_t, "time": batch.draw.time, "text": text, "noise": batch.draw.noise}
        torch.save(given, tmp_path / f"{where}-given.pt")
        base = recipe.model.base if lora else "-"
        final, answer = store.train("dpo") / "final", tmp_path / f"{where}-answer.pt"
        arguments += [base, str(final), str(tmp_path / f"{where}-given.pt"), str(answer)]
        errors.append((inside, answer))
    done = subprocess.run(
        [sys.executable, "-c", WITH_DIFFUSERS_ALONE, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for inside, answer in errors:
        torch.testing.assert_close(torch.load(answer, weights_only=True), inside, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"rank": 3}, {"rank": 2, "resume": True}])
def test_a_second_training_starts_where_the_first_ended(run, settings):
    store, recipe = run("sd3", lora=Lora(rank=2, alpha=5.0), learning_rate=1e-2)
    run_train(store, recipe, "dpo")
    model = trained_model(store.folder, recipe.model, "dpo")
    block = {"adapters": model.adapters}
    again, second, loop = trained_loop(
        lambda *a, **k: run(*a, model=block, where="again", **k), "sd3", lora=Lora(**settings)
    )
    first = next(line for line in steps(again) if "loss" in line)
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6) and first["margin"] == 0
    (batch,) = loop.micro_batches(0)[0]
    given = loop.family, batch.latents, batch.draw, batch.condition
    with torch.no_grad(), loop.policy.reference() as net:
        frozen = loop.residuals(net, batch)["image"]
        start = load_pipeline(model.base, adapters=model.adapters).transformer
        torch.testing.assert_close(frozen, given[0].residuals(start, *given[1:])["image"], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        inside = loop.residuals(loop.policy.net, batch)["image"]
        joined = trained_model(again.folder, second.model, "dpo")
        assert list(joined.adapters) == [str(again.train("dpo") / "final")]
        net = load_pipeline(joined.base, adapters=joined.adapters).transformer
        torch.testing.assert_close(given[0].residuals(net, *given[1:])["image"], inside, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(frozen, inside, atol=1e-4)


def test_full_weights_from_a_start_with_an_adapter(run):
    store, recipe = run("sd", lora=Lora(rank=2, alpha=5.0), learning_rate=1e-2)
    run_train(store, recipe, "dpo")
    block = {"adapters": {str(store.train("dpo") / "final"): 0.5}}
    again, second, loop = trained_loop(lambda *a, **k: run(*a, model=block, where="again", **k), "sd", lora=None)
    start = load_pipeline(second.model.base, adapters=block["adapters"]).unet
    (batch,) = loop.micro_batches(0)[0]
    with torch.no_grad():
        expected = loop.residuals(start, batch)["image"]
        torch.testing.assert_close(loop.residuals(loop.policy.frozen, batch)["image"], expected, rtol=1e-4, atol=1e-5)
        result = trained_model(again.folder, second.model, "dpo")
        assert result.adapters == {} and result.base == str(again.train("dpo") / "final")
        net = load_pipeline(result.base).unet
        inside = loop.residuals(loop.policy.net, batch)["image"]
        torch.testing.assert_close(loop.residuals(net, batch)["image"], inside, rtol=1e-4, atol=1e-5)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, capsys):
    store, recipe = run(steps=4, checkpoint_every=1)
    whole, other = run(where="whole", steps=4, checkpoint_every=1)
    run_train(whole, other, "dpo")
    run_train(store, recipe, "dpo", limit=3)
    folder = store.train("dpo") / "checkpoints"
    kept = [path.name for path in sorted(folder.glob("step-*"))]
    assert kept == ["step-00000002", "step-00000003"]
    file = folder / kept[-1] / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    run_train(store, recipe, "dpo")
    assert "cannot be read" in capsys.readouterr().err
    assert same(weights(store), weights(whole)) and steps(store) == steps(whole)


def test_a_result_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="has no result"):
        trained_model(tmp_path, Model(base="x"), "dpo")


def test_what_killed_processes_left_half_written_is_removed(run):
    store, recipe = run(steps=2)
    run_train(store, recipe, "dpo", limit=1)
    (cache,) = (store.folder / "train" / ".cache").glob("*/latents")
    dead, alive = (f".part.{litter._host()}-{pid}-00000000.tmp" for pid in (2**22 + 1, os.getpid()))
    own, old, fresh = store.train("dpo") / dead, cache / ".old.1.tmp", cache / alive
    for path in (own, old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))  # as an earlier version named them, whose process nobody knows
    run_train(store, recipe, "dpo")
    assert not own.exists() and not old.exists()
    assert fresh.exists()  # another training may be writing it


def test_a_kill_before_the_export_keeps_what_the_last_step_showed(run, monkeypatch):
    def dies(*_):
        raise SystemExit("killed here")

    store, recipe = run(steps=2)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("prefkit.train.run.export", dies)
        run_train(store, recipe, "dpo")
    whole, other = run(where="whole", steps=2)
    last = run_train(whole, other, "dpo")["last"]
    assert last["loss"] > 0 and run_train(store, recipe, "dpo")["last"] == last


@pytest.mark.parametrize("file", ["final/pytorch_lora_weights.safetensors", "result.json", "trained_on.json"])
def test_a_damaged_result_is_exported_again(run, capsys, file):
    store, recipe = run(steps=2)
    summary = run_train(store, recipe, "dpo")
    good, path = {key: tensor.clone() for key, tensor in weights(store).items()}, store.train("dpo") / file
    data = path.read_bytes()
    damaged = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    path.write_bytes(damaged)
    checked(store, recipe, "dpo")
    assert path.read_bytes() == damaged  # a dry run sets nothing aside
    assert run_train(store, recipe, "dpo") == summary
    assert str(path) in capsys.readouterr().err
    assert same(weights(store), good) and path.exists()
