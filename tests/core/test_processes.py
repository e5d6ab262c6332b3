"""A whole run under a launcher: the tables of one process, made by two; every answer printed once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from prefkit import distributed
from prefkit.api import Run
from prefkit.distributed import collectives
from prefkit.errors import UsageError
from prefkit.store import Store


def test_two_processes_make_the_run_of_one(recipe, cli, torchrun, tmp_path):
    text = recipe.read_text().replace(f"run: {tmp_path}/run", f"run: {tmp_path}/two")
    (tmp_path / "two.yaml").write_text(
        text.replace("batch_size: 2}", "batch_size: 1}")
    )  # the global batch is what counts
    code, _, err = cli("run", "-r", recipe)
    assert code == 0, err
    done = torchrun("run", "-r", tmp_path / "two.yaml", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)  # printed by one process
    assert done.stderr.count("Hint:") == 1 and done.stderr.count("candidates to make") == 3  # and two of the evaluation
    one, two = Run(tmp_path / "run"), Run(tmp_path / "two")
    counts = found["generate"]["own"]
    assert [counts[key] for key in ("wanted", "present", "made", "failed", "flagged")] == [40, 0, 40, 0, 0]
    for alias in ("size", "taste"):
        counts = found["score"][alias]
        assert [counts[key] for key in ("wanted", "present", "scored", "failed")] == [40, 0, 40, 0]
    for frame in ("candidates", "scores"):
        a, b = (getattr(run, frame)().sort_values("id", ignore_index=True) for run in (one, two))
        pd.testing.assert_frame_equal(a, b)
    pd.testing.assert_frame_equal(one.pairs("main"), two.pairs("main"))
    assert len(two.store.candidates("own").parts()) > 1  # both have written
    results = [json.loads((run.folder / "eval" / "held_out" / "result.json").read_text()) for run in (one, two)]
    rows = [result["sets"]["held_out"]["dpo"]["taste"] for result in results]
    assert rows[0]["n_requests"] == rows[1]["n_requests"] and rows[0]["base"] == rows[1]["base"]
    assert rows[1]["tuned"] == pytest.approx(rows[0]["tuned"], abs=0.02)
    base = [
        Store(run.folder / "eval" / "held_out" / "held_out" / "base").candidates("own").frame() for run in (one, two)
    ]
    assert sorted(base[0].sha256) == sorted(base[1].sha256)
    steps = [
        [json.loads(line) for line in (run.folder / "train" / "dpo" / "metrics.jsonl").open()] for run in (one, two)
    ]
    assert np.allclose(
        [s["loss"] for s in steps[0] if "loss" in s], [s["loss"] for s in steps[1] if "loss" in s], rtol=1e-3
    )
    assert (two.folder / "report.html").stat().st_size > 0


DEAD = """
import os, signal, sys
from prefkit import heartbeat
from prefkit.cli import main as cli
from prefkit.errors import UsageError
from prefkit.train import setup as prepare
from prefkit.train.trainer import Trainer
heartbeat.EVERY, heartbeat.SILENCE, heartbeat.GRACE = 0.5, 12.0, 6.0
recipe, where, who = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def fail():
    raise UsageError("row 7 cannot be read")

def before(owner, name, act):
    inner = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: (act(), inner(*a, **k))[1])

if os.environ["RANK"] == who and where == "training":
    before(Trainer, "update", die)
elif os.environ["RANK"] == who and where == "signal":  # as from a scheduler, but the others hear of it from this rank
    before(Trainer, "update", lambda: os.kill(os.getpid(), signal.SIGTERM))
elif os.environ["RANK"] == who:
    before(prepare, "_fill", die if where == "cache" else fail)
cli.main(["train", "-r", recipe])
"""


def test_a_dead_process_ends_the_other(recipe, cli, forks, tmp_path):
    """Without a launcher that looks after them: what is left ends by itself, with a reason."""
    for verb in ("generate", "score", "pair"):
        assert cli(verb, "-r", recipe)[0] == 0
    launches = []
    for number, (where, who) in enumerate([("cache", 1), ("cache", 0), ("training", 1), ("error", 1), ("signal", 1)]):
        shutil.copytree(tmp_path / "run", tmp_path / f"run{number}")
        own = tmp_path / f"{number}.yaml"
        own.write_text(recipe.read_text().replace(f"run: {tmp_path}/run", f"run: {tmp_path}/run{number}"))
        launches.append(forks.ranks(own, where, who, code=DEAD))
    said = [[rank.communicate()[1] for rank in ranks] for ranks in launches]
    codes = [[rank.returncode for rank in ranks] for ranks in launches]
    assert codes == [[1, -9], [-9, 1], [1, -9], [2, 2], [130, 130]], said
    errors = [[line for line in text.splitlines() if line.startswith("Error:")] for each in said for text in each]
    assert [len(own) for own in errors] == [1, 0, 0, 1, 1, 0, 0, 1, 0, 0]
    (saved,) = (tmp_path / "run4" / "train" / "dpo" / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == 1
    reasons = [own[0] for own in errors if own]
    assert "process 1 of 2 was killed" in reasons[0] and "the launch is over" in reasons[1]
    assert "another process has ended" in reasons[2] and "row 7 cannot be read" in reasons[3]


@pytest.mark.slow
def test_a_launcher_that_is_terminated_saves_a_checkpoint(recipe, cli, tmp_path):
    for verb in ("generate", "score", "pair"):
        assert cli(verb, "-r", recipe)[0] == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prefkit", "train"]
    process = subprocess.Popen([sys.executable, *launch, "-r", str(recipe), "--steps", "100000"])
    log, folder = tmp_path / "run" / "train" / "dpo" / "metrics.jsonl", tmp_path / "run" / "train" / "dpo"
    try:
        end = time.monotonic() + 300
        while not (log.exists() and log.read_text().count('"loss"') >= 3):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0
    finally:
        process.kill()
    (saved,) = (folder / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) >= 3


def test_a_locked_table_is_refused_by_name(recipe, cli):
    for verb in ("generate", "score", "pair"):
        assert cli(verb, "-r", recipe)[0] == 0
    store = Run(recipe=recipe).store
    for verb, what in [("generate", "candidates/own"), ("score", "scores/size"), ("train", "train/dpo-sft")]:
        with store.lock(what):
            code, _, err = cli(verb, "-r", recipe, *(["--controls"] if verb == "train" else []))
        assert code == 1 and f"another process is working on {what}" in err, err


@pytest.mark.parametrize(
    ("wanted", "local", "seen", "device"),
    [
        ("cuda", None, 2, "cuda:0"),
        ("cuda", "1", 2, "cuda:1"),  # an explicit `cuda` is the process's own card
        (None, "1", 2, "cuda:1"),
        ("cuda", "3", 1, "cuda:0"),  # the launcher shows each process one card
        (None, "3", 1, "cuda:0"),
        ("cuda:1", "0", 2, "cuda:1"),
        ("cpu", "1", 2, "cpu"),
    ],
)
@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK"])  # whoever starts processes by hand may give RANK alone
def test_every_process_takes_its_own_card(monkeypatch, variable, wanted, local, seen, device):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for each in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv(each, raising=False)
    if local is not None:
        monkeypatch.setenv(variable, local)
    assert distributed.device_of(wanted) == device
    assert chosen == ([int(device[-1])] if local is not None and wanted in ("cuda", None) else [])


def test_a_card_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="this process has 1 GPUs"):
        distributed.device_of("cuda:1")


class Counted(torch.Tensor):
    """Counts how often its number of elements is asked for."""

    asked = 0

    def numel(self):
        Counted.asked += 1
        return super().numel()


def test_gradients_are_summed_in_linear_time(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat, how: flat.mul_(2))
    monkeypatch.setattr(collectives, "BUCKET", 10)
    processes = collectives.Processes("cpu")
    processes.count = 2
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(200)]
    for number, parameter in enumerate(parameters[1:], 1):
        parameter.grad = torch.full((3,), float(number)).as_subclass(Counted)
    processes.sum_gradients(parameters)
    assert [parameter.grad[0].item() for parameter in parameters] == [2.0 * number for number in range(200)]
    assert Counted.asked <= 2 * len(parameters)
