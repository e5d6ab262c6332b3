"""Experiment trackers: curves, pictures, settings and the link, with stand-ins and, where installed, the libraries."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.report import learning
from prefkit.train.monitor.boards import flat
from prefkit.train.monitor.metrics import Log


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run" / "train" / "dpo"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "grid.png")
    return folder


def session(folder, report_to, step=0):
    log = Log(folder / "metrics.jsonl", step, Train(report_to=report_to, steps=7))
    log.write(step + 1, {"loss": 0.5, "bad": float("nan")})
    log.write(step + 1, {"watch": {"gain": 0.25, "alarm": False}})
    log.image(step + 1, folder / "grid.png")
    log.close()
    return json.loads((folder / "board.json").read_text())


def fake(url, calls):
    """A module with the parts of wandb and trackio that are used."""

    class FakeRun:
        dir, id = "/x/files", "its own"

        def __init__(self):
            self.url = url

        def define_metric(self, *names, **options):
            pass

        def log(self, values, step=None):
            calls.append((step if step is not None else values.pop("step"), values))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return FakeRun()

    return SimpleNamespace(init=init, Image=lambda path: f"image of {path}")


@pytest.mark.parametrize("report_to", ["wandb", "trackio"])
def test_curves_pictures_and_settings_reach_the_tracker(folder, monkeypatch, report_to):
    calls = []
    monkeypatch.setitem(sys.modules, report_to, fake("https://board/run", calls))
    stored = session(folder, report_to)
    assert calls[0]["config"]["steps"] == 7 and calls[0]["resume"] == "allow" and calls[0]["project"] == "prefkit"
    picture = {"held-out samples": f"image of {folder / 'grid.png'}"}
    assert calls[1:] == [(1, {"loss": 0.5}), (1, {"watch/gain": 0.25}), (1, picture), "finished"]
    again = session(folder, report_to, step=1)
    assert again["id"] == stored["id"]  # a resumed training continues its run, a new one does not
    assert session(folder, report_to)["id"] != stored["id"]


def test_the_report_names_the_link(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake("https://board/run", []))
    session(folder, "wandb")
    assert '<a href="https://board/run" rel="noreferrer">' in learning._board(folder)
    monkeypatch.setitem(sys.modules, "wandb", fake(None, []))
    session(folder, "wandb")
    assert "<a" not in learning._board(folder) and "wandb sync /x" in learning._board(folder)
    (folder / "board.json").unlink()
    assert learning._board(folder) == ""


def test_a_tracker_that_is_missing_or_refuses_names_the_fix(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"not installed. Run `pip install 'prefkit\[wandb\]'`"):
        session(folder, "wandb")

    def refuse(**options):
        raise RuntimeError("no\nkey")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(UsageError, match="could not start: no key. Log in, or set WANDB_MODE=offline"):
        session(folder, "wandb")


def test_numbers_are_named_by_their_path():
    assert flat({"a": {"b": 1, "c": float("inf"), "d": True}, "e": None}) == {"a/b": 1.0}


def test_wandb_itself_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    stored = session(folder, "wandb")
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert stored["link"] == f"wandb sync {run}" and list(run.glob("*.wandb"))
    assert list(run.glob("files/media/images/*.png"))


def test_trackio_itself(folder, monkeypatch, tmp_path):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert session(folder, "trackio")["link"] == "trackio show --project prefkit"
