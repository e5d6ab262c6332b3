"""The voting page and the contact sheet in a real browser, by keyboard, offline."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from pathlib import Path

import chromium
import pytest
from chromium import Browser
from report_synthetic import NASTY, candidates, full_run, requests, store_rows

from prefkit.human.page import VoteSettings, write_vote_page
from prefkit.human.votes import import_votes, read_file
from prefkit.report import contact_sheet
from prefkit.report.contact import add_decisions
from prefkit.store import Store

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store.create(tmp_path_factory.mktemp("runs") / "vote run")
    members = requests(6, "train", NASTY[:6])
    store.write_requests(members)
    store_rows(store, "own", candidates(members, 4, "own"))
    return store


def begin(browser: Browser, page: Path, name: str) -> None:
    browser.open(page)
    assert browser.js("[...document.querySelectorAll('main')].filter((m) => m.getClientRects().length).length") == 1
    if browser.js("document.body.dataset.ready !== 'start'"):
        browser.js("choose('leave')")
    browser.until("document.body.dataset.ready === 'start'")
    browser.js("document.getElementById('name').focus()")
    browser.write(name)
    browser.js("document.querySelector('#who button').click()")
    browser.until("annotator")


def press(browser: Browser, key: str) -> str:
    """Press a key once the pair is there; the pair that it was pressed on."""
    pair = browser.until("document.body.dataset.ready")
    browser.key(key)
    browser.until(f"document.body.dataset.ready && document.body.dataset.ready !== '{pair}'")
    return pair


def test_votes_by_keyboard_are_what_the_file_says_and_what_is_imported(browser, run):
    made = write_vote_page(run, VoteSettings(n=8, repeats=3))
    page = Path(made["path"])
    begin(browser, page, "Ann")
    pressed = []
    for key, choice in (("ArrowLeft", "left"), ("ArrowRight", "right"), ("ArrowDown", "tie"), ("s", "skip")):
        pressed.append((press(browser, key), choice))
    press(browser, "ArrowLeft")
    press(browser, "u")  # takes it back: the same pair is asked again
    browser.reopen(page)  # a reload goes on where it stopped, as the same annotator, in the same order
    browser.until("document.getElementById('count').textContent === '5 of 11'")
    for i in range(7):
        pressed.append((press(browser, "ArrowRight" if i % 2 else "ArrowLeft"), "right" if i % 2 else "left"))
    assert browser.js("document.getElementById('summary').textContent") == "10 votes, 1 skipped."
    browser.js("document.querySelector('#done [data-choice=save]').click()")
    file = browser.downloaded("votes-*.json")
    body = json.loads(file.read_text())
    assert [(v["pair"], v["choice"]) for v in body["votes"]] == pressed
    assert body["run"] == "vote run" and body["page"] == made["page"] and "Ann" not in file.read_text()

    key = {item["pair"]: item for item in json.loads(Path(made["key"]).read_text())["pairs"]}
    sides = {v["pair"]: v["order"] for v in body["votes"]}
    again = [item for item in key.values() if "again" in item]
    place = [v["pair"] for v in body["votes"]]
    assert len(again) == 3 and len(set(sides.values())) == 2
    for item in again:
        assert sides[item["pair"]] != sides[item["again"]] and place.index(item["pair"]) > place.index(item["again"])

    assert import_votes(run, file)["comparisons"] == 10 and import_votes(run, file)["comparisons"] == 0
    rows = run.comparisons("votes").frame().to_dict("records")
    said = {(row["id_a"], row["id_b"], row["order"]): row["outcome"] for row in rows}
    for pair, choice in pressed:
        if choice == "skip":
            continue
        shown = sides[pair]
        left = "a" if shown == "ab" else "b"
        wanted = {"tie": "tie", "left": left, "right": "ba"["ab".index(left)]}[choice]
        assert said[key[pair]["a"], key[pair]["b"], shown] == wanted
    assert {row["judge"] for row in rows} == {body["annotator"]}
    assert not browser.complaints()
    assert all(url == page.resolve().as_uri() or url.startswith("blob:") for url in browser.asked_for())


def test_the_left_picture_is_the_one_the_vote_says(browser, run):
    """The pixels on the left are those of the candidate that a vote for the left names."""
    made = write_vote_page(run, VoteSettings(n=6, repeats=0, seed=3))
    page = Path(made["path"])
    begin(browser, page, "Eve")
    key = {item["pair"]: item for item in json.loads(Path(made["key"]).read_text())["pairs"]}
    pictures = {c.id: c.pil() for c in run.iter_candidates()}
    for _ in range(6):
        pair = browser.until("document.body.dataset.ready")
        uri = browser.js("document.querySelector('#left img').src")
        press(browser, "ArrowLeft")
        order = browser.js("votes[votes.length - 1].order")
        chosen, other = (key[pair][side] for side in (order[0], order[1]))
        assert distance(uri, pictures[chosen]) < 4 < distance(uri, pictures[other])


def distance(uri: str, image) -> float:
    import io

    import numpy as np
    from PIL import Image

    shown = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    return float(np.abs(np.asarray(shown, float) - np.asarray(image, float)).mean())


def test_a_lost_memory_comes_back_from_the_file_and_bad_files_are_refused(browser, run, tmp_path):
    page = Path(write_vote_page(run, VoteSettings(n=5, repeats=1))["path"])
    begin(browser, page, "Bob")
    for _ in range(3):
        press(browser, "a")
    browser.js("document.querySelector('#tools [data-choice=save]').click()")
    file = browser.downloaded("votes-*.json")
    browser.js("localStorage.clear()")
    browser.open(page)
    browser.until("document.body.dataset.ready === 'start'")
    node = browser.call("DOM.getDocument")["root"]["nodeId"]

    def give(path: Path) -> str:
        found = browser.call("DOM.querySelector", nodeId=node, selector="#load")["nodeId"]
        browser.js("say('')")
        browser.call("DOM.setFileInputFiles", files=[str(path)], nodeId=found)
        return browser.until("document.getElementById('say').textContent")

    (tmp_path / "edited.json").write_text(file.read_text().replace('"left"', '"right"', 1))
    (tmp_path / "cut.json").write_text(file.read_text()[:200])
    (tmp_path / "other.json").write_text(file.read_text().replace('"page": "', '"page": "f'))
    assert "changed or cut short" in give(tmp_path / "edited.json")
    assert "cannot be used" in give(tmp_path / "cut.json") and "another page" in give(tmp_path / "other.json")
    assert give(file) == "3 votes are restored." and browser.js("votes.length") == 3
    browser.until("document.body.dataset.ready.length === 12")
    assert press(browser, "b") not in [v["pair"] for v in json.loads(file.read_text())["votes"]]
    assert not browser.complaints()


def test_annotators_have_their_own_order_sides_and_names(browser, run):
    page = Path(write_vote_page(run, VoteSettings(n=8, repeats=2))["path"])
    seen = {}
    for name in ("carl", "dora", " CARL "):
        begin(browser, page, name)
        seen[name] = (browser.js("annotator"), [tuple(p) for p in browser.js("queue.map((p) => [p.pair, p.order])")])
    assert seen["carl"] == seen[" CARL "] and seen["carl"] != seen["dora"]
    assert [p for p, _ in seen["carl"][1]] != [p for p, _ in seen["dora"][1]]
    assert {p for p, _ in seen["carl"][1]} == {p for p, _ in seen["dora"][1]}
    salt = json.loads((run.folder / "votes" / "salt.json").read_text())["salt"]
    assert seen["carl"][0] == "person-" + hashlib.sha256(f"{salt}\0carl".encode()).hexdigest()[:12]
    for text in ("", "abc", "x" * 55, "x" * 56, "x" * 64, "é\N{FOX FACE}" * 40):
        assert browser.js(f"sha256({json.dumps(text)})") == hashlib.sha256(text.encode()).hexdigest()


def test_images_beside_the_page_load_and_a_missing_one_can_be_skipped(browser, tmp_path):
    store = Store.create(tmp_path / "beside")
    members = requests(2)
    store.write_requests(members)
    store_rows(store, "own", candidates(members, 3, "own"))
    page = Path(write_vote_page(store, VoteSettings(n=4, repeats=0, sidecar=True))["path"])
    begin(browser, page, "Fay")
    assert browser.js("[...document.querySelectorAll('#pictures img')].every((i) => i.naturalWidth === 48)")
    assert not browser.complaints() and len(browser.asked_for()) >= 3
    alone = tmp_path / page.name  # sent without its folder
    alone.write_bytes(page.read_bytes())
    begin(browser, alone, "Fay B")
    browser.until("document.getElementById('say').textContent.includes('cannot be loaded')")
    browser.key("ArrowLeft")  # what is not seen cannot be voted on
    browser.key("s")
    assert browser.js("votes.map((v) => v.choice).join()") == "skip"


@pytest.mark.parametrize("width, height, phone", [(1280, 800, False), (390, 844, True), (844, 390, True)])
def test_everything_is_on_the_screen(browser, run, width, height, phone):
    page = Path(write_vote_page(run, VoteSettings(n=6, repeats=0))["path"])
    browser.size(width, height, phone)
    begin(browser, page, "Gus")
    long = "queue.findIndex((p) => p.prompt.length > 1000)"
    assert browser.js(f"{long} >= 0")  # however long the prompt
    browser.js(f"votes = queue.filter((_, i) => i !== {long}).map((p) => ({{...p, choice: 'tie', time: 1}})); show()")
    browser.until("document.body.dataset.ready.length === 12")
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert browser.js("document.getElementById('tools').getBoundingClientRect().bottom <= innerHeight")
    smallest = browser.js("Math.min(...[...document.querySelectorAll('#pictures img')].map((i) => i.clientHeight))")
    assert smallest >= 200


def test_decisions_on_a_contact_sheet_become_lines_of_decisions_csv(browser, tmp_path):
    store = full_run(tmp_path / "decide")
    ids = store.candidates("own").frame(["id", "request_id"])
    sheet = contact_sheet(store, ["train0001", "train0002"])
    shown = list(ids[ids.request_id.isin(["train0001", "train0002"])].id)
    browser.open(sheet)
    browser.js("document.getElementById('reason').focus()")
    browser.write('six "fingers", left')
    browser.js("document.getElementById('by').focus()")
    browser.write("me")
    browser.js("document.querySelector('.decide').focus()")
    browser.key("r")
    browser.key("ArrowRight")
    browser.key("k")
    browser.key("ArrowRight")
    browser.key("x")
    browser.key("0")
    browser.js("document.querySelectorAll('.decide')[3].querySelector('[data-mark=remove]').click()")
    browser.open(sheet)
    browser.until("document.getElementById('marked').textContent === '3 new decisions'")
    assert browser.js("document.querySelectorAll('.decide')[1].dataset.verdict") == "keep"
    browser.js("document.getElementById('save').click()")
    file = browser.downloaded("decisions-*.csv")
    before = (store.folder / "decisions.csv").read_text()
    assert add_decisions(store, file) == {"new": 3, "known": 0} and add_decisions(store, file) == {"new": 0, "known": 3}
    assert (store.folder / "decisions.csv").read_text().startswith(before)
    found = store.decisions().set_index("id")
    assert found.verdict[shown[0]] == "reject" and found.reason[shown[0]] == 'six "fingers", left'
    assert found.verdict[shown[1]] == "keep" and shown[2] not in found.index and found.verdict[shown[3]] == "remove"
    assert not browser.complaints()


def test_a_file_of_the_browser_is_what_python_reads(browser, run):
    page = Path(write_vote_page(run, VoteSettings(n=3, repeats=1, question="Which <b>hat</b> & coat?"))["path"])
    begin(browser, page, "Hal")
    assert browser.js("document.querySelector('#vote h1').textContent") == "Which <b>hat</b> & coat?"
    press(browser, "t")
    browser.js("document.querySelector('#tools [data-choice=save]').click()")
    assert read_file(run.folder, browser.downloaded("votes-*.json"))["votes"][0]["choice"] == "tie"


def test_images_of_a_report_open_by_keyboard_and_its_tables_become_csv(browser, tmp_path):
    from prefkit.report import write_report

    browser.open(write_report(full_run(tmp_path / "reported")))
    state = "document.getElementById('zoom').open"
    browser.js("document.querySelectorAll('.thumb img')[2].focus()")
    browser.key("Enter")
    browser.until(state)
    alts = browser.js("[...document.querySelectorAll('.thumb img')].slice(2, 4).map((image) => image.alt)")
    assert browser.js("document.querySelector('#zoom p').textContent") == alts[0]
    browser.key("ArrowRight")
    browser.until(f"document.querySelector('#zoom p').textContent === {json.dumps(alts[1])}")
    browser.key("Escape")
    browser.until(f"!{state} && document.activeElement.alt === {json.dumps(alts[1])}")
    browser.js("document.activeElement.click()")
    browser.until(state)
    browser.js("document.querySelector('#zoom button').click()")
    browser.until(f"!{state}")

    tables = browser.js("document.querySelectorAll('table').length")
    assert tables == browser.js("document.querySelectorAll('.csv').length") > 5
    browser.js("document.querySelectorAll('.csv')[1].click()")
    with browser.downloaded("reported-evaluation-2.csv").open(encoding="utf-8-sig", newline="") as file:
        head, first, *_ = csv.reader(file)
    assert head == ["Model", "Judge", "", "Verdict", "Base", "Tuned", "Win rate", *head[7:]]
    assert first[:7] == ["dpo", "align", "training signal", "better", "2.0", "2.6", "0.68"] and "0.59 to 0.77" in first
    assert not browser.complaints() and browser.asked_for() == {(tmp_path / "reported" / "report.html").as_uri()}
