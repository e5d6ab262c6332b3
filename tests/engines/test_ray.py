"""--engine ray on a real cluster: a head and two machines with one CPU each, as processes on loopback addresses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from prefkit.store import Store

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

RECIPE = """
run: {run}
requests: {{source: p.txt, test_share: 0}}
generate: {{own: {{use: "slow.py:slow", n: 4, batch_size: 4, max_failed: 0.1}}}}
score:
  size: {{use: jpeg, batch_size: 8}}
  wide: {{use: "wide.py:wide"}}
"""
#: draws, takes `seconds` for a batch, writes its process down, and dies of some prompts
SLOW = """
import os, pathlib, signal, time
import draw

def slow(prompts, seeds):
    with open("calls.txt", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while pathlib.Path("together").exists() and len(set(pathlib.Path("calls.txt").read_text().split())) < 2:
        time.sleep(0.05)  # until both workers have a batch
    if "poison" in prompts[0] and not pathlib.Path("antidote").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(pathlib.Path("seconds").read_text()))
    return draw.draw(prompts, seeds)
"""
WIDE = """
import prefkit

@prefkit.scorer(scope="within_request")
def wide(images, prompts):
    means = [sum(image.resize((1, 1)).getpixel((0, 0))) for image in images]
    return [mean - sum(means) / len(means) for mean in means]
"""
#: a command whose pool complains after 4 s
IMPATIENT = "import sys; import prefkit.engines.ray as r; r.PATIENCE = 4.0; from prefkit.cli.main import main; main()"


class Machines:
    """The cluster, and the addresses of its machines."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.2"})
        self.nodes, self.last = [], 2
        self.add(), self.add()

    def add(self):
        self.last += 1
        self.nodes.append(self.cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{self.last}"))

    def remove(self):
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def machines():
    made = Machines()
    yield made
    made.cluster.shutdown()


@pytest.fixture
def where(tmp_path, machines):
    """A folder with a recipe of 12 prompts: 12 batches of 4."""
    import drawing

    while len(machines.nodes) < 2:
        machines.add()
    (tmp_path / "p.txt").write_text("\n".join(f"thing number {n}" for n in range(12)))
    for name, text in {"slow.py": SLOW, "wide.py": WIDE, "seconds": "0"}.items():
        (tmp_path / name).write_text(text)
    shutil.copy(drawing.__file__, tmp_path / "draw.py")
    (tmp_path / "calls.txt").touch()
    for run in ("one", "many"):
        (tmp_path / f"{run}.yaml").write_text(RECIPE.format(run=run))
    return tmp_path


@pytest.fixture
def start(where, machines):
    """start("generate", "-r", ...): the command with --engine ray, in a process of its own."""
    begun = []

    def call(*words, code="from prefkit.cli.main import main; main()"):
        environment = os.environ | {"RAY_ADDRESS": machines.cluster.address, "PYTHONPATH": f"{where}:{ROOT}"}
        command = [sys.executable, "-c", code, *words, "--engine", "ray", "--json"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=where, env=environment, stdout=pipe, stderr=pipe, text=True)
        begun.append(process)
        return process

    yield call
    for process in begun:
        process.kill()
        process.wait()


def ended(process, code=0):
    """The result and the messages of a command that must end with `code`."""
    out, err = process.communicate(timeout=500)
    assert process.returncode == code, err
    return json.loads(out) if out else None, err


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def calls(where):
    return [int(line) for line in (where / "calls.txt").read_text().split()]


def alive(pids):
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def tables(where, run):
    store = Store(where / run)
    found = {"own": store.candidates("own")} | {name: store.scores(name) for name in store.names("scores")}
    return {name: table.frame().sort_values("id", ignore_index=True) for name, table in found.items()}


def same_as_one(where, cli, monkeypatch, *verbs):
    """Run the verbs in this process, and compare the tables."""
    (where / "seconds").write_text("0")
    (where / "together").unlink(missing_ok=True)
    monkeypatch.chdir(where)
    monkeypatch.syspath_prepend(str(where))
    for verb in verbs:
        code, _, err = cli(verb, "-r", "one.yaml")
        assert code == 0, err
    one, many = tables(where, "one"), tables(where, "many")
    assert one.keys() == many.keys()
    for name, frame in one.items():
        assert len(frame) == 48
        pd.testing.assert_frame_equal(frame, many[name])
    assert not list((where / "many").rglob(".part*"))


def test_two_machines_make_and_score_the_same_bytes(where, start, cli, monkeypatch):
    (where / "together").touch()
    made, err = ended(start("generate", "-r", "many.yaml"))
    assert made["own"]["made"] == 48 and "2 Ray workers, each with a CPU" in err
    assert len(set(calls(where))) == 2
    scored, _ = ended(start("score", "-r", "many.yaml"))
    assert scored["size"]["scored"] == scored["wide"]["scored"] == 48
    same_as_one(where, cli, monkeypatch, "generate", "score")
    again, err = ended(start("score", "-r", "many.yaml"))
    assert again["size"]["present"] == 48 and "Ray worker" not in err


def test_a_killed_worker_and_a_replaced_machine_lose_nothing(where, start, machines, cli, monkeypatch):
    (where / "seconds").write_text("0.5")
    process = start("generate", "-r", "many.yaml")
    first = until(lambda: calls(where))[0]
    os.kill(first, signal.SIGKILL)
    until(lambda: len(set(calls(where))) >= 3)
    machines.remove()
    machines.add()
    made, _ = ended(process)
    assert made["own"]["made"] == 48 and made["own"]["failed"] == 0
    same_as_one(where, cli, monkeypatch, "generate")


def test_without_machines_the_command_says_so_and_continues_with_a_new_one(where, start, machines, cli, monkeypatch):
    (where / "seconds").write_text("0.5")
    process = start("generate", "-r", "many.yaml", code=IMPATIENT)
    until(lambda: len(calls(where)) > 3)
    machines.remove()
    machines.remove()
    lines = iter(process.stderr.readline, "")
    warning = next(line for line in lines if "0 of 0 CPUs are free; 0 of 2 workers are at work" in line)
    assert "Add a machine" in warning
    machines.add()
    made, _ = ended(process)
    assert made["own"]["made"] == 48
    same_as_one(where, cli, monkeypatch, "generate")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_a_command_that_ends_early_leaves_no_worker_and_is_continued(where, start, cli, monkeypatch, number, code):
    (where / "seconds").write_text("0.5")
    process = start("generate", "-r", "many.yaml")
    until(lambda: len(Store(where / "many").candidates("own").parts()) > 1)
    process.send_signal(number)
    ended(process, code)
    until(lambda: not alive(calls(where)), 60)
    before = len(Store(where / "many").candidates("own").ids())
    made, _ = ended(start("generate", "-r", "many.yaml"))
    assert 0 < before < 48 and made["own"]["present"] == before and made["own"]["made"] == 48 - before
    same_as_one(where, cli, monkeypatch, "generate")


def test_a_batch_that_ends_its_workers_gets_rows_with_the_reason(where, start, cli, monkeypatch):
    (where / "p.txt").write_text("\n".join(f"{'poison' if n == 3 else 'thing'} number {n}" for n in range(12)))
    made, _ = ended(start("generate", "-r", "many.yaml"))
    assert made["own"]["made"] == 44 and made["own"]["failed"] == 4
    frame = tables(where, "many")["own"]
    assert set(frame.error.dropna().str[:48]) == {"the worker process ended 3 times during this bat"}
    assert len(frame) == 48 and frame.error.notna().sum() == 4
    (where / "antidote").touch()
    made, _ = ended(start("generate", "-r", "many.yaml"))
    assert made["own"]["made"] == 4
    same_as_one(where, cli, monkeypatch, "generate")


def test_an_error_of_the_generator_ends_the_command_with_its_message(where, start):
    (where / "slow.py").write_text("def slow(prompts, seeds):\n    return ['no image' for _ in prompts]\n")
    _, err = ended(start("generate", "-r", "many.yaml"), 1)
    assert "returned a str where a PIL image is needed" in err and "Traceback" not in err


def test_run_makes_images_of_generate_and_eval_on_the_cluster(recipe, where, start):
    result, err = ended(start("run", "-r", str(recipe)))
    assert err.count("Ray worker") >= 6  # generate, score, and eval's images and scores of two models
    assert result["eval"]["held_out"]["sets"] and (recipe.parent / "run" / "report.html").exists()
