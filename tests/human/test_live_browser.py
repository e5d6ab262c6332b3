"""Two people vote in real browsers on a real server, which is killed meanwhile: no vote is lost, none counts twice."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections import Counter

import chromium as browsers
import pytest
from chromium import Browser
from report_synthetic import full_run

from prefkit.human.agreement import assess

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytestmark = browsers.needed


class Served:
    """`prefkit serve` in a process of its own, at the same port after a restart."""

    def __init__(self, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "prefkit", "serve", *map(str, arguments), "--port", str(port), "--json"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        text = ""
        while not text.endswith("}\n}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            text += line
        self.pages = json.loads(text)["addresses"]

    def kill(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second browser, of the second annotator."""
    made = Browser(tmp_path_factory.mktemp("browser") / "other")
    made.fresh()
    yield made
    made.close()


@pytest.fixture
def run(tmp_path):
    store = full_run(tmp_path / "run")
    (store.folder / "recipe.yaml").unlink()  # it names a scorer that no one has
    return store


@pytest.fixture
def serve():
    running = []

    def begin(*arguments: object) -> Served:
        running.append(Served(*arguments))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.kill()


def press(browser: Browser, key: str) -> str:
    """Press a key once the pair is on the screen; return the pair that it was pressed on."""
    pair = browser.until("document.body.dataset.ready.length === 12 && document.body.dataset.ready")
    browser.key(key)
    browser.until(f"document.body.dataset.ready && document.body.dataset.ready !== '{pair}'")
    return pair


def said(run, annotator: str) -> dict[str, str]:
    (file,) = (run.folder / "votes").glob(f"*.{annotator}.json")
    return {v["pair"]: v["choice"] for v in json.loads(file.read_text())["votes"]}


def test_two_annotators_a_reload_and_a_killed_server(browser, other, run, serve):
    served = serve(run.folder, "--models", "base,dpo", "--n", "8", "--repeats", "2", "--annotators", "Ann,Bob")
    people = {"Ann": browser, "Bob": other}
    for name, window in people.items():
        window.open(served.pages[f"vote, {name}"])
    who = {name: window.until("annotator") for name, window in people.items()}
    assert who["Ann"] != who["Bob"]
    chosen: dict[str, dict[str, str]] = {"Ann": {}, "Bob": {}}

    def answer(name: str, key: str, choice: str) -> None:
        chosen[name][press(people[name], key)] = choice

    for key, choice in (("ArrowLeft", "left"), ("ArrowDown", "tie"), ("s", "skip")):
        answer("Ann", key, choice)
        answer("Bob", key, choice)
    browser.until("unsent().length === 0")
    assert said(run, who["Ann"]) == chosen["Ann"]  # stored before anybody says `save`
    browser.open(served.pages["vote, Ann"])  # a reload
    browser.until("document.getElementById('count').textContent === '4 of 10'")

    served.kill()
    ready = browser.until("document.body.dataset.ready")
    browser.key("ArrowRight")  # nobody answers: the browser holds the vote
    chosen["Ann"][ready] = "right"
    browser.until("document.getElementById('say').textContent.includes('1 vote is not stored yet')")
    assert ready not in said(run, who["Ann"])
    served.start()
    browser.until("unsent().length === 0")  # sent without a reload
    browser.until("document.getElementById('say').textContent === 'All votes are stored.'")

    served.kill()
    other_pair = other.until("document.body.dataset.ready")
    other.key("ArrowRight")
    chosen["Bob"][other_pair] = "right"
    other.until("document.getElementById('say').textContent.includes('1 vote is not stored yet')")
    other.call("Page.navigate", url="about:blank")  # the window is closed before the server is back
    served.start()
    other.open(served.pages["vote, Bob"])
    other.until("annotator && unsent().length === 0")

    answer("Ann", "ArrowLeft", "left")
    press(browser, "ArrowLeft")
    press(browser, "u")  # this vote is taken back, and stored otherwise
    answer("Ann", "ArrowRight", "right")
    for name, window in people.items():
        while window.js("document.body.dataset.ready !== 'done'"):
            answer(name, "ArrowLeft", "left")
            window.until("document.body.dataset.ready")
        window.until("document.getElementById('stored').textContent.startsWith('All votes are stored')")
        assert said(run, who[name]) == chosen[name] and len(chosen[name]) == 10

    frame = run.comparisons("votes").frame()
    assert len(frame) == 2 * 9 and set(Counter(frame.judge).values()) == {9}
    assert not frame.duplicated(["judge", "id_a", "id_b", "order"]).any()
    assert assess(run)["evaluations"][0]["annotators"] == 2
    assert served.kill(signal.SIGINT) == 130
    for window in people.values():
        assert all(url.startswith("http://127.0.0.1:") or url == "about:blank" for url in window.asked_for())
        assert not [c for c in window.complaints() if "ERR_CONNECTION_REFUSED" not in c]


def test_one_person_in_two_windows_votes_once(browser, other, run, serve):
    served = serve(run.folder, "--models", "base,dpo", "--n", "4", "--repeats", "0")
    for window in (browser, other):
        window.fresh()
        window.open(served.pages["vote"])
        window.until("document.body.dataset.ready === 'start'")
        window.js("document.getElementById('name').focus()")
        window.write("Eve")
        window.js("document.querySelector('#who button').click()")
    first = browser.until("document.body.dataset.ready.length === 12 && document.body.dataset.ready")
    assert other.until("document.body.dataset.ready.length === 12 && document.body.dataset.ready") == first
    browser.key("ArrowLeft")
    browser.until("stored.size === 1 && unsent().length === 0")
    other.key("ArrowRight")  # on the same pair: the earlier vote counts, and this window continues after it
    other.until("stored.size === 1 && unsent().length === 0")
    assert said(run, browser.js("annotator")) == {first: "left"}
    browser.open(served.pages["vote"])  # the browser remembers who votes here
    browser.until("document.getElementById('count').textContent === '2 of 4'")
    browser.js("choose('leave')")
    browser.until("document.body.dataset.ready === 'start'")


@pytest.mark.parametrize("width, height, phone", [(1300, 900, False), (390, 844, True)])
def test_the_pages_of_the_owner(browser, run, serve, width, height, phone):
    browser.size(width, height, phone)
    served = serve(run.folder, "--n", "6", "--annotators", "Ann")
    browser.open(served.pages["home"])
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert served.pages["vote, Ann"] in browser.js("document.body.innerText")
    browser.js("document.getElementById('filter').value = 'index < 1'; document.querySelector('form').submit()")
    browser.until("location.pathname.endsWith('/contact') && document.readyState === 'complete'")
    browser.until("document.getElementById('marked')?.textContent === '0 new decisions'")
    name = browser.js("document.querySelector('.decide').dataset.id")
    browser.js("document.querySelector('.decide [data-mark=reject]').click(); document.getElementById('save').click()")
    browser.until("document.getElementById('marked').textContent.includes('are saved')")
    assert run.decisions().set_index("id").verdict[name] == "reject"
    browser.open(re.sub(r"/$", "/report", served.pages["home"]))
    assert "nobody has voted yet" in browser.js("document.body.innerText").lower()
    assert not browser.complaints()
