"""--shard: which share a worker takes, what is refused, and the tables that workers make together."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from prefkit import distributed
from prefkit.api import Run
from prefkit.cli import shard
from prefkit.errors import UsageError
from prefkit.store import Store

SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for pair in shard.VARIABLES:
        for name in pair:
            monkeypatch.delenv(name, raising=False)
    yield
    distributed.use_shard(None)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("3/2", "the last of 2 is 1/2.*--array=0-1"),
        ("2/2", "counted from 0"),
        ("0/0", "Write 0/1"),
        ("a/b", "such as 0/8"),
        ("1", "such as 0/8"),
        ("-1/2", "such as 0/8"),
        ("auto", "none of these variables is set.*SLURM_ARRAY_TASK_ID"),
    ],
)
def test_a_wrong_shard_is_refused_with_the_fix(light, cli, text, fix):
    code, _, err = cli("generate", "-r", light, f"--shard={text}")
    assert code == 2
    with pytest.raises(UsageError, match=fix):
        shard.automatic() if text == "auto" else shard.parsed(text)
    assert not (light.parent / "run").exists() and "--shard" in err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, (3, 4)),
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}, (2, 4)),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_STEP": "2"}, (2, 4)),
        ({"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "8"}, (7, 8)),
        ({"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"}, (0, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        (SLURM | {"RANK": "0", "WORLD_SIZE": "1"}, (3, 4)),
    ],
)
def test_auto_reads_the_schedulers_variables(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shard.automatic() == expected


@pytest.mark.parametrize(
    ("variables", "fix"),
    [
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "9"}, "not numbered in equal steps"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "4"}, "task 4 is one of 4 in a Slurm array from 0 to 3"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": ""}, "is not a number"),
        (SLURM | {"RANK": "1", "WORLD_SIZE": "2"}, "SLURM_ARRAY_TASK_ID and RANK are set and disagree"),
        ({"JOB_COMPLETION_INDEX": "7"}, "JOB_COMPLETIONS is not.*Set JOB_COMPLETIONS"),
        ({"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "4"}, "do not fit"),
    ],
)
def test_variables_that_name_no_share_are_refused(monkeypatch, variables, fix):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=fix):
        shard.automatic()


def test_redo_is_refused_and_a_dry_run_shows_the_whole_work(light, cli):
    code, _, err = cli("generate", "-r", light, "--shard", "0/2", "--redo")
    assert code == 2 and "Run it once with --limit 1" in err
    code, out, err = cli("generate", "-r", light, "--shard", "0/2", "--dry-run", "--json")
    assert code == 0 and json.loads(out)[0]["to do"] == 40 and "all workers together" in err
    assert cli("generate", "-r", light, "--shard", "2/2", "--dry-run")[0] == 2


def test_a_launch_and_a_shard_exclude_each_other(light, cli, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_connected", distributed.Group())
    code, _, err = cli("generate", "-r", light, "--shard", "0/2")
    assert code == 2 and "belongs to a launch of 2 processes" in err


def sharded(cli, verb, recipe, count, *flags):
    """The counts of each of `count` workers, the last one first."""
    results = []
    for index in reversed(range(count)):
        code, out, err = cli(verb, "-r", recipe, "--shard", f"{index}/{count}", "--json", *flags)
        assert code == 0, err
        assert "when all workers have ended" in err
        results.append(json.loads(out))
    return results


def test_workers_make_the_tables_of_one_process(light, cli, tmp_path):
    text = light.read_text()
    (tmp_path / "many.yaml").write_text(text.replace(f"run: {tmp_path}/run", f"run: {tmp_path}/many"))
    for verb in ("generate", "score"):
        assert cli(verb, "-r", light)[0] == 0
        counts = sharded(cli, verb, tmp_path / "many.yaml", 3)
        entries = [result[name] for result in counts for name in (["own"] if verb == "generate" else ["size"])]
        done = "made" if verb == "generate" else "scored"
        assert sum(each[done] for each in entries) == 40 and all(each[done] == each["wanted"] for each in entries)
        again = sharded(cli, verb, tmp_path / "many.yaml", 2)  # another N finds everything
        assert all(each[done] == 0 for result in again for each in result.values())
    one, many = Run(tmp_path / "run"), Run(tmp_path / "many")
    for frame in ("candidates", "scores"):
        pd.testing.assert_frame_equal(
            *(getattr(run, frame)().sort_values("id", ignore_index=True) for run in (one, many))
        )


def test_workers_need_no_lock(light, cli):
    store = Store.create(light.parent / "run")
    with store.lock("candidates/own"), store.lock("requests"):
        code, _, err = cli("generate", "-r", light, "--shard", "0/2")
    assert code == 0, err


def test_workers_with_other_settings_are_refused_before_any_row_is_written(light, cli):
    """The first worker has claimed the table and may be sampling its first batch."""
    store = Store(light.parent / "run")
    assert cli("generate", "-r", light, "--shard", "0/2", "--limit", "1")[0] == 0
    for part in store.candidates("own").parts():
        part.unlink()
    code, _, err = cli("generate", "-r", light, "--shard", "1/2", "--generate.own.seed", "5")
    assert code == 1 and "was made with other settings (settings.seed: stored" in err
    assert store.exists() and store.candidates("own").spec()["settings"].get("seed") != 5
    assert not store.candidates("own").parts()


def test_a_worker_stops_if_its_table_is_moved_away(light, cli, monkeypatch):
    from prefkit.generate import run as generate

    store = Store(light.parent / "run")
    real = generate.open_generator

    def opened(*arguments):
        (store.candidates("own").folder).rename(store.folder / "elsewhere")
        return real(*arguments)

    monkeypatch.setattr(generate, "open_generator", opened)
    code, _, err = cli("generate", "-r", light, "--shard", "1/2")
    assert code == 1 and "another command has moved or changed" in err
    assert not store.candidates("own").parts()
