"""The synthetic world: its rule cannot be won blind, its splits share nothing, its tables agree."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from prefkit.tiny.captions import asked, held_out_outfit
from prefkit.tiny.domain import ITEMS
from prefkit.tiny.rules import NEUTRAL, compatible


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def split_of(rows, split):
    return [row for row in rows if row["split"] == split]


@pytest.fixture
def made(fashion):
    """A world of 60 users without pictures: (wardrobe, users, PFITB rows, GOR rows)."""
    wardrobe, users = fashion.world.make(60, 4, 300, 0)
    rows = [fashion.tables.pfitb(outfit, wardrobe) for outfit in wardrobe.outfits]
    return wardrobe, users, rows, [fashion.tables.gor(o, wardrobe, n) for o in wardrobe.outfits for n in range(4)]


def colour(item):
    return item.split("-")[0]


def piece(item):
    return item.rsplit("-", 1)[0]


def test_two_colours_of_a_family_go_with_exactly_the_family(fashion):
    families = fashion.world.FAMILIES
    for family in families:
        for pair in combinations(family, 2):
            assert {c for c in fashion.rule.COLOURED if fashion.rule.goes_with(c, pair)} == set(family)
    assert max(sum(c in family for family in families) for c in fashion.rule.COLOURED) == 2
    assert not fashion.rule.goes_with("black", ["red"]) and compatible("black", "red")
    assert not fashion.rule.goes_with(None, ["red"])


def test_outfits_obey_the_rule(made):
    wardrobe, _, rows, _ = made
    worn = [outfit.items for outfit in wardrobe.outfits] + list(wardrobe.pool.values())
    for items in worn:
        assert len({wardrobe.items[item].category for item in items}) == 4
        assert all(compatible(a, b) for a, b in combinations(map(colour, items), 2))
        assert not NEUTRAL & set(map(colour, items)) and len(set(map(colour, items))) > 1
    for row in rows:
        wanted = asked(row["prompt"])
        assert ITEMS[wanted.item] == row["category"] and wanted.beside and wanted.colour is None
        assert any(piece(i) == f"{wanted.beside[1]}-{wanted.beside[0]}".replace(" ", "-") for i in row["items"] if i)
        assert row["colours"] == [colour(item) for item in row["items"] if item]


def test_held_out_requests_share_nothing_with_training(made):
    wardrobe, _, rows, _ = made
    train, test = split_of(rows, "train"), split_of(rows, "test")
    assert len(train) == 180 and len(test) == 60 and not {r["user"] for r in train} & {r["user"] for r in test}
    pieces = {split: set() for split in ("train", "test")}
    for outfit in wardrobe.outfits:
        pieces[outfit.split] |= {piece(item) for item in outfit.items}
    pieces["train"] |= {piece(item) for items in wardrobe.pool.values() for item in items}
    assert pieces["test"] and not pieces["test"] & pieces["train"]
    assert not {piece(item) for _, item in wardrobe.worn()} & pieces["test"]  # nor does the expert see them
    for row in rows:
        wanted = asked(row["prompt"])
        assert held_out_outfit(wanted.item, *wanted.beside) == (row["split"] == "test")
    liked = {item for items in wardrobe.history["train"].values() for item in items}
    assert not liked & {item for outfit in wardrobe.outfits for item in outfit.items}  # no answer is in a history


def test_the_rule_cannot_be_won_blind(fashion, made):
    """Exact shares; independently, by counting colours per family."""
    for split in ("train", "test"):
        rows = split_of(made[2], split)
        found = fashion.samplers.measure_pfitb(rows)
        assert found["knows the rule"][0] == 1 and found["copies the named colour"][0] == 1
        assert found["knows the rule and the palette"][0] == 1
        best = max(np.mean([all(compatible(c, o) for o in r["colours"]) for r in rows]) for c in fashion.rule.COLOURED)
        assert best == pytest.approx(1 / 3)
        (fixed,) = (share[0] for name, share in found.items() if name.startswith("best fixed"))
        assert fixed == pytest.approx(best)
        sizes = np.mean([len(family) for family in fashion.world.FAMILIES])
        assert found["seven colours"][0] == pytest.approx(sizes / 7) == pytest.approx(0.3095, abs=1e-4)
        assert found["ten colours"][0] == pytest.approx(sizes / 10)
        # 60 requests, share 1/3: 1.96 standard errors are .12
        assert abs(found["knows the palette"][0] - 1 / 3) < 0.12 and found["knows the rule, other outfit"][0] < 0.45
        sets = fashion.samplers.measure_gor(split_of(made[3], split))
        assert sets["knows the rule and the palette"] == 1 and sets["seven colours"] < 0.02
        assert max(share for name, share in sets.items() if name.startswith("best")) < 0.5


def test_palettes_and_histories(fashion, made):
    wardrobe, users, *_ = made
    for split in ("train", "test"):
        counts = [sum(c in u.palette for u in users if u.split == split) for c in fashion.rule.COLOURED]
        assert max(counts) - min(counts) <= 3
    by_name = {user.name: user for user in users}
    shares = []
    for name, items in wardrobe.history["train"].items():
        assert 10 <= len(items) <= 40 and len(set(items)) == len(items)
        shares.append(np.mean([colour(item) in by_name[name].palette for item in items]))
    assert np.mean(shares) == pytest.approx(fashion.world.IN_PALETTE, abs=0.04)  # about 1500 items: s.e. .01


def test_a_small_world_is_written_with_its_pictures_once(fashion, tmp_path, capsys):
    out = tmp_path / "world"
    arguments = [str(out), "--users", "4", "--requests", "2", "--outfits", "5"]
    assert fashion.world.main(arguments) == 0
    rows, sets = lines(out / "requests.jsonl"), lines(out / "gor.jsonl")
    assert len(rows) == 8 and len(sets) == 32 and {r["split"] for r in rows} == {"train", "test"}
    for row in rows:
        assert all((out / image).is_file() for image in (*row["outfit"], *row["history"], row["truth_image"]))
    capsys.readouterr()
    assert fashion.world.main([str(out), "--measure"]) == 0 and "best fixed colour" in capsys.readouterr().out
    assert fashion.world.main(arguments) == 2 and "exists" in capsys.readouterr().err
    assert fashion.world.main([str(tmp_path / "none"), "--measure"]) == 2
    again = tmp_path / "again"
    fashion.world.write_world(again, 4, 2, 5)
    for file in sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()):
        assert (out / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.parametrize("option", ["--users", "--requests", "--outfits", "--seed"])
def test_a_world_of_impossible_size_is_refused(fashion, tmp_path, capsys, option):
    assert fashion.world.main([str(tmp_path / "world"), option, "-1"]) == 2
    assert option in capsys.readouterr().err and not (tmp_path / "world").exists()


def test_the_scorers_read_the_rule_from_pictures(fashion):
    from prefkit.tiny.scene import Scene, render

    prompt = "a handbag to go with a red dress on a plain mint background"
    shown = [("handbag", "red"), ("handbag", "blue"), ("handbag", "black"), ("clutch", "red")]
    images = [render(Scene(item, c, "mint"), 3) for item, c in shown]
    others = [["red", "orange", "red"]] * 4
    assert fashion.rule.obeys(images, [prompt] * 4, others) == [1, 0, 0, 0]
    assert fashion.rule.in_palette(images, [prompt] * 4, [["black", "red", "pink"]] * 4) == [1, 0, 1, 0]
