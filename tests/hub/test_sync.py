"""`prefkit sync`: machines that share no folder exchange parts through another place."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pandas as pd
import pytest

from prefkit.hub import sync
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import comparison_row
from prefkit.types import Comparison, Request

SPEC = {"seed": 0}


def rows(ids):
    return [{"id": i, "value": 1.0, "aspects": None, "text": None, "error": None} for i in ids]


def machine(folder, ids, requests, spec=SPEC):
    store = Store.create(folder)
    store.write_requests([Request(r, f"a {r}") for r in requests])
    table = store.scores("a")
    table.claim(spec, "Stop.", empty=False)
    table.append(rows(ids))
    return store


def scored(store):
    return sorted(store.scores("a").frame().id)


@pytest.fixture(params=["memory", "folder"])
def place(request, tmp_path):
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/run" if request.param == "memory" else str(tmp_path / "place")


def test_two_machines_and_a_third_get_the_same_tables(tmp_path, cli, place):
    one, two = machine(tmp_path / "1", ["a", "b"], ["hat", "coat"]), machine(tmp_path / "2", ["c"], ["coat", "boot"])
    three = tmp_path / "3"
    for folder, pushed, pulled in ((one.folder, 1, 0), (two.folder, 1, 1), (three, 0, 2), (one.folder, 0, 1)):
        code, out, err = cli("sync", folder, place, "--json")
        assert code == 0 and f'"pushed": {pushed}' in out and f'"pulled": {pulled}' in out, out + err
    for store in (one, two, Store(three)):
        assert scored(store) == ["a", "b", "c"] and store.scores("a").spec() == SPEC
    assert {r.request_id for r in Store(three).requests()} == {"hat", "coat", "boot"}
    pd.testing.assert_frame_equal(one.scores("a").frame(), Store(three).scores("a").frame())
    code, out, _ = cli("sync", one.folder, place, "--json")
    assert code == 0 and '"pushed": 0' in out and '"pulled": 0' in out


def test_evaluations_are_copied_too(tmp_path, place):
    base = Path("eval/held/own/base")
    Store.create(tmp_path / "1")
    machine(tmp_path / "1" / base, ["a"], ["hat"])
    sync.sync(tmp_path / "1", place)
    sync.sync(tmp_path / "2", place)
    found = Store(tmp_path / "2" / base)
    assert found.exists() and scored(found) == ["a"] and found.requests()[0].prompt == "a hat"


def test_other_settings_or_prompts_are_refused_before_anything_is_copied(tmp_path, cli, place):
    machine(tmp_path / "1", ["a"], ["hat"])
    sync.sync(tmp_path / "1", place)
    machine(tmp_path / "2", ["b"], ["boot"], spec={"seed": 5})
    code, _, err = cli("sync", tmp_path / "2", place)
    assert code == 1 and "seed: stored 5, requested 0" in err and f"{place}/scores/a" in err
    three = Store.create(tmp_path / "3")
    three.write_requests([Request("hat", "another hat")])
    code, _, err = cli("sync", tmp_path / "3", place)
    assert code == 2 and "request 'hat'" in err
    for folder in ("2", "3"):
        assert len(Store(tmp_path / folder).requests()) == 1 and "a" not in scored(Store(tmp_path / folder))


def test_a_damaged_part_does_not_spread_and_comes_back(tmp_path, cli, place):
    store = machine(tmp_path / "1", ["a"], ["hat"])
    sync.sync(tmp_path / "1", place)
    (part,) = store.scores("a").parts()
    whole = part.read_bytes()
    store.scores("a").append(rows(["b"]))
    later = store.scores("a").parts()[1]
    later.write_bytes(later.read_bytes()[:-20])
    code, _, err = cli("sync", tmp_path / "1", place)
    assert code == 1 and f"{later} could not be read" in err and "run `prefkit score` again" in err
    later.unlink()
    part.unlink()
    sync.sync(tmp_path / "1", place)
    assert part.read_bytes() == whole
    target = sync.Target(place)
    (name,) = filter(sync.PART.fullmatch, target.names())
    with target.fs.open(target.path(name), "wb") as file:
        file.write(whole[:-20])
    code, _, err = cli("sync", tmp_path / "2", place)
    assert code == 1 and f"{place}/{name} could not be read" in err and "Remove it there" in err
    assert not Store(tmp_path / "2").scores("a").parts()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run"], "prefkit sync RUN s3://bucket/run"),
        (["run", "nowhere"], "neither run nor nowhere contains a run"),
        (["run", "what://x"], "what://x: Protocol not known"),
    ],
)
def test_usage(tmp_path, cli, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("sync", *words)
    assert code == 2 and text in err
    assert not list(tmp_path.iterdir())


def test_live_votes_are_copied_from_where_they_were_stored(tmp_path, place):
    one, two, name = Store.create(tmp_path / "1"), tmp_path / "2", "part-live-0123456789-person-aaaaaaaaaaaa.parquet"
    table, copy = one.comparisons("votes"), Store(two).comparisons("votes")
    said = one.folder / "votes" / "0123456789.person-aaaaaaaaaaaa.json"
    write_json(said, {"votes": [{"choice": "left"}]})
    votes = [comparison_row(Comparison("a", b, "a", "person-aaaaaaaaaaaa")) for b in "bcd"]
    for held in (votes[:1], votes, votes[:2]):
        table.write(name, held)
        assert sync.sync(one.folder, place)["pushed"] == 1 and sync.sync(one.folder, place)["pushed"] == 0
        assert sync.sync(two, place)["pulled"] == 1 and copy.ids() == {row["id"] for row in held}
    (table.folder / name).unlink()  # as if it had been damaged
    assert sync.sync(one.folder, place)["pulled"] == 1 and len(table.ids()) == 2
    (table.folder / name).unlink()
    write_json(said, {"votes": [{"choice": "skip"}]})  # the annotator has undone the other votes
    assert sync.sync(one.folder, place) == {"pushed": 0, "pulled": 0} and not table.parts()
    assert not any(path.endswith(name) for path in sync.Target(place).names())


def test_verdicts_of_a_judge_that_has_measured_other_rates(tmp_path, place):
    for number in ("1", "2", "1"):
        table = Store.create(tmp_path / number).comparisons("judge")
        write_json(table.folder / "spec.json", SPEC | {"measured": {"flip_rate": float(number)}})
        table.append([comparison_row(Comparison("a", number, "a", "judge"))])
        sync.sync(tmp_path / number, place)
    assert Store(tmp_path / "1").comparisons("judge").frame().id_b.nunique() == 2


def test_names_that_lead_out_of_the_run_are_not_copied(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    Store.create(tmp_path / "1")
    for name in ("candidates/../part-1.parquet", "eval/../../../inputs/part-1.parquet"):
        fs.pipe_file(f"/bucket/run/{name}", b"x")
    assert sync.sync(tmp_path / "1", "memory://bucket/run")["pulled"] == 0
    assert not list(tmp_path.rglob("part-*"))


def test_a_run_of_rounds_is_refused(tmp_path, cli):
    Store.create(tmp_path / "run" / "rounds" / "1")
    code, _, err = cli("sync", tmp_path / "run", str(tmp_path / "place"))
    assert code == 2 and "folder of one" in err
