"""SampleEvaluation at what is not trained on, in whole trainings: what stops one, which adapter is the best, what a look samples."""

from __future__ import annotations

import safetensors.torch
import torch

from prefkit.config import Score
from prefkit.models.sample import Sampler
from prefkit.store.files import read_json
from prefkit.train.run import run_train

QUICK = {"generate": {"steps": 3}, "watch_every": 1, "watch_requests": 1}
SCORERS = """
import itertools

up, down = itertools.count(), itertools.count()

def rising(images, prompts):
    return [next(up) for _ in images]

def falling(images, prompts):
    return [-next(down) for _ in images]
"""


def run_of(make, tmp_path, where, watched, rounds, reward="rising"):
    """A training whose scorers give larger (rising) or smaller (falling) numbers from image to image."""
    path = tmp_path / f"{where}.py"
    path.write_text(SCORERS)
    score = {name: Score(use=f"{path}:{name}") for name in ("rising", "falling")}
    watch = {"rewards": {reward: 1.0}, "watch": [watched], "stop_drop": 0.5, "statistics": "group"}
    store, recipe = make(where=where, score=score, rounds=rounds, **QUICK, **watch)
    return store.train("up"), run_train(store, recipe, "up"), lambda: run_train(store, recipe, "up")


def same(one, other):
    a, b = (safetensors.torch.load_file(path / "pytorch_lora_weights.safetensors") for path in (one, other))
    return all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_watched_stops_a_training_and_says_which_adapter_is_the_best(make, tmp_path, capsys):
    """It falls from look to look while the reward rises: two looks after the first are enough, and the first was best."""
    stopped, result, again = run_of(make, tmp_path, "stopped", "falling", 6)
    assert (result["rounds"], result["done"]) == (2, True) and "while the reward rose" in result["stopped"]
    assert "The best policy is in best/" in capsys.readouterr().err
    assert again()["rounds"] == 2 and read_json(stopped / "result.json")["stopped"]
    short, result, _ = run_of(make, tmp_path, "short", "falling", 1)
    assert not result["stopped"] and same(stopped / "best", short / "final")
    assert not same(stopped / "best", stopped / "final")


def test_a_training_goes_on_while_what_is_watched_rises_or_the_reward_falls(make, tmp_path):
    folder, result, _ = run_of(make, tmp_path, "good", "rising", 3)
    assert result["rounds"] == 3 and not result["stopped"] and same(folder / "best", folder / "final")
    _, result, _ = run_of(make, tmp_path, "both", "falling", 3, reward="falling")
    assert result["rounds"] == 3 and not result["stopped"]


def test_a_look_samples_as_users_do_and_always_from_the_same_seeds(make, monkeypatch):
    """Few steps in training, many in evaluation: online.steps is not the generator's."""
    calls, sample = [], Sampler.sample

    def spied(sampler, prompts, seeds, given=None):
        calls.append((sampler.call["num_inference_steps"], tuple(seeds), type(sampler.pipe.scheduler).__name__))
        return sample(sampler, prompts, seeds, given)

    monkeypatch.setattr(Sampler, "sample", spied)
    store, recipe = make(rounds=2, steps=2, **QUICK)
    run_train(store, recipe, "up")
    looks = [call for call in calls if call[0] == 3]
    rounds = [call for call in calls if call[0] == 2]
    assert len(looks) == 3 and len(set(looks)) == 1 and len(rounds) == 2 and len(set(rounds)) == 2
    assert not {seed for _, seeds, _ in looks for seed in seeds} & {seed for _, seeds, _ in rounds for seed in seeds}
