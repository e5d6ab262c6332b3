"""Lists and singles made from pairs, the moving reference, and the state of objectives between steps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from prefkit.config import Choice, Lora, plugin_options
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.train.data.groups import groups_of, ranked, singles
from prefkit.train.data.pairs import PairImage, PairRow, PairSource, read_pairs
from prefkit.train.run import Job, fingerprint, make_trainer, run_train
from prefkit.train.setup import ModelLoader, prepare
from prefkit.types import digest


def pair(row, win, lose, gap=None, prompt="a cat", request="r"):
    images = tuple(PairImage(digest(key), i) for i, key in enumerate((win, lose)))
    return PairRow(f"{win}{lose}", row, prompt, request, images, score_gap=gap)


def keys(group):
    return [image.key for image in group.images]


def of(*names):
    return [digest(name) for name in names]


def test_gaps_give_one_ranking_whatever_the_order_of_pairs():
    value = {"a": 3.0, "b": 2.5, "c": 0.4, "d": -1.0}
    pairs = [pair(i, w, lo, value[w] - value[lo]) for i, (w, lo) in enumerate(["ac", "ad", "bc", "bd"])]
    for order in (pairs, pairs[::-1], pairs[1:] + pairs[:1]):
        (found,) = ranked(order, "main")
        assert keys(found) == of("a", "b", "c", "d")
    other = pair(9, "a", "x", 1.0, prompt="a dog", request="s")
    loose = pair(10, "p", "q", 1.0)  # of the same request, but connected with none of the others
    assert [keys(group) for group in ranked([*pairs, other, loose], "main")] == [
        of("a", "b", "c", "d"), of("p", "q"), of("a", "x"),
    ]  # fmt: skip


def test_equal_values_leave_one_image_in_the_list():
    (found,) = ranked([pair(0, "a", "c", 1.0), pair(1, "b", "c", 1.0)], "main")
    assert keys(found) == of("a", "c")


def test_scored_groups_keep_equal_images_and_standardise_what_the_gaps_say():
    """Of values 3, 1, 1, 0: mean 1.25, std sqrt(1.1875); singles have the advantages of their group."""
    pairs = [pair(0, "a", "b", 2.0), pair(1, "a", "c", 2.0), pair(2, "b", "d", 1.0), pair(3, "c", "d", 1.0)]
    (found,) = groups_of(plugin_options.make("objective", "gpo", {}), pairs, "main")
    assert keys(found)[0::3] == of("a", "d") and set(keys(found)) == set(of("a", "b", "c", "d"))
    expected = [(value - 1.25) / 1.1875**0.5 for value in (3, 1, 1, 0)]
    assert found.advantages == pytest.approx(expected) and found.labels == (1.0, 0.0, 0.0, 0.0)
    assert found.flipped().images == found.images[::-1] and found.flipped().advantages == found.advantages
    alone = groups_of(plugin_options.make("objective", "nft", {}), pairs, "main")
    assert [(keys(g)[0], g.advantages[0]) for g in alone] == list(zip(keys(found), found.advantages, strict=True))
    assert len({group.id for group in alone}) == 4


def test_gaps_that_are_missing_or_disagree_are_refused():
    with pytest.raises(UsageError, match="row 7: no score_gap"):
        ranked([pair(7, "a", "b")], "main")
    with pytest.raises(UsageError, match="row 2: score_gap 1 contradicts"):
        ranked([pair(0, "a", "b", 1.0), pair(1, "b", "c", 1.0), pair(2, "a", "c", 1.0)], "main")


def test_an_image_that_ever_won_is_desirable_and_shown_once():
    found = singles([pair(0, "a", "b"), pair(1, "b", "c"), pair(2, "a", "c"), pair(3, "c", "a", prompt="a dog")])
    assert [(group.prompt, keys(group), group.labels) for group in found] == [
        ("a cat", of("a"), (1.0,)),
        ("a cat", of("b"), (1.0,)),
        ("a cat", of("c"), (0.0,)),
        ("a dog", of("c"), (1.0,)),
        ("a dog", of("a"), (0.0,)),
    ]
    assert len({group.id for group in found}) == 5


def test_flipped_lists_are_turned_round_as_a_whole():
    pairs = [pair(i, f"a{i}", f"b{i}", 1.0, request=str(i)) for i in range(40)]
    objective = plugin_options.make("objective", "lpo", {})
    plain, flipped = (groups_of(objective, pairs, "main", flip) for flip in (None, 0))
    turned = [a.images != b.images for a, b in zip(plain, flipped, strict=True)]
    assert 10 < sum(turned) < 30
    assert all(a.images == b.images[::-1] for a, b, t in zip(plain, flipped, turned, strict=True) if t)


def loop_of(store, recipe):
    config, source = recipe.train["dpo"], PairSource.find(store, "main")
    plan = ModelLoader(store, recipe, config, store.train("dpo"))
    data = prepare(plan, read_pairs(source), source, Processes("cpu"))
    return make_trainer(plan, Job("dpo", config), data, Processes("cpu"))


def errors(loop, net, batch):
    with torch.no_grad():
        return loop.residuals(net, batch)["image"].square().flatten(1).mean(1)


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_the_moving_reference_follows_and_the_policy_is_as_before(run, lora):
    store, recipe = run(lora=lora, objective=Choice("linear", {"decay": 0.75}))
    loop = loop_of(store, recipe)
    (batch,) = loop.micro_batches(0)[0]
    start = [p.detach().clone() for p in loop.policy.parameters()]
    first = loop.accumulate([[batch]])
    assert first["margin"] == 0
    loop.update(first)
    own = [p.detach().clone() for p in loop.policy.parameters()]
    for average, before, after in zip(loop.policy.average.weights, start, own, strict=True):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * after)
    policy = errors(loop, loop.policy.net, batch)
    with loop.policy.moving_reference() as net:
        reference = errors(loop, net, batch)
    assert all(torch.equal(p, o) for p, o in zip(loop.policy.parameters(), own, strict=True))
    assert torch.equal(errors(loop, loop.policy.net, batch), policy) and not torch.equal(policy, reference)
    advantage = (reference - policy).view(2, -1)[0].mean().item()
    assert loop.accumulate([[batch]])["win_advantage"] == pytest.approx(advantage, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    "choice",
    [Choice("linear"), Choice("kto", {"beta": 500.0}), Choice("dpo", {"auto_beta": True}), Choice("lpo"), Choice("sdpo")],
    ids=lambda choice: choice.use,
)  # fmt: skip
def test_a_resumed_training_equals_an_uninterrupted_one(run, pair_rows, choice):
    rows = [row | {"score_gap": 1.0} for row in pair_rows(6)]
    found = []
    for where, limits in (("whole", [None]), ("parts", [1, 2, None])):
        store, recipe = run(where=where, rows=rows, objective=choice, learning_rate=1e-2, validation=1)
        for limit in limits:
            run_train(store, recipe, "dpo", limit=limit)
        lines = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if k not in ("seconds", "crc")} for line in lines]
        weights = safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
        found.append(([line for line in kept if "loss" in line], weights))
    assert found[0][0] == found[1][0] and len(found[0][0]) == 4
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[0][1])
    shown = found[0][0][-1]
    remembered = {"kto": "point", "dpo": "beta", "linear": "weight", "sdpo": "loser_share", "lpo": "margin"}
    assert remembered[choice.use] in shown


def test_kto_sees_both_sides_and_its_controls_run(run, pair_rows):
    store, recipe = run(rows=pair_rows(4), objective=Choice("kto"), steps=1, batch_size=8)
    recipe = replace(recipe, train={"dpo": replace(recipe.train["dpo"], controls=True)})
    summary = run_train(store, recipe, "dpo")
    assert summary["pairs"] == 8 and set(summary["controls"]) == {"dpo-sft", "dpo-flipped"}


def test_soft_labels_and_gaps_are_part_of_what_was_trained(run, pair_rows):
    rows = [row | {"p": 0.9, "score_gap": 1.0} for row in pair_rows(2)]
    found = []
    for where, change in (("a", {}), ("b", {"p": 0.8}), ("c", {"score_gap": 2.0})):
        store, recipe = run(where=where, rows=[row | change for row in rows])
        plan = ModelLoader(store, recipe, recipe.train["dpo"], store.train("dpo"))
        pairs = read_pairs(PairSource.find(store, "main"))
        found.append(fingerprint(recipe.train["dpo"], plan, pairs, Processes("cpu"))["pairs"])
    assert len(set(found)) == 3
