"""Imports that were killed, or that failed and were corrected: their counts, and the refusals."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from prefkit.errors import TooManyFailures, UsageError
from prefkit.hub.importing import index as known
from prefkit.hub.importing import sink as importing
from prefkit.hub.importing.index import merged_requests
from prefkit.hub.importing.run import run_import
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.table import Table

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts

PAIRED = "prompt=p,image_a=a,image_b=b,winner=w"


def table(folder: Path, winners: str = "left left right", name: str = "t.csv") -> Path:
    rows = []
    for i, winner in enumerate(winners.split()):
        for side in "ab":
            (folder / f"{side}{i}.png").write_bytes(layouts.image(40 + 2 * i + (side == "b")))
        rows.append(f"prompt {i},a{i}.png,b{i}.png,{winner},other {i}")
    (folder / name).write_text("\n".join(["p,a,b,w,q", *rows]) + "\n")
    return folder / name


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", range(1, 12))
def test_the_counts_of_a_killed_import_are_those_of_the_whole(tmp_path, monkeypatch, when):
    """A kill before or after any rename, like SIGKILL: nothing after it happens."""
    source = layouts.pickapic(tmp_path / "s", 24)
    whole = run_import(Store(tmp_path / "whole"), str(source), name="x")
    monkeypatch.setattr(importing, "FLUSH_ITEMS", 12)
    replace, seen = os.replace, [0]

    def dying(*paths):
        if ".parquet" not in str(paths[1]) and "x.json" not in str(paths[1]):
            return replace(*paths)
        seen[0] += 1
        if seen[0] == when:
            monkeypatch.setattr(os, "replace", dead)
            monkeypatch.setattr(Table, "append", dead)
            raise Killed
        return replace(*paths)

    def dead(*_, **__):
        raise Killed

    append = Table.append
    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        run_import(Store(tmp_path / "run"), str(source), name="x")
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Table, "append", append)
    found = run_import(Store(tmp_path / "run"), str(source), name="x")
    assert found == whole
    stored = json.loads((tmp_path / "run" / ".imports" / "x.json").read_text())
    assert stored["counts"] == {k: v for k, v in whole.items() if k in stored["counts"]} | {"failed": 0}
    assert run_import(Store(tmp_path / "run"), str(source), name="x") == whole


def test_a_kill_after_the_merge_gives_its_requests_to_no_other_import(tmp_path, monkeypatch):
    run, source = Store(tmp_path / "run"), layouts.pickapic(tmp_path / "s", 4)
    run_import(run, str(layouts.folders(tmp_path / "other")), name="zz")
    others = merged_requests(run, "zz").read().to_pylist()

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(known, "keep_merged", killed)
        run_import(run, str(source), name="x")
    run_import(run, str(source), name="x")
    assert merged_requests(run, "zz").read().to_pylist() == others
    brought = {row["prompt"] for row in merged_requests(run, "x").read().to_pylist()}
    assert brought == {r.prompt for r in run.requests()} - {row["prompt"] for row in others} and brought


@pytest.mark.parametrize("first", ["all rows fail", "some rows fail", "no verdict", "wrong prompts"])
def test_the_corrected_command_is_not_refused(tmp_path, first):
    run, right = tmp_path / "run", {"map": PAIRED, "values": "a=left,b=right"}
    run_import(Store(run), str(layouts.folders(tmp_path / "other")))  # a run with something in it
    source = table(tmp_path)
    wrong = {
        "all rows fail": {"map": PAIRED},
        "some rows fail": {"map": PAIRED, "values": "a=left"},
        "no verdict": {"map": "prompt=p,image_a=a,image_b=b"},
        "wrong prompts": {"map": PAIRED.replace("=p", "=q"), "values": "a=right"},
    }[first]
    with pytest.raises((TooManyFailures, UsageError)):
        run_import(Store(run), str(source), layout="table", flags=wrong, pairs=True)
    counts = run_import(Store(run), str(source), layout="table", flags=right, pairs=True, test_share=0)
    clean = run_import(Store(tmp_path / "clean"), str(source), layout="table", flags=right, pairs=True, test_share=0)
    assert counts == clean and counts["pairs"] == {"train": 3}
    mine = {r.prompt for r in Store(run).requests()} - {r.prompt for r in Store(tmp_path / "clean").requests()}
    assert not any(prompt.startswith("other") for prompt in mine)
    ids = [set(Store(f).candidates("table").ids()) for f in (run, tmp_path / "clean")]
    assert ids[0] == ids[1] and len(Store(run).candidates("folders").ids()) == 4


def test_an_import_that_succeeded_and_one_of_another_source_are_kept(tmp_path):
    run, right = tmp_path / "run", {"map": PAIRED, "values": "a=left,b=right"}
    source = table(tmp_path)
    run_import(Store(run), str(source), layout="table", flags=right)
    before = Store(run).comparisons("table").ids()
    with pytest.raises(UsageError, match="--name"):
        run_import(Store(run), str(source), layout="table", flags={"map": PAIRED, "values": "a=right,b=left"})
    part = table(tmp_path, "left left best", "u.csv")
    with pytest.raises(TooManyFailures):
        run_import(Store(run), str(part), layout="table", name="u", flags=right)
    kept = Store(run).comparisons("u").ids()
    with pytest.raises(UsageError, match="--name"):
        run_import(Store(run), str(source), layout="table", name="u", flags=right)
    assert (
        Store(run).comparisons("table").ids() == before and Store(run).comparisons("u").ids() == kept and len(kept) == 2
    )


def test_an_import_by_an_earlier_version_is_not_replaced(tmp_path):
    source, run, state = table(tmp_path), Store(tmp_path / "run"), tmp_path / "run" / ".imports" / "table.json"
    run_import(run, str(source), layout="table", flags={"map": PAIRED, "values": "a=left,b=right"})
    before = run.comparisons("table").ids()
    earlier = {key: value for key, value in read_json(state).items() if key not in ("whole", "pictures")}
    state.write_text(json.dumps(earlier), encoding="utf-8")
    with pytest.raises(UsageError, match="--name"):
        run_import(run, str(source), layout="table", flags={"map": PAIRED, "values": "a=right,b=left"})
    assert run.comparisons("table").ids() == before and len(before) == 3


@pytest.mark.parametrize("there", ["pair", "hand"])
def test_pairs_of_another_making_are_not_replaced(tmp_path, there):
    source, run = layouts.pickapic(tmp_path / "s", 4), Store(tmp_path / "run")
    path = run.pairs("pap") / "train" / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"made with care")
    if there == "pair":
        (run.pairs("pap") / "spec.json").write_text(json.dumps({"spec": {"settings": {"use": "topk_bottomk"}}}))
    with pytest.raises(UsageError, match="--name"):
        run_import(run, str(source), name="pap", pairs=True)
    assert path.read_bytes() == b"made with care"
    assert sum(run_import(run, str(source), name="other", pairs=True)["pairs"].values()) == 3
    assert sum(run_import(run, str(source), name="other", pairs=True)["pairs"].values()) == 3  # its own are


def test_a_missing_source_is_named_before_anything_else(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for source in ("nofile.csv", "data/nofile", "data/nofile.csv", "no/such.parquet", "/no/such"):
        rc, _, err = cli("import", source, "run", "--as", "table")
        assert rc == 2 and f"{source} was not found" in err and "--map" not in err
    (tmp_path / "data" / "x.bin").write_text("?")
    rc, _, err = cli("import", "data", "run")
    assert rc == 2 and "could not detect the layout of data; choose one with --as: " in err and "pickapic" in err
    assert not (tmp_path / "run").exists()


def test_pairs_keep_a_folder_with_a_file_of_the_users(tmp_path):
    from prefkit.store.folders import check_pairs

    source, run = layouts.pickapic(tmp_path / "s", 4), Store(tmp_path / "run")
    run_import(run, str(source), name="pap", pairs=True)
    check_pairs(run.pairs("pap"))
    (run.pairs("pap") / "train" / "mine.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match="train/mine.parquet"):
        run_import(run, str(source), name="pap", pairs=True)
    with pytest.raises(UsageError, match="train/mine.parquet"):  # as pair asks before it replaces the folder
        check_pairs(run.pairs("pap"))
    assert (run.pairs("pap") / "train" / "mine.parquet").read_bytes() == b"x"


def test_ratings_of_an_import_whose_name_starts_alike_are_not_its_own(tmp_path):
    store = Store.create(tmp_path / "run")
    for alias in ("photos.q", "photos.v2.q"):
        store.scores(alias).claim({"imported": "t.csv"}, "", empty=True)
    (store.folder / ".imports").mkdir()
    for name in ("photos", "photos.v2"):
        (store.folder / ".imports" / f"{name}.json").write_text("{}")
    assert [table.folder.name for table in importing.ratings(store, "photos")] == ["photos.q"]
    assert [table.folder.name for table in importing.ratings(store, "photos.v2")] == ["photos.v2.q"]


@pytest.mark.parametrize(
    ("before", "after"),
    [("a.png,b.png,left,3", "b.png,a.png,left,3"), ("a.png,b.png,left,3", "a.png,b.png,left,4")],
    ids=["images", "rating"],
)
def test_other_images_or_ratings_in_the_same_rows_are_a_changed_source(tmp_path, before, after):
    from prefkit.hub.importing.sink import ChangedImport

    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(layouts.image(number))
    source, store = tmp_path / "t.csv", Store.create(tmp_path / "run")
    flags = {"map": "prompt=prompt,image_a=one,image_b=two,winner=best,score.q=q", "values": "a=left,b=right"}
    for row in (before, before):  # an equal source is read again without complaint
        source.write_text(f"prompt,one,two,best,q\na hat,{row}\n")
        run_import(store, str(source), layout="table", name="t", flags=flags)
    source.write_text(f"prompt,one,two,best,q\na hat,{after}\n")
    with pytest.raises(ChangedImport):
        run_import(store, str(source), layout="table", name="t", flags=flags)
