"""Whole online trainings on tiny pipelines: every objective, resume, failing rewards, guards."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from prefkit.config import Choice, Pair, Score, reader
from prefkit.errors import FingerprintError, TrainingError, UsageError
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.train.data import cache_keys
from prefkit.train.optimizers import PolicyOptimizer
from prefkit.train.run import run_train
from prefkit.types import Request

QUICK = {"generate": {"steps": 3}}


def lines(store):
    return [json.loads(line) for line in (store.train("up") / "metrics.jsonl").read_text().splitlines()]


def adapter(store, where="final"):
    return safetensors.torch.load_file(store.train("up") / where / "pytorch_lora_weights.safetensors")


def numbers(store):
    """What was logged, without the times."""
    return [{k: v for k, v in row.items() if k != "crc" and not k.startswith("seconds")} for row in lines(store)]


OBJECTIVES = [
    ("sd", "ddpo", {"updates": 2, "epochs": 2, "statistics": "running", "minimum": 2}),
    ("sd-v", "d3po", {"refresh": 1}),
    ("sd3", "flow_grpo", {"window": 2, "statistics": "grouped"}),
    ("sd3", "flow_grpo", {"noise": "dance", "normalise": "batch"}),
    ("sd3", "flow_grpo", {"noise": "cps", "statistics": "group"}),
    ("sd3", "oft", {"mask": "box", "noise": "cps"}),
    ("sd", "dpo", {"refresh": 1}),
    ("sd3", "sft", {}),
    ("sd3", "nft", {"statistics": "grouped"}),
    ("sd", "nft", {"statistics": "global"}),
    ("sd-v", "dgpo", {"refresh": 1}),
    ("sd3", "gpo", {}),
]
TRUST = {"dance": {"trust": "guard", "clip": 2e-6}, "cps": {"trust": "dppo", "kl": 0.0}}


@pytest.mark.parametrize(
    ("kind", "name", "online"),
    OBJECTIVES,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_every_objective_learns_from_rounds(make, tmp_path, kind, name, online):
    (tmp_path / "box.py").write_text(BOX)
    score = {"box": Score(use=f"{tmp_path}/box.py:Box", device="cpu")}
    options = TRUST.get(online.get("noise"), {}) if name == "flow_grpo" else {}
    store, recipe = make(kind, objective=Choice(name, options), score=score, **QUICK, **online)
    found = run_train(store, recipe, "up")
    assert found["done"] and found["rounds"] == 2 and found["queries"] == 8
    changed = {key: value for key, value in adapter(store).items() if "lora_B" in key}
    assert any(value.any() for value in changed.values())
    rows = lines(store)
    assert len(rows) == 2 and all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    if name in ("ddpo", "d3po", "oft", "flow_grpo"):
        assert rows[0]["drift"] <= 1e-6 and rows[1]["drift"] <= 1e-6
        if "updates" not in online:
            assert abs(rows[0]["ratio"] - 1) <= 1e-6
    always = {"reward", "reward_std", "score/size", "failed", "flat_groups", "queries", "loss", "grad_norm", "lr"}
    always |= {f"seconds/{part}" for part in ("sampling", "waiting for rewards", "learning")}
    kl = {"kl"} if name == "flow_grpo" and options.get("kl", 1) else set()
    policy = {"drift", "ratio", "approx_kl", "clip_high", "clip_low"} | kl
    chains = {"drift", "ratio", "implicit_accuracy", "log_ratio", "clamped"}
    logged = {"ddpo": policy, "flow_grpo": policy, "d3po": chains, "oft": chains}.get(name, set())
    assert always | logged <= rows[0].keys()
    round_ = Store(store.train("up") / "rounds" / "0001")
    assert round_.exists() and len(list(round_.iter_candidates())) == 4
    assert round_.scores("size").frame().value.notna().all()
    assert read_json(store.train("up") / "trained_on.json")["scorers"] == ["size"]


def test_full_weights_and_an_average_of_them(make, monkeypatch):
    """What is exported is the average that keeps half of itself at each of two updates."""
    weights, step = [], PolicyOptimizer.step

    def copied(updates):
        return {name: p.detach().clone() for name, p in updates.policy.net.named_parameters()}

    def watched(updates):
        weights.extend([] if weights else [copied(updates)])
        found = step(updates)
        weights.append(copied(updates))
        return found

    monkeypatch.setattr(PolicyOptimizer, "step", watched)
    store, recipe = make(train={"lora": None, "learning_rate": 1e-4}, ema=0.5, rounds=1, updates=2, **QUICK)
    assert run_train(store, recipe, "up")["done"]
    assert (store.train("up") / "final" / "model_index.json").is_file()
    final = safetensors.torch.load_file(store.train("up") / "final" / "unet" / "diffusion_pytorch_model.safetensors")
    start, first, second = weights
    assert any(not torch.equal(first[key], second[key]) for key in final)
    for key, tensor in final.items():
        expected = (start[key].double() + first[key].double()) / 4 + second[key].double() / 2
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)


def test_resume_equals_an_uninterrupted_training(make):
    settings = {"rounds": 3, "ema": 0.5, "watch_every": 1, "watch_requests": 1, "statistics": "running", "minimum": 2}
    whole, recipe = make(where="whole", **QUICK, **settings)
    run_train(whole, recipe, "up")
    parts, recipe = make(where="parts", **QUICK, **settings)
    assert not run_train(parts, recipe, "up", limit=1)["done"]
    assert run_train(parts, recipe, "up", limit=1)["rounds"] == 2
    assert run_train(parts, recipe, "up")["done"]
    assert numbers(parts) == numbers(whole)
    for key, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(parts)[key])
    assert (whole.train("up") / "watch" / "round-0003.png").is_file() and (whole.train("up") / "best").is_dir()


KILLS = """
import os, signal, sys
from prefkit.config import reader as recipe
from prefkit.models.lora.adapters import add_lora
from prefkit.models.load.pipeline import load_pipeline
from prefkit.store import Store
from prefkit.train import checkpoint, export
from prefkit.train.online import run
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.rounds import RoundWriter
from prefkit.train.optimizers import PolicyOptimizer
from prefkit.train.monitor.sample_monitor import SampleMonitor
from prefkit.train.run import run_train
from prefkit.types import Request

MOMENTS = [
    (checkpoint, "save", 1, True), (RoundWriter, "create", 1, True), (RoundWriter, "write", 1, True),
    (PolicyOptimizer, "step", 1, True), (OnlineTrainer, "round", 1, True), (checkpoint, "save", 1, False),
    (PolicyOptimizer, "step", 3, True), (SampleMonitor, "evaluate", 1, True), (export, "write_json", 1, False),
]
store = Store(sys.argv[1])
pipe = load_pipeline(recipe.read(store.folder / "recipe.yaml").model.base)  # imports are done once, before the forks
add_lora(pipe.unet, 4, 4, None, 0.0, seed=0)
for place, name, number, after in MOMENTS:
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (name, number)
        continue
    inner, calls = getattr(place, name), []

    def killing(*args, **kwargs):
        calls.append(name)
        found = inner(*args, **kwargs) if after or len(calls) < number else None
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(place, name, killing)
    run_train(store, recipe.read(store.folder / "recipe.yaml"), "up")
    os._exit(0)
"""


def test_a_training_killed_again_and_again_equals_an_uninterrupted_one(make, forks):
    """kill -9 before and after everything that is written, one after the other, in one training."""
    settings = {"rounds": 2, "updates": 2, "ema": 0.5, "watch_every": 1, "watch_requests": 1, "minimum": 2}
    whole, recipe = make(where="whole", **QUICK, **settings)
    run_train(whole, recipe, "up")
    store, recipe = make(where="killed", **QUICK, **settings)
    (store.folder / "recipe.yaml").write_text(reader.dump(recipe))
    done = forks.run(store.folder, code=KILLS, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (store.train("up") / "final").is_dir() and not (store.train("up") / "result.json").exists()
    run_train(store, recipe, "up")
    assert numbers(store) == numbers(whole)
    for where in ("final", "best"):
        assert all(torch.equal(tensor, adapter(store, where)[key]) for key, tensor in adapter(whole, where).items())
    for number in ("0000", "0001"):
        mine, theirs = (Store(s.train("up") / "rounds" / number).scores("size").frame() for s in (store, whole))
        assert mine.equals(theirs)


@pytest.mark.parametrize(
    ("name", "sides", "labels"), [("sft", 1, {1.0}), ("kto", 1, {0.0, 1.0}), ("lpo", 3, {0.0, 1.0})]
)
def test_objectives_on_winners_singles_and_lists_see_those(make, monkeypatch, name, sides, labels):
    from prefkit.train.trainer import Trainer

    seen = []
    losses = Trainer.losses

    def watched(loop, batch):
        seen.append(batch)
        return losses(loop, batch)

    monkeypatch.setattr(Trainer, "losses", watched)
    pair = {"all": Pair(use="all_pairs", normalise="none", tie=0)}
    store, recipe = make(objective=Choice(name), rounds=1, samples=3, updates=3, pair="all", **QUICK)
    run_train(store, replace(recipe, pair=pair), "up")
    assert {len(group.images) for batch in seen for group in batch.members} == {sides}
    assert {label for batch in seen for label in batch.groups.label.tolist()} == labels


@pytest.mark.parametrize("name", ["linear", "kto", "nft"])
def test_what_offline_objectives_remember_survives_a_pause(make, name):
    """linear: its moving reference; kto: its running baseline; nft: the policy that samples."""
    whole, recipe = make(where="whole", objective=Choice(name), rounds=2, **QUICK)
    run_train(whole, recipe, "up")
    parts, recipe = make(where="parts", objective=Choice(name), rounds=2, **QUICK)
    run_train(parts, recipe, "up", limit=1)
    run_train(parts, recipe, "up")
    assert numbers(parts) == numbers(whole) and numbers(whole)[0]["loss"] != numbers(whole)[1]["loss"]
    assert all(torch.equal(tensor, adapter(parts)[key]) for key, tensor in adapter(whole).items())


BOX = """
from dataclasses import dataclass
from prefkit.types import Score, ScorerSpec

class Box:
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options=None): pass
    def spec(self): return ScorerSpec("box", "1")
    def load(self, device, dtype): pass
    def score(self, batch):
        return [Score(1.0, {"box_left": 0.0, "box_top": 0.0, "box_right": 0.5, "box_bottom": 1.0}) for _ in batch]
"""

SCORERS = """
import itertools
import threading
import time

calls = itertools.count()

def some_fail(images, prompts):  # of ten, the third gives NaN and the eighth nothing
    values = []
    for image in images:
        number = next(calls) % 10
        values.append({2: float("nan"), 7: None}.get(number, 1 + number % 3))
    return values

def one_hangs(images, prompts):
    if next(calls) == 1:
        threading.Event().wait()
    return [sum(image.convert("L").resize((1, 1)).getdata()) for image in images]

def broken(images, prompts):
    raise RuntimeError("out of order")

def silent(images, prompts):
    time.sleep(30)

def same(images, prompts):
    return [1] * len(images)
"""


def with_scorer(make, tmp_path, name, **online):
    (tmp_path / "scorers.py").write_text(SCORERS)
    score = {"mine": Score(use=f"{tmp_path}/scorers.py:{name}", batch_size=1)}
    return make(score=score, rewards={"mine": 1.0}, **QUICK, **online)


def test_failed_rewards_are_left_out_and_counted(make, tmp_path):
    """A fifth of them, as NaN and as nothing: no gradient comes from these samples, and the others' group goes on."""
    store, recipe = with_scorer(make, tmp_path, "some_fail", samples=10, requests=1, statistics="group")
    run_train(store, recipe, "up")
    assert [row["failed"] for row in lines(store)] == [2, 2]
    for row, number in zip(lines(store), ("0000", "0001"), strict=True):
        frame = Store(store.train("up") / "rounds" / number).scores("mine").frame()
        assert frame.value.isna().sum() == 2 and frame.error[frame.value.isna()].str.len().min() > 0
        assert row["reward"] == pytest.approx(frame.value.dropna().mean()) and frame.value.min() >= 1
        assert row["reward_std"] == pytest.approx(frame.value.dropna().std(ddof=0))


def test_a_reward_that_never_comes_costs_its_samples_alone(make, tmp_path):
    store, recipe = with_scorer(make, tmp_path, "one_hangs", rounds=1, sample_batch=2, reward_timeout=1.0)
    run_train(store, recipe, "up")
    (row,) = lines(store)
    assert row["failed"] == 2 and row["grad_norm"] > 0
    frame = Store(store.train("up") / "rounds" / "0000").scores("mine").frame()
    assert frame.error.dropna().unique().tolist() == ["no answer within 1 s (running: mine)"]


@pytest.mark.parametrize(("name", "said"), [("broken", "out of order"), ("silent", "no answer within 0.5 s")])
def test_rewards_that_never_come_stop_the_training_with_their_reason(make, tmp_path, name, said):
    store, recipe = with_scorer(make, tmp_path, name, reward_timeout=0.5)
    with pytest.raises(TrainingError, match=said):
        run_train(store, recipe, "up")
    assert not (store.train("up") / "final").exists()


def test_a_reward_that_is_the_same_for_all_is_told(make, tmp_path):
    store, recipe = with_scorer(make, tmp_path, "same", statistics="group")
    run_train(store, recipe, "up")
    assert [row["flat_groups"] for row in lines(store)] == [2.0, 2.0]
    assert all("loss" not in row for row in lines(store))


def test_what_cannot_work_is_refused_before_anything_is_loaded(make, capsys):
    for changes, said in [
        ({"rewards": {}}, "rewards"),
        ({"rewards": {"nothing": 1.0}}, "nothing"),
        ({"samples": 1, "statistics": "group"}, "2 or more"),
        ({"statistics": "mood"}, "mood"),
        ({"updates": 9}, "updates"),
        ({"requests": 60}, "requests"),
        ({"generator": "other"}, "other"),
        ({"noise": "sde"}, "ddim"),
        ({"pair": "main"}, "main"),
    ]:
        store, recipe = make(**changes)
        with pytest.raises(UsageError, match=said):
            run_train(store, recipe, "up")
    guarded = {"objective": Choice("flow_grpo", {"trust": "guard"}), "noise": "cps"}
    for changes, said in [
        ({"train": {"accumulation": 2}}, "accumulation"),
        ({"train": {"compile": True}}, "compile"),
        ({"kind": "sd3", **guarded}, "cps"),
    ]:
        store, recipe = make(**changes)
        with pytest.raises(UsageError, match=said):
            run_train(store, recipe, "up")
    store, recipe = make(samples=4, statistics="group", rounds=1, **QUICK)
    run_train(store, recipe, "up")
    told = capsys.readouterr().err
    assert "below 12" in told and "8 = 2 requests x 4 each" in told
    store, recipe = make(samples=4, statistics="grouped", rounds=1, **QUICK)
    with pytest.raises(FingerprintError, match="online"):
        run_train(store, recipe, "up")


def test_another_minor_release_of_diffusers_continues_no_training(make, monkeypatch):
    store, recipe = make(rounds=2, **QUICK)
    run_train(store, recipe, "up", limit=1)
    minor = cache_keys._minor
    monkeypatch.setattr(cache_keys, "_minor", lambda name: "99.0" if name == "diffusers" else minor(name))
    with pytest.raises(FingerprintError, match=r"but diffusers 99\.0 .* are installed"):
        run_train(store, recipe, "up")


def test_the_table_tells_the_batch_arithmetic_of_pairs_too(make, capsys):
    from prefkit.config import plugin_options
    from prefkit.train import summary

    _, recipe = make(train={"batch_size": 3, "accumulation": 2}, updates=2, epochs=3, requests=5, samples=4)
    config = recipe.train["up"]
    rows = {
        name: summary.show_online(
            "up", config, config.online, plugin_options.make("objective", name, {}), {"sample_batch": 7}, 2
        )
        for name in ("ddpo", "d3po", "dpo")
    }
    told = {name: (row["updates per round"], row["micro-batch"], "advantages" in row) for name, row in rows.items()}
    assert told["ddpo"] == (
        "6 = 2 x 3 passes, about 10 samples each",
        "3 samples at one step each (sampling: 7 samples)",
        True,
    )
    assert told["d3po"][0] == "6 = 2 x 3 passes, the round's pairs divided evenly" and not told["d3po"][2]
    assert told["dpo"][0] == "6 = 2 x 3 passes, 12 of the round's pairs each (3 x 2 accumulated x 2 processes)"
    assert told["dpo"][1] == "3 pairs (sampling: 7 samples)"
    assert rows["dpo"]["samples per round"] == "20 = 5 requests x 4 each, on 2 processes"


def test_a_group_shares_its_window_however_it_is_cut_into_batches():
    from types import SimpleNamespace as Has

    from prefkit.train.online.loop import OnlineTrainer
    from prefkit.train.online.rounds import samples_of_round

    requests = [Request(name, name) for name in "abcd"]
    active: list[torch.Tensor] = []
    loop = Has(
        learner=Has(records=True),
        online=Has(window=2, window_every=0),
        config=Has(seed=5),
        rollout=Has(
            sampler=Has(call={"num_inference_steps": 9}), sample=lambda p, s, a: active.append(a) or ([], None)
        ),
    )
    asked = samples_of_round(3, requests, 4, 6, seed=5)
    for start in range(0, 24, 5):
        OnlineTrainer._sample_batch(loop, 3, [], asked[start : start + 5])
    groups = torch.cat(active).view(4, 6, 9)
    assert (groups == groups[:, :1]).all() and len({tuple(group[0].tolist()) for group in groups}) > 1


def test_a_drift_between_sampling_and_training_is_explained(make, monkeypatch):
    from prefkit.train.online import step_learner

    check = step_learner.check_drift
    monkeypatch.setattr(step_learner, "check_drift", lambda drift, *rest: check(drift + 1.0, *rest))
    store, recipe = make(max_drift=0.5, **QUICK)
    with pytest.raises(TrainingError, match="precision.*batch size.*guidance"):
        run_train(store, recipe, "up")


def test_the_stop_rule_needs_two_looks_in_a_row():
    from prefkit.train.monitor.sample_monitor import StopRule

    rule = StopRule(0.5)
    looks = [(-0.6, 1.0), (-0.4, 1.0), (-0.6, -1.0), (-0.6, 1.0), (-0.7, 1.2)]
    assert [rule.update(*look) for look in looks] == [False, False, False, False, True]
    assert not any(StopRule(0.0).update(-9, 9) for _ in range(3))
