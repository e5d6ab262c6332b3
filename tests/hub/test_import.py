"""Each published layout, imported, and the verdicts that it yields."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.cli.main import run as cli
from prefkit.errors import StoreError, TooManyFailures, UsageError
from prefkit.hub.importing.run import run_import
from prefkit.store import Store
from prefkit.types import split_of

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts


def imported(source: Path, run: Path, **options) -> tuple[Store, dict]:
    store = Store(run)
    return store, run_import(store, str(source), **options)


def verdicts(store: Store, name: str) -> list[tuple[str, str | None]]:
    frame = store.comparisons(name).frame()
    return list(zip(frame.outcome, frame.probability))


def test_pickapic(tmp_path):
    layouts.pickapic(tmp_path / "s")
    layouts.pickapic(tmp_path / "s", 1, split="test_unique")
    store, counts = imported(tmp_path / "s", tmp_path / "run")
    # test_unique comes first by name and shows the first training pair again
    assert counts["items"] == 5 and counts["failed"] == 0 and counts["known"] == 2
    assert sorted(store.comparisons("pickapic").frame().outcome) == ["a", "a", "b", "tie"]
    candidates = list(store.iter_candidates())
    assert {c.prompt for c in candidates} == set(layouts.PROMPTS)
    assert all(c.id == c.sha256 == hashlib.sha256(c.image).hexdigest() for c in candidates)
    assert {c.extra["model"] for c in candidates} == {"dreamlike", "sdxl"}
    assert {r.split for r in store.requests() if r.prompt != "a red hat"} == {"train"}
    judges = set(store.comparisons("pickapic").frame().judge)
    assert len(judges) == 2 and all(j != "7" and j.startswith("user-") for j in judges)


def test_the_time_of_a_vote_is_kept(tmp_path):
    path = layouts.pickapic(tmp_path / "s", 4) / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    dates = [datetime(2023, 3, 4, 5, 6, 7, 250_000), None, datetime(1969, 12, 31, 23, 59, 58), datetime(2040, 1, 1)]
    wanted = [
        datetime(2023, 3, 4, 5, 6, 7, 250_000, UTC).timestamp(),
        -2.0,
        datetime(2040, 1, 1, tzinfo=UTC).timestamp(),
    ]
    places = table.schema.get_field_index("created_at")
    for name, zone in (("naive", None), ("utc", "UTC"), ("berlin", "Europe/Berlin")):
        column = pa.array(dates, pa.timestamp("ns")).cast(pa.timestamp("ns", zone))
        pq.write_table(table.set_column(places, "created_at", column), path)
        run_import(Store(tmp_path / name), str(tmp_path / "s"), name="p")
        found = Store(tmp_path / name).comparisons("p").frame().sort_values("time").time
        assert sorted(found.dropna()) == sorted(wanted) and found.isna().sum() == 1


def test_open_image_preferences(tmp_path):
    store, counts = imported(layouts.chosen_rejected(tmp_path / "s"), tmp_path / "run")
    assert counts["comparisons"] == 2
    row = store.comparisons("open_image_preferences").frame().iloc[0]
    assert row.id_a == hashlib.sha256(layouts.image(0)).hexdigest() and row.outcome == "a"
    assert store.requests()[0].extra["category"] == "Cinematic"


def test_rapidata(tmp_path):
    store, _ = imported(layouts.rapidata(tmp_path / "s"), tmp_path / "run")
    assert verdicts(store, "rapidata") == [("a", 20 / 26), ("tie", 0.5)]
    assert [r.split for r in store.requests()] == [split_of(p, 0.1) for p in layouts.PROMPTS[:2]]


def test_hpdv2_takes_every_annotators_ranking(tmp_path):
    store, counts = imported(layouts.hpdv2(tmp_path / "s"), tmp_path / "run")
    frame = store.comparisons("hpdv2").frame()
    assert counts["comparisons"] == 1 + 2 * 3 and counts["candidates"] == 5
    assert {r.prompt: r.split for r in store.requests()} == {"a red hat": "train", "a blue boot": "test"}
    ids = [hashlib.sha256(layouts.image(9 + i, "JPEG")).hexdigest() for i in range(3)]
    of_b = frame[(frame.id_a == ids[0]) & (frame.id_b == ids[1])]
    assert sorted(of_b.outcome) == ["a", "b"] and of_b.judge.nunique() == 2
    loser, winner = (hashlib.sha256(layouts.image(i, "JPEG")).hexdigest() for i in (0, 1))
    assert frame[(frame.id_a == loser) & (frame.id_b == winner)].outcome.tolist() == ["b"]
    # the archives were unpacked for the import only, so the images are inside the run
    assert all(c.image for c in store.iter_candidates()) and not list((tmp_path / "run" / ".imports").glob("*unpacked"))


def test_hpdv3_reads_a_split_archive(tmp_path):
    store, counts = imported(layouts.hpdv3(tmp_path / "s"), tmp_path / "run")
    assert counts["candidates"] == 4 and verdicts(store, "hpdv3") == [("a", 0.9), ("a", 0.9)]


def test_imagerewarddb_gives_ratings_and_rankings(tmp_path):
    store, counts = imported(layouts.imagerewarddb(tmp_path / "s"), tmp_path / "run")
    assert counts["candidates"] == 6 and list(store.comparisons("imagerewarddb").frame().outcome) == [
        "a",
        "a",
        "tie",
        "b",
        "b",
        "a",
    ]
    ratings = store.scores("imagerewarddb.overall_rating").frame().set_index("id").value
    assert ratings[hashlib.sha256(layouts.image(0, "WEBP")).hexdigest()] == 6.0
    spec = store.scores("imagerewarddb.rank").spec()
    assert not spec["higher_is_better"] and spec["scope"] == "within_request"


def test_folders_stay_where_they_are_or_are_copied(tmp_path):
    source = layouts.folders(tmp_path / "s")
    store, counts = imported(source, tmp_path / "run")
    assert counts["comparisons"] == 2
    stays = list(store.iter_candidates())
    assert all(c.image is None and Path(c.path).is_file() and c.pil().size == (16, 16) for c in stays)
    copied, _ = imported(source, tmp_path / "copied", keep=False)
    assert all(c.image for c in copied.iter_candidates())
    assert {c.id for c in copied.iter_candidates()} == {c.id for c in stays}


def test_folders_of_other_names_and_one_per_prompt(tmp_path):
    source = layouts.folders(tmp_path / "s", ("good", "bad"))
    _, counts = imported(source, tmp_path / "run", layout="folders", flags={"win": "good", "lose": "bad"})
    assert counts["comparisons"] == 2
    for name in ("a_red_hat", "coat"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "p" / name / f"{i}.png").write_bytes(layouts.image(len(name) * 10 + i))
    (tmp_path / "p" / "coat" / "prompt.txt").write_text("a green coat")
    store, counts = imported(tmp_path / "p", tmp_path / "run2", layout="folders")
    assert counts["candidates"] == 6 and counts["comparisons"] == 0
    assert {r.prompt for r in store.requests()} == {"a red hat", "a green coat"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_any_table_by_map(tmp_path, kind):
    rows = [
        {"text": "a hat", "one": f"{i}.png", "two": f"{i + 5}.png", "who": who, "best": best}
        for i, (who, best) in enumerate([("x", "left"), ("y", "right"), ("x", "both"), ("y", "skip")])
    ]
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    path = tmp_path / f"votes.{kind}"
    if kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        layouts.pq.write_table(layouts.pa.Table.from_pylist(rows), path)
    flags = {
        "map": "prompt=text,image_a=one,image_b=two,winner=best,judge=who",
        "values": "a=left,b=right,tie=both|neither,none=skip",
    }
    store, counts = imported(path, tmp_path / "run", layout="table", name="votes", flags=flags)
    assert [o for o, _ in verdicts(store, "votes")] == ["a", "b", "tie"] and counts["candidates"] == 8
    assert store.comparisons("votes").frame().judge.nunique() == 2


def test_a_table_of_votes_and_ratings(tmp_path):
    (tmp_path / "a.png").write_bytes(layouts.image(0))
    (tmp_path / "b.png").write_bytes(layouts.image(1))
    (tmp_path / "t.csv").write_text("p,x,y,n,m,beauty,part\nhat,a.png,b.png,3,1,7.5,val\n")
    flags = {"map": "prompt=p,image_a=x,image_b=y,votes_a=n,votes_b=m,score.beauty=beauty,split=part"}
    store, _ = imported(tmp_path / "t.csv", tmp_path / "run", layout="table", flags=flags)
    assert verdicts(store, "table") == [("a", 0.75)] and store.requests()[0].split == "val"
    assert store.scores("table.beauty").frame().value.tolist() == [7.5]


def test_one_image_under_two_prompts_is_two_candidates(tmp_path):
    (tmp_path / "a.png").write_bytes(layouts.image(0))
    (tmp_path / "t.csv").write_text("p,x\nhat,a.png\nboot,a.png\n")
    store, _ = imported(tmp_path / "t.csv", tmp_path / "run", layout="table", flags={"map": "prompt=p,image_a=x"})
    frame = store.candidates("table").frame()
    assert len(frame) == 2 and frame.request_id.nunique() == 2 and frame.sha256.nunique() == 1


def test_an_import_that_is_repeated_changes_nothing_and_one_that_grew_adds(tmp_path):
    source = layouts.pickapic(tmp_path / "s", 3)
    store, first = imported(source, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*")}
    _, second = imported(source, tmp_path / "run")
    assert second == first and {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*")} == before
    layouts.pickapic(tmp_path / "s", 4)
    _, third = imported(source, tmp_path / "run")
    assert third["items"] == 4 and len(store.comparisons("pickapic").frame()) == 4
    layouts.pickapic(tmp_path / "s", 4, labels=(0.0, 1.0))
    with pytest.raises(UsageError, match="not those that were imported"):
        imported(source, tmp_path / "run")


def test_a_mended_image_is_taken_on_the_next_run(tmp_path):
    source = layouts.folders(tmp_path / "s")
    whole = (source / "w" / "1.png").read_bytes()
    (source / "w" / "1.png").write_bytes(whole[:200])
    with pytest.raises(TooManyFailures, match="1 of 2 rows") as error:
        imported(source, tmp_path / "run")
    assert error.value.counts["failed"] == 1 and error.value.counts["comparisons"] == 1
    state = json.loads((tmp_path / "run" / ".imports" / "folders.json").read_text())
    assert "1.png" in next(iter(state["failed"].values()))
    (source / "w" / "1.png").write_bytes(whole)
    _, counts = imported(source, tmp_path / "run")
    assert counts["failed"] == 0 and counts["comparisons"] == 2


def test_a_name_is_not_used_for_two_sources(tmp_path):
    imported(layouts.folders(tmp_path / "s"), tmp_path / "run")
    with pytest.raises(UsageError, match="--name"):
        imported(layouts.folders(tmp_path / "t"), tmp_path / "run")
    imported(tmp_path / "t", tmp_path / "run", name="second")


def test_what_cannot_be_told_by_looking_is_asked(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for layout in (None, "table"):  # a table of unknown columns is asked for them, and none of it is stored
        with pytest.raises(UsageError, match="no column is named like a prompt.* --map prompt=COLUMN,chosen=COLUMN"):
            imported(tmp_path / "x.csv", tmp_path / "run", layout=layout)
    with pytest.raises(UsageError, match="--map lacks prompt"):
        imported(tmp_path / "x.csv", tmp_path / "run", layout="table", flags={"map": "image_a=a"})
    with pytest.raises(UsageError, match="no column c"):
        imported(tmp_path / "x.csv", tmp_path / "run", layout="table", flags={"map": "prompt=c,image_a=a"})
    with pytest.raises(UsageError, match="owner/name"):
        imported(tmp_path / "nothing here", tmp_path / "run", layout="pickapic")
    assert not (tmp_path / "run").exists()


def test_from_the_command_line_to_training_pairs(tmp_path, capsys):
    source = layouts.pickapic(tmp_path / "s", 4)
    run = tmp_path / "run"
    # flags between the two positionals, as people write them
    assert cli(["import", str(source), "--as", "pickapic", "--name", "pap", "--pairs", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["pairs"].values()) == 3 and found["comparisons"] == 4
    from prefkit.train.data.pairs import PairSource, read_pairs

    rows = read_pairs(PairSource.find(Store(run), "pap"))
    assert len(rows) == 3
    outcome = Store(run).comparisons("pap").frame()
    won = {
        (r.id_a, r.id_b) if r.outcome == "a" else (r.id_b, r.id_a) for r in outcome.itertuples() if r.outcome != "tie"
    }
    assert {(row.win.key, row.lose.key) for row in rows} == won
    assert cli(["import", str(source)]) == 2
    assert "prefkit import SOURCE RUN" in capsys.readouterr().err
    assert cli(["import", str(source), str(run), "--mapp", "x=y"]) == 2
    assert cli(["import", "--help"]) == 0 and "--map" in capsys.readouterr().out


def test_pairs_join_votes_and_leave_ties_out(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    votes = ["0,1,a,x", "0,1,a,y", "1,0,a,z", "0,2,a,x", "2,0,a,y", "1,2,b,x"]
    (tmp_path / "t.csv").write_text("i,j,w,who,p\n" + "\n".join(f"{v},hat" for v in votes).replace(",", ".png,", 0))
    text = "i,j,w,who,p\n" + "".join("{}.png,{}.png,{},{},hat\n".format(*v.split(",")) for v in votes)
    (tmp_path / "t.csv").write_text(text)
    flags = {"map": "prompt=p,image_a=i,image_b=j,winner=w,judge=who"}
    _, counts = imported(tmp_path / "t.csv", tmp_path / "run", layout="table", flags=flags, pairs=True, test_share=0.0)
    rows = layouts.pq.read_table(tmp_path / "run" / "pairs" / "table" / "train").to_pylist()
    assert counts["pairs"] == {"train": 2}
    assert sorted(round(row["p"], 6) for row in rows) == [round(2 / 3, 6), 1.0]
    assert all(row["seed_0"] == -1 and {row["label_0"], row["label_1"]} == {0.0, 1.0} for row in rows)


KILL = """
import os, sys
sys.path.insert(0, {tests!r})
from prefkit.hub.importing import run as imports
from prefkit.hub.importing import sink as importing
from prefkit.store import Store
from prefkit.store.table import Table
importing.FLUSH_ITEMS = 6
when, seen, append = int(sys.argv[1]), [0], Table.append
def dying(self, rows):
    seen[0] += bool(rows)
    if rows and seen[0] == when:
        os.kill(os.getpid(), 9)
    append(self, rows)
Table.append = dying
imports.run_import(Store({run!r}), {source!r}, pairs=True)
"""


@pytest.mark.parametrize("when", [1, 3, 5, 8])
def test_a_killed_import_ends_up_the_same(tmp_path, when):
    source = layouts.pickapic(tmp_path / "s", 40)
    whole, _ = imported(source, tmp_path / "whole", name="pickapic", pairs=True)
    code = KILL.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"), source=str(source))
    done = subprocess.run([sys.executable, "-c", code, str(when)], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    again, _ = imported(source, tmp_path / "run", name="pickapic", pairs=True)

    def content(store: Store):
        candidates = store.candidates("pickapic").read().sort_by("id")
        comparisons = store.comparisons("pickapic").read().sort_by("id")
        return candidates, comparisons, sorted(store.requests(), key=lambda r: r.request_id)

    assert content(again) == content(whole)  # without frame(): no row is there twice
    for path in sorted((tmp_path / "whole" / "pairs").rglob("*.parquet")):
        other = tmp_path / "run" / path.relative_to(tmp_path / "whole")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("table", ["imports", "candidates/pickapic", "comparisons/pickapic", "pairs/pickapic"])
def test_it_writes_to_no_table_that_another_command_writes_to(tmp_path, table):
    layouts.pickapic(tmp_path / "s")
    store = Store.create(tmp_path / "run")
    with store.lock(table), pytest.raises(StoreError, match=f"another process is working on {table}"):
        run_import(store, str(tmp_path / "s"))
    assert not store.names("candidates") and not store.names("comparisons")
