"""`prefkit sync`: machines that share no folder exchange parts through another place."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from prefkit.errors import FingerprintError, PrefkitError, UsageError
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


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server in this process."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """A new s3://bucket/NAME on that server, which the environment names as a user would."""
    import s3fs

    named = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)
    return f"s3://bucket/{tmp_path.name}"


@pytest.mark.parametrize("place", ["{}", "{}/", "file://{}", "{}/candidates"])
def test_a_run_is_not_synced_with_itself(tmp_path, place):
    machine(tmp_path / "run", ["x"], ["r"])
    with pytest.raises(UsageError, match="run folder itself, or inside it. Give another"):
        sync.sync(tmp_path / "run", place.format(tmp_path / "run"))


@pytest.fixture(params=["memory", "folder", "s3"])
def place(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3")
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


@pytest.fixture
def at_once(monkeypatch):
    """at_once(folders, place): what sync returns or raises in threads that have all listed before any of them writes."""
    real = sync.own_names

    def act(folders, place):
        gate = threading.Barrier(len(folders))

        def listed(names):
            found = listed_once(names)
            if getattr(names, "func", None) is not real:  # the target, which is listed last
                gate.wait(60)
            return found

        def one(folder):
            try:
                return sync.sync(folder, place)
            except PrefkitError as error:
                return error

        listed_once = sync.listed
        with monkeypatch.context() as patch, ThreadPoolExecutor(len(folders)) as pool:
            patch.setattr(sync, "listed", listed)
            return list(pool.map(one, folders))

    return act


def test_requests_of_machines_that_sync_at_the_same_moment(tmp_path, place, at_once):
    folders = [machine(tmp_path / n, [n], ["hat", f"coat {n}"]).folder for n in "123"]
    assert at_once(folders, place) == [{"pushed": 1, "pulled": 0}] * 3
    last = tmp_path / "last"
    sync.sync(last, place)
    assert scored(Store(last)) == ["1", "2", "3"]
    assert {r.request_id for r in Store(last).requests()} == {"hat", "coat 1", "coat 2", "coat 3"}
    before = sync.Target(place).names()
    for folder in (*folders, last):
        sync.sync(folder, place)
    assert sync.Target(place).names() == before  # no list of requests is added in vain
    sync.Target(place).get("requests.parquet", tmp_path / "place" / "requests.parquet")
    assert len(Store(tmp_path / "place").requests()) == 4


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)  # fsspec's memory cannot create a file exclusively
def test_of_machines_with_other_settings_at_the_same_moment_one_goes_on(tmp_path, place, at_once):
    folders = [machine(tmp_path / n, [n], ["hat"], spec={"seed": int(n)}).folder for n in "123"]
    found = at_once(folders, place)
    (winner,) = [n for n, each in enumerate(found, 1) if each == {"pushed": 1, "pulled": 0}]
    others = [each for each in found if each != {"pushed": 1, "pulled": 0}]
    assert all(isinstance(each, FingerprintError) and f"requested {winner}" in str(each) for each in others), others
    sync.sync(tmp_path / "last", place)
    assert scored(Store(tmp_path / "last")) == [str(winner)]


def test_of_machines_with_other_prompts_at_the_same_moment_at_most_one_goes_on(tmp_path, place, at_once):
    folders = []
    for n in "123":
        store = machine(tmp_path / n, [n], [])
        store.write_requests([Request("hat", f"hat {n}")])
        folders.append(store.folder)
    found = at_once(folders, place)
    assert sum(isinstance(each, dict) for each in found) <= 1
    assert all("another prompt" in str(each) for each in found if not isinstance(each, dict)), found
    if not any(isinstance(each, dict) for each in found):  # each has withdrawn its own, so now the first goes on
        sync.sync(folders[0], place)
    sync.sync(tmp_path / "last", place)
    (request,), (row,) = Store(tmp_path / "last").requests(), scored(Store(tmp_path / "last"))
    assert request.prompt == f"hat {row}"


def test_incomplete_files_of_the_target_are_not_copied_and_are_replaced(tmp_path, cli, place):
    """As left by a machine that was killed, on a file system whose uploads are not atomic."""
    store = machine(tmp_path / "1", ["a"], ["hat"])
    sync.sync(store.folder, place)
    target, (part,) = sync.Target(place), store.scores("a").parts()
    (tmp_path / "half").write_bytes(part.read_bytes()[:-40])
    name = part.relative_to(store.folder).as_posix()
    target.put(tmp_path / "half", name)
    code, _, err = cli("sync", tmp_path / "2", place)
    assert code == 1 and f"{place}/{name} is damaged or was not uploaded completely" in err
    assert not Store(tmp_path / "2").scores("a").parts()
    assert sync.sync(store.folder, place) == {"pushed": 1, "pulled": 0}
    assert sync.sync(tmp_path / "2", place) == {"pushed": 0, "pulled": 1}
    part.write_bytes(part.read_bytes()[:-40])  # and in the other direction
    assert sync.sync(store.folder, place) == {"pushed": 0, "pulled": 1} and scored(store) == ["a"]


def test_a_target_that_fails_midway_is_named_and_the_next_sync_goes_on(tmp_path, cli, s3, monkeypatch):
    store = machine(tmp_path / "1", ["a"], ["hat"])
    for n in range(20):
        store.scores("a").append(rows([str(n)]))
    real, done = sync.Target.put, []

    def put(self, source, name):
        done.append(name)
        if len(done) > 5:
            raise ConnectionError("Connection was closed before we received a valid response")
        real(self, source, name)

    with monkeypatch.context() as patch:
        patch.setattr(sync.Target, "put", put)
        code, _, err = cli("sync", store.folder, s3)
    assert code == 1 and s3 in err and "Connection was closed" in err and "run the same command again" in err
    assert 0 < sync.sync(store.folder, s3)["pushed"] < 21
    assert sync.sync(tmp_path / "2", s3)["pulled"] == 21


def test_tables_behind_links_are_copied(tmp_path, place):
    store = machine(tmp_path / "1", ["a"], ["hat"])
    (store.folder / "scores").rename(tmp_path / "large disk")
    (store.folder / "scores").symlink_to(tmp_path / "large disk")
    assert sync.sync(store.folder, place)["pushed"] == 1


def test_errors_of_s3(tmp_path, cli, s3, monkeypatch):
    folder = machine(tmp_path / "1", ["a"], ["hat"]).folder
    code, _, err = cli("sync", folder, "s3://no-bucket/run")
    assert code == 1 and "s3://no-bucket/run could not be" in err and "bucket does not exist. Check the address" in err
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    type(fsspec.filesystem("s3")).clear_instance_cache()
    code, _, err = cli("sync", folder, s3)
    assert code == 1 and f"{s3} could not be" in err and "credentials" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "s3:/bucket/run"], "s3:/bucket/run is not a URL. Write s3://bucket/run"),
        (["run", "s3://"], "s3: is not a URL"),
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
