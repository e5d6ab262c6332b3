"""Odd sources: rows that are fixed later, labels that are words, invalid numbers, stray files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.errors import UsageError
from prefkit.hub.importing.run import run_import
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts

MAP = {"map": "prompt=p,image_a=a,image_b=b,winner=w"}


def test_rows_that_were_mended_are_read_and_no_others(tmp_path):
    """Rows that the importer rejects: a missing picture in a json, an unknown verdict in a csv."""
    source, store = tmp_path / "hpdv3", Store(tmp_path / "run")
    source.mkdir()
    rows = [{"prompt": f"p{i}", "path1": f"a{i}.png", "path2": f"b{i}.png"} for i in range(4)]
    (source / "x.json").write_text(json.dumps(rows))
    for i in range(4):
        (source / f"a{i}.png").write_bytes(layouts.image(2 * i))
        if i not in (1, 3):
            (source / f"b{i}.png").write_bytes(layouts.image(2 * i + 1))
    assert run_import(store, str(source), max_failed=1.0)["failed"] == 2
    for i, left in ((3, 1), (1, 0)):
        (source / f"b{i}.png").write_bytes(layouts.image(2 * i + 1))
        assert run_import(store, str(source), max_failed=1.0)["failed"] == left
    counts = run_import(store, str(source))
    assert counts["failed"] == 0 and len(store.comparisons("hpdv3").frame()) == 4 and counts["candidates"] == 8
    rows[0]["prompt"] = "another"
    (source / "x.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match="not those that were imported"):
        run_import(store, str(source))


def test_a_cell_that_was_mended_is_read(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    table, store = tmp_path / "T.CSV", Store(tmp_path / "run")
    for word, failed in (("left", 1), ("b", 0)):
        table.write_text(f"p,a,b,w\nhat,0.png,1.png,{word}\ncoat,2.png,3.png,a\n")
        assert run_import(store, str(table), layout="table", flags=MAP, max_failed=1.0)["failed"] == failed
    assert sorted(store.comparisons("table").frame().outcome) == ["a", "b"]


def test_folders_take_captions_a_prompt_for_the_rest_and_images_that_lie_in_no_folder(tmp_path):
    source, store = tmp_path / "pictures", Store(tmp_path / "run")
    for i, name in enumerate(("red_hat/0.png", "red_hat/1.png", "told/2.png", "3.png")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(layouts.image(i))
    (source / "red_hat/1.txt").write_text("a caption")
    (source / "told/prompt.txt").write_text("told")
    assert run_import(store, str(source), layout="folders", name="plain", max_failed=1.0)["failed"] == 1
    assert {r.prompt for r in store.requests()} == {"red hat", "a caption", "told"}
    other = Store(tmp_path / "other")
    run_import(other, str(source), layout="folders", flags={"prompt": "given"})
    assert {r.prompt for r in other.requests()} == {"given", "a caption", "told"}
    assert len(other.candidates("folders").frame()) == 4


def test_two_losers_of_one_name_are_told(tmp_path):
    source = layouts.folders(tmp_path / "wl")
    (source / "l" / "0.webp").write_bytes(layouts.image(30, "WEBP"))
    store = Store(tmp_path / "run")
    assert run_import(store, str(source), max_failed=1.0)["failed"] == 1
    assert len(store.comparisons("folders").frame()) == 2


def pickapic(path: Path, **columns) -> Path:
    images = [layouts.image(i) for i in range(4)]
    rows = {
        "jpg_0": images[:2],
        "jpg_1": images[2:],
        "label_0": [1.0, 0.0],
        "label_1": [0.0, 1.0],
        "caption": ["a", "b"],
    }
    pq.write_table(pa.table(rows | columns), path)
    return path


@pytest.mark.parametrize(
    ("columns", "failed", "outcomes"),
    [
        ({"label_0": ["1", "0"], "label_1": ["0", "1"]}, 0, ["a", "b"]),
        ({"label_0": ["1", "best"]}, 1, ["a"]),
        ({"seed_0": ["7", "8"]}, 2, []),
        ({"seed_0": pa.array([2**64 - 1, 7], pa.uint64())}, 1, ["b"]),
        ({"seed_0": [float("nan"), 7.0]}, 0, ["a", "b"]),  # a missing value, as pandas writes it
    ],
)
def test_labels_and_seeds_that_are_words_or_too_large(tmp_path, columns, failed, outcomes):
    store = Store(tmp_path / "run")
    source = pickapic(tmp_path / "a.parquet", **columns)
    assert run_import(store, str(source), max_failed=1.0)["failed"] == failed
    assert sorted(store.comparisons("pickapic").frame().outcome if outcomes else []) == outcomes


def test_votes_that_are_words_or_no_numbers(tmp_path):
    images = [layouts.image(i) for i in range(6)]
    columns = {
        "prompt": ["a", "b", "c"],
        "image1": images[:3],
        "image2": images[3:],
        "votes_image1": [3.0, float("nan"), 1.0],
    }
    pq.write_table(pa.table(columns | {"votes_image2": ["1", "2", "many"]}), tmp_path / "a.parquet")
    store = Store(tmp_path / "run")
    assert run_import(store, str(tmp_path / "a.parquet"), max_failed=1.0)["failed"] == 1
    assert store.comparisons("rapidata").frame().outcome.tolist() == ["a"]


def test_votes_without_a_name_all_count(tmp_path):
    """Three anonymous rows on one pair are three votes; a named annotator who repeats a verdict has one vote."""
    (tmp_path / "0.png").write_bytes(layouts.image(0))
    (tmp_path / "1.png").write_bytes(layouts.image(1))
    rows = [
        "hat,0.png,1.png,a,",
        "hat,0.png,1.png,a,",
        "hat,1.png,0.png,a,",
        "hat,0.png,1.png,a,jo",
        "hat,0.png,1.png,a,jo",
    ]
    for count, share in ((3, 2 / 3), (5, 3 / 4)):  # the second time, the source has grown
        (tmp_path / "t.csv").write_text("\n".join(["p,a,b,w,j", *rows[:count]]) + "\n")
        store = Store(tmp_path / "run")
        flags = {"map": MAP["map"] + ",judge=j"}
        for _ in range(2):
            run_import(store, str(tmp_path / "t.csv"), layout="table", flags=flags, pairs=True, test_share=0)
            (found,) = pq.read_table(next(store.pairs("table").rglob("*.parquet"))).to_pylist()
            assert found["p"] == pytest.approx(share, abs=1e-12)
    judges = store.comparisons("table").frame().judge
    assert judges.nunique() == len(judges) == 4 and "people" in set(judges)


def test_a_rating_that_is_no_number_is_a_failure_with_a_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(layouts.image(0))
    (tmp_path / "b.png").write_bytes(layouts.image(1))
    lines = [
        {"p": "x", "i": "a.png", "q": "inf"},
        {"p": "y", "i": "b.png", "q": 2},
        {"p": "z", "i": "b.png", "q": float("nan")},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    store = Store(tmp_path / "run")
    run_import(store, str(tmp_path / "t.jsonl"), layout="table", flags={"map": "prompt=p,image_a=i,score.q=q"})
    values = store.scores("table.q").frame().set_index("error").value
    assert values["the rating is inf"] != values["the rating is inf"] and values[values.index.isna()].tolist() == [2.0]
    stored = pq.read_table(store.scores("table.q").parts()[0]).column("value").to_pylist()
    assert sorted(map(str, stored)) == ["2.0", "None"]


def test_rows_without_a_prompt_id_are_not_compared(tmp_path):
    cells = {
        "prompt": ["a", "b"],
        "image": [layouts.image(0), layouts.image(1)],
        "rank": [1, 2],
        "overall_rating": [5, 4],
    }
    pq.write_table(pa.table(cells), tmp_path / "a.parquet")
    store = Store(tmp_path / "run")
    counts = run_import(store, str(tmp_path / "a.parquet"), layout="imagerewarddb", max_failed=1.0)
    assert counts["failed"] == 2 and counts["comparisons"] == 0


def test_a_second_rating_of_an_image_is_told(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(layouts.image(0))
    (tmp_path / "t.csv").write_text("p,i,q\nx,a.png,1\nx,a.png,5\n")
    store = Store(tmp_path / "run")
    for _ in range(2):  # the second time there is nothing new, and nothing is said
        run_import(store, str(tmp_path / "t.csv"), layout="table", flags={"map": "prompt=p,image_a=i,score.q=q"})
    assert store.scores("table.q").frame().value.tolist() == [1.0]
    assert capsys.readouterr().err.count("1 ratings were left out") == 1


def test_what_is_held_out_does_not_join_the_prompts_that_are_trained_on(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    rows = ["hat,0.png,train", "hat,1.png,test", "coat,2.png,test", "coat,3.png,train"]
    (tmp_path / "t.csv").write_text("\n".join(["p,i,s", *rows]) + "\n")
    store = Store(tmp_path / "run")
    flags = {"map": "prompt=p,image_a=i,split=s"}
    assert run_import(store, str(tmp_path / "t.csv"), layout="table", flags=flags, max_failed=1.0)["failed"] == 1
    assert {r.prompt: r.split for r in store.requests()} == {"hat": "train", "coat": "test"}
    named = {r.request_id: r.prompt for r in store.requests()}
    owners = store.candidates("table").frame().request_id.map(named)
    assert sorted(owners) == ["coat", "coat", "hat"]  # what the source trains on may be held out, not the other way


def test_a_probability_does_not_turn_a_verdict_round(tmp_path):
    """A column with the winner's confidence, read as the probability that image_a is better, made every winner a."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    (tmp_path / "t.csv").write_text("p,a,b,w,c\nhat,0.png,1.png,b,0.9\ncoat,2.png,3.png,a,0.9\n")
    store, flags = Store(tmp_path / "run"), {"map": MAP["map"] + ",probability=c"}
    counts = run_import(store, str(tmp_path / "t.csv"), layout="table", flags=flags, max_failed=1.0)
    assert counts["failed"] == 1 and store.comparisons("table").frame().outcome.tolist() == ["a"]


@pytest.mark.parametrize("shares", [[12, 7], [7, 12]])
def test_hpdv3s_first_image_is_the_preferred_one(tmp_path, shares):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    row = {"prompt": "hat", "path1": "0.png", "path2": "1.png", "choice_dist": shares}
    (tmp_path / "train.json").write_text(json.dumps([row]))
    store = Store(tmp_path / "run")
    run_import(store, str(tmp_path / "train.json"), pairs=True)
    (found,) = pq.read_table(next(store.pairs("hpdv3").rglob("*.parquet"))).to_pylist()
    winner = found["jpg_0"] if found["label_0"] == 1 else found["jpg_1"]
    assert winner == layouts.image(0) and found["p"] == pytest.approx(12 / 19)
