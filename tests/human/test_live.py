"""Votes over HTTP: stored at once, where a file's votes would be, by people who learn nothing about the models."""

from __future__ import annotations

import io
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from report_synthetic import candidates, full_run, requests, store_rows

from prefkit.errors import FingerprintError, StoreError, UsageError
from prefkit.human.agreement import assess
from prefkit.human.ballot import Ballot, Conflict
from prefkit.human.page import VoteSettings, key_path, make_page, write_vote_page
from prefkit.human.votes import copy_of, import_votes, vote_file
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.table import Table

ANN, BOB = "person-aaaaaaaaaaaa", "person-bbbbbbbbbbbb"


def new_run(folder) -> Store:
    store = Store.create(folder)
    members = requests(3)
    store.write_requests(members)
    store_rows(store, "own", candidates(members, 3, "own"))
    return store


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "run")


@pytest.fixture
def key(run):
    return make_page(run, VoteSettings(n=6, repeats=2)).key


def vote(key: dict, number: int, choice: str = "left", order: str | None = None) -> dict:
    """The vote of an annotator who sees `ab`, and repeated pairs as `ba`."""
    item = key["pairs"][number]
    order = order or ("ba" if "again" in item else "ab")
    return {"pair": item["pair"], "order": order, "choice": choice, "time": 1_700_000_000_000 + number}


def rows(run: Store, name: str = "votes") -> list[tuple]:
    frame = run.comparisons(name).frame().sort_values("id")
    return list(frame.drop(columns="id").fillna("").itertuples(index=False, name=None))


def test_live_votes_are_the_rows_that_their_file_would_give(run, key, tmp_path):
    ballot, said = Ballot(run, key), [vote(key, i, c) for i, c in enumerate(("left", "tie", "skip", "right"))]
    said += [vote(key, 6), vote(key, 7, "right")]  # repeated, with sides swapped
    for one in said:
        ballot.add(ANN, one)
        ballot.add(BOB, one)
    assert ballot.votes(ANN) == said and len(rows(run)) == 2 * 5
    assert len(run.comparisons("votes").parts()) == 2  # one per annotator, however many votes
    alone = assess(run)
    (tmp_path / "files").mkdir()
    for who in (ANN, BOB):
        copy = copy_of(run.folder, key["page"], who)
        (tmp_path / "files" / f"{who}.json").write_text(json.dumps(vote_file(key["page"], who, said, run="x")))
        copy.rename(tmp_path / copy.name)
    assert import_votes(run, tmp_path / "files", "people")["comparisons"] == 10
    assert rows(run) == rows(run, "people") and run.comparisons("votes").spec() == {
        "name": "votes",
        "imported": "votes",
    }
    assert assess(run) == alone and alone["annotators"] == 2  # the same votes in two tables are no repeats


def test_a_table_of_other_verdicts_is_refused_at_the_start(run, key):
    run.comparisons("votes").claim({"name": "votes", "imported": "pickapic"}, "", empty=False)
    with pytest.raises(FingerprintError, match="rename the folder"):
        Ballot(run, key)


def test_an_import_waits_for_a_live_vote(run, key, tmp_path):
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(vote_file(key["page"], ANN, [vote(key, 1)], run="x", asked=8)))
    with ThreadPoolExecutor(1) as pool:
        with run.lock("comparisons/votes"):
            done = pool.submit(import_votes, run, file, "people")
            with pytest.raises(TimeoutError):
                done.result(0.2)
        assert done.result(20)["comparisons"] == 1


def test_again_is_nothing_new_and_otherwise_is_a_conflict(run, key):
    ballot = Ballot(run, key)
    ballot.add(ANN, vote(key, 0))
    ballot.add(ANN, vote(key, 0) | {"time": 5})
    for other in (vote(key, 0, "right"), vote(key, 0, order="ba")):
        with pytest.raises(Conflict):
            ballot.add(ANN, other)
    assert ballot.votes(ANN) == [vote(key, 0)] and len(rows(run)) == 1


@pytest.mark.parametrize(
    "change, text",
    [
        ({"pair": "p"}, "unknown pair"),
        ({"pair": ["p"]}, "unknown pair"),
        ({"choice": "both"}, "invalid order"),
        ({"choice": []}, "invalid order"),
        ({"order": "up"}, "invalid order"),
        ({"time": -1}, "invalid order"),
        ({"time": "1"}, "invalid order"),
    ],
)
def test_an_invalid_vote_is_refused(run, key, change, text):
    ballot = Ballot(run, key)
    with pytest.raises(UsageError, match=text):
        ballot.add(ANN, vote(key, 0) | change)
    assert ballot.annotators() == [] and not run.comparisons("votes").parts()


def test_a_repeated_pair_must_be_swapped(run, key):
    ballot = Ballot(run, key)
    first = next(i for i, item in enumerate(key["pairs"]) if item["pair"] == key["pairs"][6]["again"])
    ballot.add(ANN, vote(key, first))
    with pytest.raises(UsageError, match="sides swapped"):
        ballot.add(ANN, vote(key, 6, order="ab"))


def test_undo_removes_live_and_imported_votes(run, key, tmp_path):
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(vote_file(key["page"], ANN, [vote(key, 0), vote(key, 1)], run="x", asked=8)))
    for name in ("votes", "people"):
        import_votes(run, file, name)
    ballot = Ballot(run, key)
    assert len(rows(run)) == 2 and len(rows(run, "people")) == 2
    ballot.add(ANN, vote(key, 2))
    ballot.undo(ANN, vote(key, 0)["pair"])
    ballot.undo(ANN, vote(key, 5)["pair"])  # not voted on
    assert [v["pair"] for v in ballot.votes(ANN)] == [key["pairs"][i]["pair"] for i in (1, 2)]
    assert len(rows(run)) == 2 and len(rows(run, "people")) == 1
    ballot.add(ANN, vote(key, 0, "right"))
    ballot.undo(ANN, vote(key, 1)["pair"])
    ballot.undo(ANN, vote(key, 2)["pair"])
    ballot.undo(ANN, vote(key, 0)["pair"])
    assert not rows(run) and not rows(run, "people") and ballot.votes(ANN) == []


def test_a_vote_may_be_given_again_after_undo(run, key, tmp_path):
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(vote_file(key["page"], ANN, [vote(key, 0)], run="x", asked=8)))
    import_votes(run, file, "people")
    ballot = Ballot(run, key)
    ballot.undo(ANN, vote(key, 0)["pair"])
    ballot.add(ANN, vote(key, 0))
    assert not rows(run, "people") and len(rows(run)) == 1


def test_undo_leaves_the_same_vote_on_another_page(run, key):
    other = make_page(run, VoteSettings(n=6, repeats=2, question="Which is brighter?")).key
    second = next(item for item in other["pairs"] if {item["a"], item["b"]} == {key["pairs"][0][k] for k in "ab"})
    ballots = Ballot(run, key), Ballot(run, other)
    ballots[0].add(ANN, vote(key, 0))
    ballots[1].add(ANN, vote(key, 0) | {"pair": second["pair"]})
    assert len(rows(run)) == 1  # one row of two parts
    ballots[0].undo(ANN, key["pairs"][0]["pair"])
    assert len(rows(run)) == 1


@pytest.mark.parametrize("undo", [False, True])
def test_a_request_that_failed_is_completed_when_it_is_repeated(run, key, monkeypatch, undo):
    ballot, write = Ballot(run, key), Table.write

    def act():
        ballot.undo(ANN, vote(key, 0)["pair"]) if undo else ballot.add(ANN, vote(key, 0))

    def fail(*_):
        raise StoreError("the disk is full")

    ballot.add(ANN, vote(key, 1))
    if undo:
        ballot.add(ANN, vote(key, 0))
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(Table, "write", fail)
        act()
    act()
    assert Table.write is write and len(rows(run)) == len(ballot.votes(ANN)) == (1 if undo else 2)


def test_a_file_adds_to_live_votes(run, key, tmp_path):
    """Someone votes on the live page and, elsewhere, on the same page in a file: both count, in either order of storing."""
    ballot = Ballot(run, key)
    ballot.add(ANN, vote(key, 0))
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(vote_file(key["page"], ANN, [vote(key, 1), vote(key, 2)], run="x", asked=8)))
    assert import_votes(run, file)["comparisons"] == 2
    ballot.add(ANN, vote(key, 3))
    assert ballot.votes(ANN) == [vote(key, i) for i in range(4)] and len(rows(run)) == 4


def test_a_server_killed_between_its_two_files_loses_nothing(run, key, monkeypatch):
    ballot = Ballot(run, key)
    ballot.add(ANN, vote(key, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Table, "write", lambda *_: (_ for _ in ()).throw(StoreError("killed here")))
        with pytest.raises(StoreError):
            ballot.add(ANN, vote(key, 1))
    assert len(rows(run)) == 1
    assert Ballot(run, key).votes(ANN) == [vote(key, 0), vote(key, 1)] and len(rows(run)) == 2


def test_many_at_once(run, key):
    """Threads of two servers, several people, and one person in two windows: every vote is stored once."""
    ballots = [Ballot(run, key), Ballot(run, key)]
    jobs = [(b, who, i) for i in range(6) for who in (ANN, BOB) for b in ballots]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: job[0].add(job[1], vote(key, job[2])), jobs))
    assert len(rows(run)) == 12
    assert all(
        {v["pair"] for v in ballots[0].votes(who)} == {i["pair"] for i in key["pairs"][:6]} for who in (ANN, BOB)
    )


def test_a_page_is_continued_although_the_run_has_changed(run, key, capsys):
    settings = VoteSettings(n=6, repeats=2)
    rejected = key["pairs"][0]["a"]
    (run.folder / "decisions.csv").write_text(f"id,verdict,reason,by\n{rejected},reject,,\n")
    assert make_page(run, settings, resume=True).key == key
    assert make_page(run, settings).key["page"] != key["page"]  # a new page leaves out what was rejected
    assert make_page(run, VoteSettings(n=6, repeats=2, seed=1), resume=True).key["page"] != key["page"]
    run.comparisons("x").folder.mkdir(parents=True)
    for part in run.candidates("own").parts():
        part.unlink()
    with pytest.raises(UsageError, match="no request"):
        make_page(run, settings, resume=True)


def test_the_written_page_is_the_live_page(run, key):
    assert write_vote_page(run, VoteSettings(n=6, repeats=2))["page"] == key["page"]


# -- over HTTP ---------------------------------------------------------------------------------------------------------
HERE = "http://127.0.0.1:8766"


@pytest.fixture
def site():
    """site(run, annotators=["Ann"], models=...) -> (the served site, a client)."""
    server = pytest.importorskip("prefkit.human.server", reason="needs starlette and uvicorn", exc_type=ImportError)
    from starlette.testclient import TestClient

    def begin(run, annotators=(), **settings):
        made = server.Site(run, None, make_page(run, VoteSettings(n=6, repeats=1, **settings), resume=True), annotators)
        return made, TestClient(server.application(made, "127.0.0.1"), base_url=HERE)

    return begin


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_each_address_opens_its_own_pages_only(run, site):
    made, client = site(run)
    (token,) = made.voters
    home = client.get(f"/{made.owner}/")
    assert home.status_code == 200 and f"{HERE}/{token}/" in home.text and "Nobody has voted yet" in home.text
    for path in ("report", "contact", "progress"):
        assert client.get(f"/{made.owner}/{path}").status_code == 200
        assert client.get(f"/{token}/{path}").status_code == 404
    assert client.post(f"/{token}/decisions", content="id,verdict\n").status_code == 404
    assert client.post(f"/{made.owner}/votes/{ANN}", json=vote(made.page.key, 0)).status_code == 404
    for path in (
        "/",
        "/x",
        "/x/",
        f"/{token[:-1]}/",
        f"/{token}x/",
        "/../",
        f"/{made.owner}/nothing",
        f"/{token}/votes",
    ):
        assert client.get(path).status_code == 404, path
    assert client.get(f"/{token}", follow_redirects=False).headers["location"] == f"/{token}/"
    for path in ("../votes/salt.json", "..%2fvotes%2fsalt.json", "%2e%2e/run.json", "/etc/passwd", "..\\run.json"):
        found = client.get(f"/{token}/image/{path}")
        assert found.status_code == 404 and "salt" not in found.text
    for who in ("person-1", "person-aaaaaaaaaaaa.json", f"..%2f{ANN}"):
        assert client.get(f"/{token}/votes/{who}").status_code == 404
    again, _ = site(run)
    assert (again.owner, list(again.voters)) == (made.owner, [token])  # addresses outlive the server


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "localhost:8766"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8766"}, 403),
        ({"Origin": HERE}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link in a message
    ],
)
def test_other_hosts_and_origins_are_refused(run, site, headers, status):
    made, client = site(run)
    found = client.get(f"/{next(iter(made.voters))}/", headers=headers)
    assert found.status_code == status
    assert found.headers["referrer-policy"] == "same-origin" and "access-control-allow-origin" not in found.headers
    assert found.headers["content-security-policy"] == "frame-ancestors 'none'"


def test_an_annotator_learns_nothing_about_the_models(full, site):
    from PIL import Image

    made, client = site(full, models=("base", "dpo"))
    (token,) = made.voters
    text = client.get(f"/{token}/").text
    data = data_of(text)
    for item in made.page.key["pairs"]:
        assert not any(item[name] in text for name in ("a", "b", "request_id"))
    assert set(data) == {"version", "page", "run", "salt", "pairs", "images", "live"} and data["live"] == {}
    assert all(set(pair) <= {"pair", "prompt", "a", "b", "again"} for pair in data["pairs"])
    outside = re.sub(r"</?style>|</?script.*?>", "", text.split('id="data"')[0])
    assert not re.search(r"\bdpo\b|held_out|full_run", outside)
    assert all(re.fullmatch(r"image/[0-9a-f]{16}\.webp", name) for name in data["images"])
    model = {}
    for item, shown in zip(made.page.key["pairs"], data["pairs"]):
        model |= {shown["a"]: item["model_a"], shown["b"]: item["model_b"]}
    assert [model[i] for i in sorted(model)] not in (sorted(model.values()), sorted(model.values(), reverse=True))
    found = [client.get(f"/{token}/{name}") for name in data["images"]]
    assert {tuple(sorted(answer.headers.keys())) for answer in found} == {tuple(sorted(found[0].headers.keys()))}
    assert not {"etag", "last-modified", "content-disposition"} & set(found[0].headers)
    opened = [Image.open(io.BytesIO(answer.content)) for answer in found]
    assert {image.size for image in opened} == {(48, 48)} and not any(image.getexif() for image in opened)


def test_votes_over_http_reach_the_table_and_the_report(tmp_path, site):
    full = full_run(tmp_path / "run")
    made, client = site(full, models=("base", "dpo"))
    key, (token,) = made.page.key, made.voters
    for number in range(4):
        for who in (ANN, BOB):
            assert client.post(f"/{token}/votes/{who}", json=vote(key, number)).json() == {}
    assert client.get(f"/{token}/votes/{ANN}").json()["votes"] == [vote(key, i) for i in range(4)]
    other = client.post(f"/{token}/votes/{ANN}", json=vote(key, 0, "right"))
    assert other.status_code == 409 and other.json()["votes"][0] == vote(key, 0)
    assert client.request("DELETE", f"/{token}/votes/{ANN}", json={"pair": vote(key, 3)["pair"]}).json() == {}
    for body in (
        b"",
        b"[]",
        b'{"pair": 1}',
        b"[" * 4000,
        b"{" + b" " * 5000,
        json.dumps(vote(key, 5, "both")).encode(),
    ):
        answer = client.post(f"/{token}/votes/{ANN}", content=body)
        assert answer.status_code in (400, 413) and answer.json()["error"]
    assert len(rows(full)) == 7
    progress = client.get(f"/{made.owner}/progress").text
    assert ANN in progress and "3 of 7" in progress and "4 of 7" in progress
    report = client.get(f"/{made.owner}/report").text
    assert "7 votes by 2 annotators" in report and "dpo over base" in report


def test_an_annotator_does_not_see_what_failed(run, site, monkeypatch, capsys):
    made, client = site(run)
    (token,) = made.voters
    client.post(f"/{token}/votes/{ANN}", json=vote(made.page.key, 0))
    copy_of(run.folder, made.page.key["page"], ANN).write_text("{")
    answers = [client.post(f"/{token}/votes/{ANN}", json=vote(made.page.key, 1)) for _ in range(2)]
    answers.append(client.get(f"/{token}/votes/{ANN}"))
    for answer in answers:
        assert (
            answer.status_code == 400
            and str(run.folder) not in answer.text
            and "votes cannot be read or stored" in answer.text
        )
    assert capsys.readouterr().err.count(f"{ANN}.json") == 1  # printed once for the owner
    shown = client.get(f"/{made.owner}/contact", params={"filter": "nothing > 1"})
    assert shown.status_code == 400 and "--filter" in shown.text


def test_an_annotator_with_an_address_votes_under_one_name(run, site):
    made, client = site(run, annotators=["Ann", "Bob"])
    ann, bob = made.voters
    who = {name: data_of(client.get(f"/{token}/").text)["live"]["annotator"] for token, name in made.voters.items()}
    assert who == made.hashed and who["Ann"] != who["Bob"]
    assert client.post(f"/{ann}/votes/{who['Ann']}", json=vote(made.page.key, 0)).status_code == 200
    assert client.post(f"/{ann}/votes/{who['Bob']}", json=vote(made.page.key, 0)).status_code == 404
    assert client.get(f"/{bob}/votes/{who['Ann']}").status_code == 404
    home = client.get(f"/{made.owner}/").text
    assert "<b>Ann</b>" in home and f"/{ann}/" in home and "1 of 7" in home and "0 of 7" in home


def test_decisions_on_the_live_sheet(run, site):
    made, client = site(run)
    name = made.page.key["pairs"][0]["a"]
    sheet = client.get(f"/{made.owner}/contact", params={"filter": "index < 2"})
    assert sheet.text.count('class="decide"') == 6 and '"live":true' in sheet.text
    wrong = client.get(f"/{made.owner}/contact", params={"filter": "<b>"})
    assert wrong.status_code == 400 and "--filter" in wrong.text and "<b>" not in wrong.text
    path = f"/{made.owner}/decisions"
    assert client.post(path, content=f"id,verdict,reason,by\n{name},reject,blurred,me\n").json() == {
        "new": 1,
        "known": 0,
    }
    assert run.decisions().set_index("id").verdict[name] == "reject"
    assert client.post(path, content="id,verdict,reason,by\nelsewhere,keep,,\n").status_code == 400
    assert client.post(path, content=b"x" * (2 << 20)).status_code == 413


def test_the_command_prints_its_addresses_and_says_what_is_wrong(run, site, cli, monkeypatch):
    site(run)
    from prefkit.human import server

    served = []
    monkeypatch.setattr(server, "serve", lambda app, bound: served.append(bound.getsockname()))
    code, out, err = cli("serve", run.folder, "--n", "4", "--port", "0", "--annotators", "Ann, Bob", "--json")
    found = json.loads(out)
    assert code == 0 and found["pairs"] == 4 and list(found["addresses"]) == ["home", "vote, Ann", "vote, Bob"]
    assert (
        all(a.startswith(f"http://127.0.0.1:{served[0][1]}/") for a in found["addresses"].values()) and "Ctrl-C" in err
    )
    Ballot(run, read_json(key_path(run, found["page"]))).add(ANN, vote(read_json(key_path(run, found["page"])), 0))
    code, out, err = cli("serve", run.folder, "--n", "4", "--port", "0", "--host", "0.0.0.0", "-q")
    assert code == 0 and "unencrypted" in err and "0.0.0.0" not in out
    assert "votes: 1)" in cli("serve", run.folder, "--n", "4", "--port", "0")[2]
    assert cli("serve", run.folder, "--models", "base")[0] == 2 and cli("serve", run.folder / "none")[0] == 2
    with server.listen("127.0.0.1", 0) as taken:
        code, _, err = cli("serve", run.folder, "--port", taken.getsockname()[1])
    assert code == 2 and "Choose another --host or --port" in err


def test_without_the_packages_the_command_names_them(run, cli, monkeypatch):
    import sys

    import prefkit.human

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "prefkit.human.server", raising=False)
    monkeypatch.delattr(prefkit.human, "server", raising=False)
    code, _, err = cli("serve", run.folder)
    assert code == 2 and "pip install 'prefkit[serve]'" in err


def test_a_real_server_ends_by_a_signal_and_answers_until_then(run, site):
    made, _ = site(run)
    import urllib.request

    import uvicorn

    from prefkit.human import server

    with server.listen("127.0.0.1", 0) as bound:
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/{next(iter(made.voters))}"
        config = uvicorn.Config(server.application(made, "127.0.0.1"), lifespan="off", log_config=None)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            body = json.dumps(vote(made.page.key, 0)).encode()
            with urllib.request.urlopen(urllib.request.Request(f"{address}/votes/{ANN}", body), timeout=30) as answer:
                assert answer.status == 200
        finally:
            running.should_exit = True
            thread.join(30)
    assert len(rows(run)) == 1
