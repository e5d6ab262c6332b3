"""Every strategy with every objective on pairs, one round; and what could not be paired is refused before sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import prefkit
from prefkit.cli.dry_run import plan
from prefkit.config import Choice, Generate, Pair, Score
from prefkit.config.plugin_options import make as make_plugin
from prefkit.errors import PluginError, UsageError
from prefkit.pair.choose import choose_by
from prefkit.train.monitor.sample_monitor import SampleSpec
from prefkit.train.online.pair_learner import PairChooser
from prefkit.train.online.rounds import Round
from prefkit.train.run import run_train
from prefkit.types import Request

QUICK = {"generate": {"steps": 2, "height": 16, "width": 16}}
STRATEGIES = sorted(
    path.stem
    for path in (Path(prefkit.__file__).parent / "pair" / "strategies").glob("*.py")
    if path.stem not in ("__init__", "comparisons", "one_aspect")
)
OPTIONS = {"margin": {"min_gap": 0.01}, "consensus": {"m": 1}}
TWO = {"size": 1.0, "red": 0.5}
RED = "import numpy as np\n\ndef red(images, prompts):\n    return [float(np.asarray(i.convert('RGB'))[..., 0].mean()) for i in images]\n"


def entry(use):
    return Pair(use=use, options=OPTIONS.get(use, {}), tie=0.0, duplicates="keep", degenerate="keep")


LEARN = [(use, objective) for use in STRATEGIES for objective in ("d3po", "dpo")]
LEARN += [("pareto", "kto"), ("consensus", "lpo"), ("threshold_all", "sft")]


def planned(store, recipe):
    """A dry run of the training, which raises what the run would end with."""
    _, error = plan(store, recipe, {"train": None}, [])
    if error is not None:
        raise error


@pytest.mark.parametrize(("use", "objective"), LEARN)
def test_every_strategy_makes_a_round_learn(make, tmp_path, use, objective):
    """d3po learns from steps, dpo from pairs, kto and sft from singles, lpo from lists."""
    (tmp_path / "red.py").write_text(RED)
    store, recipe = make(
        objective=Choice(objective),
        rounds=1,
        samples=4,
        rewards=TWO,
        pair="chosen",
        score={"red": Score(use=f"{tmp_path}/red.py:red")},
        train={"batch_size": 2},
        **QUICK,
    )
    found = run_train(store, replace(recipe, pair={"chosen": entry(use)}), "up")
    assert found["done"] and found["last"]["grad_norm"] > 0 and np.isfinite(found["last"]["loss"])
    adapter = safetensors.torch.load_file(store.train("up") / "final" / "pytorch_lora_weights.safetensors")
    assert any(value.any() for key, value in adapter.items() if "lora_B" in key)


@pytest.mark.parametrize("objective", ["oft", "linear", "sdpo", "mapo"])
def test_other_objectives_on_pairs_learn_by_a_strategy_that_fits_the_whole_table(make, objective):
    store, recipe = make(objective=Choice(objective), rounds=1, samples=4, pair="chosen", **QUICK)
    found = run_train(store, replace(recipe, pair={"chosen": entry("threshold_all")}), "up")
    assert found["done"] and found["last"]["grad_norm"] > 0


def round_of(scores, samples, rewards=None):
    count = len(next(iter(scores.values())))
    asked = [SampleSpec(Request(str(i // samples), "x"), i % samples, i) for i in range(count)]
    round_ = Round(0, asked, list(range(count)))
    round_.scores, round_.rewards = scores, np.full(count, np.nan) if rewards is None else rewards
    return round_


@pytest.mark.parametrize("use", STRATEGIES)
def test_a_round_is_paired_as_the_stage_pairs_a_run(use):
    """The same table, settings and signs give the same pairs, whether `prefkit pair` or a round asks."""
    rng = np.random.default_rng(3)
    scores = {"a": rng.normal(size=24), "b": rng.normal(size=24)}
    scores["b"][5] = np.nan
    signs, weights, groups = {"a": 1.0, "b": -1.0}, {"a": 1.0, "b": 2.0}, np.arange(24) // 4
    pair = Pair(use=use, options=OPTIONS.get(use, {}), weights=weights, ties={"b": 0.2}, missing="drop_request")
    chooser = PairChooser(make_plugin("strategy", use, pair.options, "pair"), pair, signs, 4)
    there = np.flatnonzero(groups != 1)  # the request of the missing score
    columns = {alias: values[there] for alias, values in scores.items()}
    strategy, settings = make_plugin("strategy", use, pair.options, "pair"), Pair(tie=0.1, ties={"b": 0.2})
    offline = choose_by(settings, strategy, columns, signs, weights, groups[there]).pairs
    expected = [(there[w], there[x]) for w, x in zip(offline.win, offline.lose, strict=True)]
    found = chooser.choose(round_of(scores, 4))
    assert found and [(w, x) for w, x, _ in found] == expected
    assert all(w // 4 == x // 4 for w, x, _ in found)


def test_without_an_entry_the_best_reward_meets_the_worst_in_each_group():
    rewards = np.array([0.0, 3.0, 1.0, np.nan, 5.0, 5.0, 5.0, 4.0, 2.0, 2.0, 2.0, 2.0])
    chooser = PairChooser(make_plugin("strategy", "topk_bottomk", {"k": 1}, "pair"), None, {}, 4)
    found = chooser.choose(round_of({"size": rewards * np.nan}, 4, rewards))
    assert found == [(1, 0, 3.0), (4, 7, 1.0)]  # a request met twice in a round is two groups; equals make no pair


@pytest.mark.parametrize(
    ("pair", "changes", "told"),
    [
        (Pair(use="comparisons"), {}, "comparisons needs comparisons by people or judges"),
        (Pair(use="one_aspect"), {}, "one_aspect needs the aspects of stored scores"),
        (Pair(use="topk_bottomk", options={"k": 2}), {"samples": 2}, "topk_bottomk needs 4 samples per request"),
        (Pair(use="consensus"), {}, "m is 2; it must be from 1 to 1"),
        (Pair(weights={"taste": 1.0}), {}, "no score is called taste"),
        (Pair(ties={"taste": 1.0}), {}, "ties contains taste"),
        (Pair(missing="drop"), {}, "missing 'drop' is unknown"),
    ],
)
@pytest.mark.parametrize("objective", ["d3po", "dpo"])
def test_what_no_round_could_be_paired_by_is_refused_before_anything_is_made(make, pair, changes, told, objective):
    store, recipe = make(objective=Choice(objective), pair="chosen", **({"samples": 4} | changes))
    recipe = replace(recipe, pair={"chosen": pair})
    with pytest.raises(UsageError, match=told):
        planned(store, recipe)
    with pytest.raises(UsageError, match=told):
        run_train(store, recipe, "up")
    assert not (store.folder / "train").exists()


BROKEN = """
class Broken:
    def __init__(self, options):
        INIT

    def pairs(self, value, scores):
        ANSWER

plugin = Broken
"""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("return [(0, 0, 1.0)]", "returned the pair .0, 0. with gap 1.0"),
        ("return value.best()", "Broken failed: AttributeError"),
        ("raise SystemExit(0)", "tried to end the program: SystemExit"),
        ("return []", "could not be created: ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("objective", ["d3po", "dpo"])
def test_a_strategy_that_fails_is_refused_before_anything_is_made(make, tmp_path, answer, told, objective):
    (tmp_path / "broken.py").write_text(
        BROKEN.replace("ANSWER", answer).replace("INIT", "1 / 0" if "created" in told else "pass")
    )
    store, recipe = make(objective=Choice(objective), pair="chosen", samples=4)
    recipe = replace(recipe, pair={"chosen": Pair(use=f"{tmp_path}/broken.py:Broken")})
    for act in (planned, lambda store, recipe: run_train(store, recipe, "up")):
        with pytest.raises(PluginError, match=told):
            act(store, recipe)
    assert not (store.folder / "train").exists()


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"steps": 40}, r"train\.up\.steps is 40, but online training does not read it: online\.rounds"),
        ({"checkpoint_every": 5}, r"online\.checkpoint_every counts rounds"),
        ({"validation": 4}, r"train\.up\.validation is 4"),
        ({"stop_drop": 0.0}, r"use online\.stop_drop"),
        ({"time_sampling": "uniform"}, "the objective learns from the denoising steps of the samples"),
    ],
)
def test_settings_that_online_training_does_not_read_are_refused(make, train, told):
    store, recipe = make(train=train)
    for act in (lambda: planned(store, recipe), lambda: run_train(store, recipe, "up")):
        with pytest.raises(UsageError, match=told):
            act()


def test_a_recipe_without_a_generator_is_refused_by_the_dry_run(make):
    store, recipe = make()
    for generate in ({}, {"own": Generate(use="mine.py:Own")}):
        with pytest.raises(UsageError, match="no entry under generate has use: diffusers"):
            planned(store, replace(recipe, generate=generate))


def test_a_warm_up_that_never_ends_is_told(make, capsys):
    store, recipe = make(train={"warmup": 20}, rounds=4, updates=2)
    planned(store, recipe)
    assert "train.up.warmup is 20 steps, but the training has only 8, so" in capsys.readouterr().err
    store, recipe = make(train={"warmup": 8}, rounds=4, updates=2)
    planned(store, recipe)
    assert "warmup" not in capsys.readouterr().err
