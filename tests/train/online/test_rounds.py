"""What happens inside a round: rewards beside the sampling, masks with their samples, steps dealt out to updates."""

from __future__ import annotations

import threading
from types import SimpleNamespace as Has

import pytest
import torch

from prefkit.config import Choice, Score
from prefkit.score.scorer_set import ScorerSet
from prefkit.train.objectives.oft import OFT
from prefkit.train.online.rollout import Rollout
from prefkit.train.online.step_learner import StepLearner
from prefkit.train.run import run_train

QUICK = {"generate": {"steps": 3}}


def test_rewards_are_computed_while_the_next_batch_is_sampled(make, monkeypatch):
    sampled, further = [], threading.Event()
    sample, score = Rollout.sample, ScorerSet.score

    def sampling(rollout, *given):
        sampled.append(len(given[0]))
        if len(sampled) == 2:
            further.set()
        return sample(rollout, *given)

    def scoring(jury, groups):
        assert further.wait(60), "the second batch is sampled only when the first has its rewards"
        return score(jury, groups)

    monkeypatch.setattr(Rollout, "sample", sampling)
    monkeypatch.setattr(ScorerSet, "score", scoring)
    store, recipe = make(rounds=1, sample_batch=2, **QUICK)
    assert run_train(store, recipe, "up")["done"] and sampled == [2, 2]


BOX = """
from prefkit.types import Score, ScorerSpec

class Box:  # the left half of a group's first image, the right half of its second, all of its third
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options=None): pass
    def spec(self): return ScorerSpec("box", "1")
    def load(self, device, dtype): pass
    def score(self, batch):
        sides = [(0.0, 0.5), (0.5, 1.0)]
        boxes = [{"box_left": l, "box_top": 0.0, "box_right": r, "box_bottom": 1.0} for l, r in sides] + [{}]
        return [Score(1.0, boxes[c.index]) for c in batch]
"""


def test_every_step_is_masked_by_its_own_images_box(make, tmp_path, monkeypatch):
    (tmp_path / "box.py").write_text(BOX)
    seen, rounds = [], []
    loss, learn = OFT.loss, StepLearner.learn
    monkeypatch.setattr(OFT, "loss", lambda own, new, *rest: seen.append(new) or loss(own, new, *rest))
    monkeypatch.setattr(
        StepLearner, "learn", lambda own, round_, after: rounds.append(round_) or learn(own, round_, after)
    )
    score = {"box": Score(use=f"{tmp_path}/box.py:Box")}
    store, recipe = make("sd3", objective=Choice("oft"), score=score, rounds=1, samples=3, mask="box", **QUICK)
    run_train(store, recipe, "up")
    states = rounds[0].chains.states[:, 1:]
    width, met = states.shape[-1] // 2, set()
    for new in seen:
        for sample, mask in zip(new.sample, new.mask, strict=True):
            (place,) = {int(i) for i in (states == sample).flatten(2).all(2).nonzero()[:, 0]}
            index = rounds[0].candidates[place].index
            expected = torch.ones_like(sample)
            if index < 2:
                expected[..., slice(width, None) if index == 0 else slice(0, width)] = 0
            assert torch.equal(mask, expected)
            met.add(index)
    assert len(met) >= 2  # pairs are of the best and the worst of three


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 6), (0.5, 3), (0.01, 1)])
def test_an_update_is_a_mean_over_samples_of_means_over_steps_drawn_for_each(fraction, count):
    """As DDPO: every sample has an order of its own, drawn again in every pass."""
    online = Has(timestep_fraction=fraction)
    chains = Has(conditions=["c"] * 5, learnable=lambda place: torch.arange(6) + 10)
    learner = Has(config=Has(seed=1, batch_size=2), online=online, rollout=Has(signature=lambda condition: condition))
    learner._steps = lambda *given: StepLearner._steps(learner, *given)
    round_, orders = Has(number=4, rows={i: i for i in range(5)}, chains=chains), []
    for epoch in range(2):
        taken = {unit: [] for unit in [(0,), (3,), (4,)]}
        weight = dict.fromkeys(taken, 0.0)
        for units, steps, shares in StepLearner._micro_batches(learner, round_, list(taken), epoch):
            assert len(units) <= 2
            for unit, step, share in zip(units, steps.tolist(), shares.tolist(), strict=True):
                taken[unit].append(step)
                weight[unit] += share
        assert list(weight.values()) == pytest.approx([1.0] * 3, rel=1e-6)
        assert all(
            len(steps) == len(set(steps)) == count and set(steps) <= set(range(10, 16)) for steps in taken.values()
        )
        orders += [tuple(steps) for steps in taken.values()]
    assert len(set(orders)) > (1 if count == 1 else 4)
    assert [tuple(StepLearner._steps(learner, round_, (i,), i, 0)) for i in (0, 3, 4)] == orders[:3]
