"""The Slurm script, the Kubernetes job and the SkyPilot task of docs/hardware.md, run by bash with a tiny recipe."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from prefkit import distributed
from prefkit.cli import shard
from prefkit.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
#: a stand-in for `prefkit` that writes its arguments to a file
RECORD = '#!/bin/bash\nprintf "%s\\n" "$*" >> "$RECORDED"\n'


def blocks(title):
    section = re.search(rf"^### {title}\n(.*?)^##", PAGE, re.S | re.M)[1]
    return re.findall(r"```\w+\n(.*?)```", section, re.S)


@pytest.fixture
def bash(tmp_path, monkeypatch):
    """bash(script, arguments, variables) -> the prefkit commands that the script runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "prefkit").write_text(RECORD)
    (folder / "prefkit").chmod(0o755)
    for pair in shard.VARIABLES:
        for name in pair:
            monkeypatch.delenv(name, raising=False)

    def run(script, *arguments, **variables):
        recorded = tmp_path / "recorded"
        recorded.unlink(missing_ok=True)
        path = {"PATH": f"{folder}:{os.environ['PATH']}", "RECORDED": str(recorded)}
        command = ["bash", "-e", "-c", script.replace("/shared", "."), "script", *arguments]
        subprocess.run(command, env=os.environ | path | variables, cwd=tmp_path, check=True, timeout=60)
        return [shlex.split(line) for line in recorded.read_text().splitlines()]

    yield run
    distributed.use_shard(None)


def work(cli, monkeypatch, light, commands, **variables):
    """Run the commands in a folder where runs/x is the tiny run."""
    monkeypatch.chdir(light.parent)
    if not Path("runs/x").exists():
        Path("runs/x").mkdir(parents=True)
        shutil.copy(light, "runs/x/recipe.yaml")
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        for words in commands:
            code, _, err = cli(*words)
            assert code == 0, err
    distributed.use_shard(None)
    return Store("runs/x")


def test_the_slurm_array_makes_and_scores_everything(bash, cli, light, monkeypatch):
    (script,) = blocks("Slurm")
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    array = {"SLURM_ARRAY_TASK_COUNT": str(last - first + 1), "SLURM_ARRAY_TASK_MIN": str(first)}
    stages = re.findall(r"workers.sh (\w+)", script)
    for verb in stages:
        for task in range(first, last + 1):
            variables = array | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MAX": str(last)}
            store = work(cli, monkeypatch, light, bash(script, verb, **variables), **variables)
    assert stages == ["generate", "score"]
    assert len(store.candidates("own").frame()) == len(store.scores("size").frame()) == 40
    (after,) = [shlex.split(text) for text in re.findall(r"prefkit (pair.*)", script)]
    assert work(cli, monkeypatch, light, [after]).pairs("main").exists()


def test_the_kubernetes_job_makes_everything(bash, cli, light, monkeypatch):
    (text,) = blocks("Kubernetes")
    job = yaml.safe_load(text)["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    given = {row["name"]: row["value"] for row in container["env"]}
    assert job["completionMode"] == "Indexed" and given == {"JOB_COMPLETIONS": str(job["completions"])}
    assert pod["restartPolicy"] == "Never"  # which backoffLimitPerIndex requires
    assert [m["name"] for m in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
    for index in range(job["completions"]):
        variables = given | {"JOB_COMPLETION_INDEX": str(index)}
        store = work(cli, monkeypatch, light, bash(shlex.join(container["command"]), **variables), **variables)
    assert len(store.candidates("own").frame()) == 40


def test_the_skypilot_task_and_the_loop_over_cards_make_everything(bash, cli, light, monkeypatch):
    (text,) = blocks("SkyPilot")
    task = yaml.safe_load(text)
    for node in range(task["num_nodes"]):
        variables = {"SKYPILOT_NODE_RANK": str(node), "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
        store = work(cli, monkeypatch, light, bash(task["run"], **variables), **variables)
    assert len(store.candidates("own").frame()) == 40
    loop = next(code for code in re.findall(r"```\n(.*?)```", PAGE, re.S) if "CUDA_VISIBLE_DEVICES" in code)
    commands = bash(loop)
    assert sorted(words[-1] for words in commands) == ["0/4", "1/4", "2/4", "3/4", "runs/x"]
    shutil.rmtree("runs")
    assert len(work(cli, monkeypatch, light, commands).candidates("own").frame()) == 40
