"""Outfits: blanks and negatives by what they may be, the loss and the measures in float64, the whole verb."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.fit import epochs
from prefkit.fit import outfits as module
from prefkit.fit.fitters.outfit_compat import OutfitCompatFit
from prefkit.fit.outfits import (
    Catalogue,
    Outfits,
    blanks,
    contexts,
    measure,
    negatives,
    one_negative,
    read_outfits,
    train,
)
from prefkit.score.core import make_scorer
from prefkit.score.embed.outfit_head import OutfitHead
from prefkit.types import Candidate

WIDTH = 6
SETTINGS = OutfitCompatFit(encoder="tiny", learning_rate=0.01, weight_decay=0.0, batch_size=10_000, epochs=1)


@pytest.fixture
def small():
    """40 items of 4 categories, and 30 outfits of two to four items, some with two of one category."""
    rng = np.random.default_rng(0)
    category = np.repeat(np.arange(4), 10)
    catalogue = Catalogue([""] * 40, category, [np.flatnonzero(category == c) for c in range(4)])
    members = np.full((30, 4), -1)
    for row in members:
        count = rng.integers(2, 5)
        row[:count] = rng.choice(40, count, replace=False)
    features = torch.from_numpy(rng.normal(size=(40, WIDTH)).astype(np.float32))
    return catalogue, Outfits(members), features


def head_of(pool="heads", seed=0):
    torch.manual_seed(seed)
    return OutfitHead(WIDTH, 5, 3, pool)


def h(head, x):
    """In float64, x [..., D]."""
    w = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    for layer in ("first", "second"):
        x = x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]
        x = np.where(x > 0, x, 0.01 * x)
    return x


def plain_score(head, others, item):
    others, item = others.double().numpy(), item.double().numpy()
    u = h(head, others).mean(0) if head.pool == "heads" else h(head, others.mean(0))
    return float(
        u @ h(head, item) + head.own.weight[0].detach().double().numpy() @ item + head.own.bias.double().item()
    )


def others_of(outfits, features, row, blank):
    return features[[m for at, m in enumerate(outfits.members[row]) if m >= 0 and at != blank]]


def test_a_blank_is_an_item_that_the_outfit_has(small):
    """Any of them, equally often: no position beyond the last, which the published code trains on."""
    _, outfits, _ = small
    rng = np.random.default_rng(1)
    drawn = np.stack([blanks(outfits, rng) for _ in range(4000)], 1)
    for members, positions in zip(outfits.members, drawn):
        length = int((members >= 0).sum())
        shares = np.bincount(positions, minlength=4) / 4000
        assert shares[length:].sum() == 0 and np.allclose(shares[:length], 1 / length, atol=0.05)


@pytest.mark.parametrize("many", [False, True])
def test_negatives_are_of_the_category_outside_the_outfit_and_all_of_them(small, many):
    catalogue, outfits, _ = small
    rng = np.random.default_rng(2)
    blank = blanks(outfits, rng)
    if many:
        drawn = np.concatenate([negatives(catalogue, outfits, blank, 5, rng) for _ in range(100)], 1)
        one = negatives(catalogue, outfits, blank, 50, rng)
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in one)  # different ones
    else:
        drawn = np.stack([one_negative(catalogue, outfits, blank, rng) for _ in range(300)], 1)
    for row, (members, at) in enumerate(zip(outfits.members, blank)):
        alike = {n for n in range(40) if catalogue.category[n] == catalogue.category[members[at]]}
        assert set(drawn[row].tolist()) == alike - set(members.tolist())


def test_where_no_other_item_is_of_the_category_there_is_no_negative():
    category = np.array([0, 0, 1, 2])
    catalogue = Catalogue([""] * 4, category, [np.array([0, 1]), np.array([2]), np.array([3])])
    outfits = Outfits(np.array([[0, 1, 2, -1], [0, 2, 3, -1]]))
    rng = np.random.default_rng(0)
    assert one_negative(catalogue, outfits, np.array([0, 0]), rng).tolist() == [-1, 1]
    assert one_negative(catalogue, outfits, np.array([2, 1]), rng).tolist() == [-1, -1]
    assert negatives(catalogue, outfits, np.array([2, 0]), 2, rng).tolist() == [[-1, -1], [1, -1]]


def test_held_out_outfits_that_cannot_be_measured_are_said(small):
    """Each of their items is the only one of its category."""
    category = np.array([0, 0, 0, 1, 2])
    catalogue = Catalogue([""] * 5, category, [np.array([0, 1, 2]), np.array([3]), np.array([4])])
    splits = {"train": Outfits(np.array([[0, 3], [1, 4]])), "validation": Outfits(np.array([[3, 4]]))}
    with pytest.raises(UsageError, match="the validation outfits cannot be evaluated: none has a negative"):
        train(head_of(), small[2], catalogue, splits, SETTINGS)


def test_blanks_and_negatives_are_drawn_anew_each_epoch(small, monkeypatch):
    catalogue, outfits, features = small
    seen = []

    def recorded(catalogue, outfits, blank, rng):
        found = one_negative(catalogue, outfits, blank, rng)
        seen.append((blank.tolist(), found.tolist()))
        return found

    monkeypatch.setattr(module, "one_negative", recorded)
    train(head_of(), features, catalogue, {"train": outfits, "validation": outfits}, replace(SETTINGS, epochs=4))
    assert len(seen) == 4
    for a, b in itertools.pairwise(seen):
        assert a[0] != b[0] and a[1] != b[1]


@pytest.mark.parametrize("pool", ["heads", "embeddings"])
def test_a_context_is_the_others_alone(small, pool):
    _, outfits, features = small
    head, blank = head_of(pool), blanks(outfits, np.random.default_rng(3))
    rows = np.array([4, 0, 17])
    found = contexts(head, features, outfits, blank, rows)
    for row, got in zip(rows, found):
        others = others_of(outfits, features, row, blank[row]).double().numpy()
        wanted = h(head, others).mean(0) if pool == "heads" else h(head, others.mean(0))
        assert np.allclose(got.detach().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("pool", ["heads", "embeddings"])
def test_the_loss_of_an_epoch_in_float64(small, pool, monkeypatch):
    """Mean -ln sigmoid(truth - negative) at the start of the only batch, and the sign of Adam's first step."""
    catalogue, outfits, features = small
    drawn, losses = [], []

    def recorded(catalogue, outfits, blank, rng):
        found = one_negative(catalogue, outfits, blank, rng)
        drawn.append((blank, found))
        return found

    class Listening(epochs.Progress):
        def update(self, count, **shown):
            losses.append(shown["loss"])
            super().update(count, **shown)

    monkeypatch.setattr(module, "one_negative", recorded)
    monkeypatch.setattr(epochs, "Progress", Listening)
    head = head_of(pool)
    before = head_of(pool)
    train(head, features, catalogue, {"train": outfits, "validation": outfits}, SETTINGS)
    (blank, against), terms = drawn[0], []
    for row, (at, negative) in enumerate(zip(blank, against)):
        others = others_of(outfits, features, row, at)
        truth = features[outfits.members[row, at]]
        margin = plain_score(before, others, truth) - plain_score(before, others, features[negative])
        terms.append(np.log1p(np.exp(-margin)))
    assert losses == [pytest.approx(np.mean(terms), rel=1e-5)]
    step = {name: (value - before.state_dict()[name]).double() for name, value in head.state_dict().items()}
    place, size = (0, 2), 1e-6
    bumped = []
    for sign in (1, -1):
        other = head_of(pool).double()
        with torch.no_grad():
            other.own.weight[place] += sign * size
        total = 0.0
        for row, (at, negative) in enumerate(zip(blank, against)):
            others, truth = others_of(outfits, features, row, at), features[outfits.members[row, at]]
            total += np.log1p(
                np.exp(plain_score(other, others, features[negative]) - plain_score(other, others, truth))
            )
        bumped.append(total)
    slope = (bumped[0] - bumped[1]) / (2 * size)
    assert float(step["own.weight"][place]) == pytest.approx(-np.sign(slope) * SETTINGS.learning_rate, rel=1e-3)


@pytest.mark.parametrize("pool", ["heads", "embeddings"])
def test_auc_and_fill_in_the_blank_against_a_plain_loop(small, pool):
    catalogue, outfits, features = small
    head, seed, choices = head_of(pool), 5, 4
    auc, hit = measure(head, features, catalogue, outfits, choices, seed)
    again = measure(head, features, catalogue, outfits, choices, seed)
    assert (auc == again[0]).all() and (hit == again[1]).all()
    rng = np.random.default_rng([seed, 1])
    blank = blanks(outfits, rng)
    against = negatives(catalogue, outfits, blank, 100, rng)
    for row, at in enumerate(blank):
        others, truth = others_of(outfits, features, row, at), outfits.members[row, at]
        own = plain_score(head, others, features[truth])
        alike = set(catalogue.of[catalogue.category[truth]].tolist()) - set(outfits.members[row].tolist())
        assert auc[row] == np.mean([plain_score(head, others, features[n]) < own for n in alike])  # all: fewer than 100
        rivals = against[row, : choices - 1]
        assert hit[row] == all(plain_score(head, others, features[n]) < own for n in rivals)
    flat = head_of(pool)
    for parameter in flat.parameters():
        torch.nn.init.zeros_(parameter)
    assert not any(
        found.any() for found in measure(flat, features, catalogue, outfits, choices, seed)
    )  # ties are misses


def table_of(rows, columns=("outfit", "image", "category")):
    return pd.DataFrame(rows, columns=list(columns))


def test_reading_outfits():
    rows = [(f"o{n}", f"{c}{(n + k) % 7}.png", c) for n in range(200) for k, c in enumerate("ab")]
    rows += [("lone", "a0.png", "a"), ("twice", "a1.png", "a"), ("twice", "a1.png", "a")]
    catalogue, splits, short = read_outfits(table_of(rows), (0.1, 0.2))
    assert len(catalogue.files) == 14 and len(catalogue.of) == 2 and short == 2
    sizes = {name: len(found) for name, found in splits.items()}
    assert sum(sizes.values()) == 200 and 20 < sizes["test"] < 60 and 5 < sizes["validation"] < 40
    fewer = read_outfits(table_of(rows[:300]), (0.1, 0.2))[1]
    assert {tuple(r) for r in fewer["test"].members.tolist()} <= {tuple(r) for r in splits["test"].members.tolist()}
    given = table_of([(f"o{n}", f"{c}{n}.png", c, s) for n, s in enumerate(("train", "validation", "test")) for c in "ab"],
                     ("outfit", "image", "category", "split"))  # fmt: skip
    catalogue, splits, _ = read_outfits(given, (0.1, 0.2))
    assert [catalogue.files[m] for m in splits["test"].members[0]] == ["a2.png", "b2.png"]
    with pytest.raises(UsageError, match="two categories"):
        read_outfits(table_of([("o", "x.png", "a"), ("p", "x.png", "b")]), (0.1, 0.1))
    with pytest.raises(UsageError, match="split 'dev'"):
        read_outfits(given.assign(split="dev"), (0.1, 0.1))
    with pytest.raises(UsageError, match="no outfit .* validation, test"):
        read_outfits(given.assign(split="train"), (0.1, 0.1))


@pytest.fixture
def closet(tmp_path):
    """Outfits of one colour: a hat, a coat and a boot, all red or all blue. Ten images each."""
    (tmp_path / "img").mkdir()
    for colour, base in (("red", (190, 20, 20)), ("blue", (20, 20, 190))):
        for n in range(10):
            for part in ("hat", "coat", "boot"):
                tint = tuple(min(255, c + 6 * n * (c > 100)) for c in base)
                Image.new("RGB", (16, 16), tint).save(tmp_path / f"img/{colour}-{part}-{n}.png")
    rng = np.random.default_rng(0)
    rows = [(f"o{o}", f"img/{colour}-{part}-{rng.integers(10)}.png", part)
            for o in range(150) for colour in [("red", "blue")[o % 2]] for part in ("hat", "coat", "boot")]  # fmt: skip
    table_of(rows).to_csv(tmp_path / "outfits.csv", index=False)
    return tmp_path


def fit(cli, closet, *more, out="fitted", encoder="tiny"):
    return cli("fit", "outfit_compat", "--outfits", closet / "outfits.csv", "--encoder", encoder, "--epochs", 40,
               "--out", closet / out, "--json", *more)  # fmt: skip


def candidate(closet, image, *outfit):
    others = [str(closet / "img" / f"{name}.png") for name in outfit]
    return Candidate(image, "r", 0, 0, image=(closet / f"img/{image}.png").read_bytes(), extra={"outfit": others})


@pytest.mark.parametrize("pool", ["heads", "embeddings"])
def test_the_verb_and_the_scorer(closet, cli, pool):
    code, out, err = fit(cli, closet, "--pool", pool)
    assert code == 0, err
    spec = json.loads(out)
    measured = spec["validation"]
    # half of an outfit's rivals are of its own colour, no better and no worse: 0.76 is what can be had
    assert measured["auc"]["low"] > 0.6 and measured["fitb"]["n"] == spec["counts"]["test_outfits"]
    assert {p.name for p in (closet / "fitted").iterdir()} == {
        "spec.json",
        "weights.safetensors",
        "prefkit-checksums.json",
    }
    scorer = make_scorer("outfit_compat", {"model": str(closet / "fitted")})
    scorer.load("cpu", "float32")
    for colour, other in (("red", "blue"), ("blue", "red")):
        others = [f"{colour}-coat-1", f"{colour}-boot-2"]
        right, wrong = scorer.score([candidate(closet, f"{c}-hat-3", *others) for c in (colour, other)])
        assert right.value > wrong.value
    code, _, err = fit(cli, closet, "--pool", pool)
    assert code == 0 and "nothing to do" in err
    code, _, err = fit(cli, closet, "--pool", pool, "--seed", 1)
    assert code == 1 and "settings.seed" in err


def test_the_same_images_give_the_same_features_in_fitting_and_scoring(closet, cli):
    """One preprocessing and one encoder for fitting, context and candidate: the published code has three and two."""
    from prefkit.fit.tables import embed
    from prefkit.score.embed.encoder import Encoder

    assert fit(cli, closet, "--epochs", 2)[0] == 0
    scorer = make_scorer("outfit_compat", {"model": str(closet / "fitted")})
    scorer.load("cpu", "float32")
    names = ["red-hat-0", "red-coat-1", "blue-boot-2"]
    features = embed(Encoder("tiny"), [closet / f"img/{name}.png" for name in names], "cpu", normalize=True)
    (score,) = scorer.score([candidate(closet, *names)])
    assert score.value == pytest.approx(plain_score(scorer.head, features[1:], features[0]), abs=1e-5)


def test_an_encoder_that_has_changed_is_refused(closet, cli):
    """The published code scores with another random projection than it was trained on."""
    import shutil

    from safetensors.torch import load_file, save_file

    from prefkit import tiny

    shutil.copytree(tiny.CLIP, closet / "clip")
    assert fit(cli, closet, "--epochs", 1, encoder=f"local-dir:{closet / 'clip'}")[0] == 0
    make_scorer("outfit_compat", {"model": str(closet / "fitted")})
    (weights,) = (closet / "clip").glob("*.safetensors")
    state = load_file(weights)
    name = next(iter(state))
    state[name] = state[name] + 1
    save_file(state, weights)
    with pytest.raises(UsageError, match="gives other features"):
        make_scorer("outfit_compat", {"model": str(closet / "fitted")})


def test_the_head_does_not_grow_with_the_catalogue(closet, cli):
    """No table of items that is of another length where it is loaded."""
    from safetensors.torch import load_file

    assert fit(cli, closet, "--epochs", 1)[0] == 0
    table = pd.read_csv(closet / "outfits.csv")
    table[table["outfit"].isin([f"o{n}" for n in range(60)])].to_csv(closet / "outfits.csv", index=False)
    assert fit(cli, closet, "--epochs", 1, out="fewer")[0] == 0
    specs = [
        json.loads((closet / name / "spec.json").read_text())["counts"]["train_outfits"] for name in ("fitted", "fewer")
    ]
    assert specs[0] > specs[1]
    shapes = [
        {k: v.shape for k, v in load_file(closet / name / "weights.safetensors").items()}
        for name in ("fitted", "fewer")
    ]
    assert shapes[0] == shapes[1] and Counter(len(s) for s in shapes[0].values()) == {2: 3, 1: 3}


def test_what_is_wrong_with_the_input_is_said(closet, cli):
    code, _, err = cli("fit", "outfit_compat", "--outfits", closet / "outfits.csv", "--out", closet / "x")
    assert code == 2 and "--encoder" in err
    (closet / "img/red-hat-0.png").unlink()
    code, _, err = fit(cli, closet)
    assert code == 2 and "red-hat-0.png, which does not exist" in err
    (closet / "img/red-hat-0.png").write_bytes(b"no image")
    code, _, err = fit(cli, closet)
    assert code == 2 and "could not be read" in err and not (closet / "fitted").exists()
    assert not list(closet.glob(".fitted*"))


def test_a_classifier_as_encoder(closet, cli):
    """The published code uses ResNet-18. Its random weights distinguish colours, which is all that is needed here."""
    from tests.classifier_files import saved

    _, path = saved(closet, "resnet18")
    code, out, err = fit(cli, closet, "--pretrained", path, encoder="torchvision:resnet18")
    assert code == 0, err
    spec = json.loads(out)
    assert spec["encoder"]["library"] == "torchvision" and spec["validation"]["auc"]["low"] > 0.6
    scorer = make_scorer("outfit_compat", {"model": str(closet / "fitted")})
    assert "ResNet18_Weights.IMAGENET1K_V1" in scorer.spec().preprocessing
    scorer.load("cpu", "float32")
    others = ["red-coat-1", "red-boot-2"]
    right, wrong = scorer.score([candidate(closet, f"{colour}-hat-3", *others) for colour in ("red", "blue")])
    assert right.value > wrong.value
    saved(closet, "resnet18", seed=1)
    with pytest.raises(UsageError, match="gives other features"):
        make_scorer("outfit_compat", {"model": str(closet / "fitted")})
