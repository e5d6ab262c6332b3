"""benchmarks/gpu.py: its rows on the CPU, and rows that fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROCESS = """
import json, os, sys, time
names, results = json.loads(sys.argv[1]), sys.argv[2]
def write(line):
    with open(results, "a") as file:
        file.write(json.dumps(line) + "\\n")
for name in names:
    write({"begin": name})
    if name == "is killed":
        os.kill(os.getpid(), 9)
    if name == "hangs":
        time.sleep(600)
    if name == "raises":
        write({"row": name, "error": "OutOfMemoryError: CUDA out of memory"})
        sys.exit(1)
    write({"row": name, "seconds": 1.0, "unit": "step", "process": os.getpid()})
"""


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    yield gpu
    sys.path.remove(str(ROOT / "benchmarks"))


def start(names, results):
    return subprocess.Popen([sys.executable, "-c", PROCESS, json.dumps(names), results], start_new_session=True)


def test_rows_survive_those_that_fail(gpu, tmp_path):
    names = ["first", "raises", "second", "is killed", "third", "hangs", "fourth", "fifth"]
    limits = dict.fromkeys(names, 60.0) | {"hangs": 0.5}
    seen = []
    done = gpu.Driver(names, limits, tmp_path, time.monotonic() + 300, start, lambda done: seen.append(len(done))).run()
    assert list(done) == names and seen[-1] == len(names)
    assert done["raises"]["error"] == "OutOfMemoryError: CUDA out of memory"
    assert "the process ended with code -9" in done["is killed"]["error"]
    assert done["hangs"]["error"] == "stopped after 0 s"
    processes = [done[name]["process"] for name in ("first", "second", "third", "fourth", "fifth")]
    assert len(set(processes)) == 4 and processes[3] == processes[4]


def test_rows_without_time_are_listed(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESERVE", 0.0)
    done = gpu.Driver(["hangs"], {"hangs": 60.0}, tmp_path, time.monotonic() + 0.5, start, lambda done: None).run()
    assert done == {}
    assert "Not run: hangs." in gpu.write(tmp_path, {"device": "cpu"}, done, ["hangs"])


def test_goals_stand_beside_what_was_measured(gpu, tmp_path):
    seconds = {
        "script fp32": 3.0,
        "dpo fp32": 2.0,
        "dpo fp32 cache_reference": 1.5,
        "dpo bf16": 1.5,
        "script bf16": 1.6,
    }
    done = {f"sd15 {name}": {"seconds": value, "unit": "step"} for name, value in seconds.items()}
    done["sd15 dpo bf16"] |= {"peak": int(9.0 * 2**30), "useful": 3e12}
    done["matrix products"] = {"rates": {"bf16": 4e12}}
    text = gpu.write(tmp_path, {"device": "cpu"}, done, [])
    assert "fp32, to the script's fp32 | at least 1.3 | 1.50 | yes" in text
    assert "the script's default fp32 | at least 2.5 | 2.00 | NO" in text
    assert "peak memory of sd15_12gb to its estimate | 0.85 to 1.15 | 1.18 | NO" in text
    assert "lean | at most 0.75 | - | not measured" in text and "| 50.0% |" in text
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"]["sd15 dpo fp32"]["seconds"] == 2.0


def test_the_names_of_rows_are_different_and_their_recipes_exist(gpu):
    rows = gpu.rows()
    assert len({row.name for row in rows}) == len(rows)
    assert all((ROOT / "pipelines" / f"{row.estimate}.yaml").exists() for row in rows if row.estimate)


def test_packages_that_the_machine_lacks_are_listed(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "version", lambda name: None if name == "peft" else "0.1" if name == "torch" else "99")
    gpu.main(["--wheels"])
    assert capsys.readouterr().out.split() == ["peft>=0.17", "torch>=2.6"]


def test_rows_run_tiny_on_the_cpu(gpu, tmp_path):
    from on_gpu.work import Place

    names = [
        "matrix products",
        "sd15 dpo fp32",
        "sd15 dpo bf16",
        "sd15 script fp32",
        "sd15 cpu reference",
        "sdxl dpo nf4",
    ]
    by_name = {row.name: row for row in gpu.rows()}
    done = {name: gpu.measure(by_name[name], Place(tmp_path, "cpu", tiny=True)) for name in names}
    reason = "nf4 does not run on cpu" if find_spec("bitsandbytes") else "nf4 needs bitsandbytes"
    assert reason in done["sdxl dpo nf4"]["error"]
    assert all("error" not in done[name] and done[name]["seconds"] > 0 for name in names[1:4])
    assert done["sd15 dpo fp32"]["useful"] == done["sd15 script fp32"]["useful"] > 1e8
    gaps = {line["row"]: float(line["gap"]) for line in gpu.summarised(done, tmp_path) if "gap" in line}
    assert gaps["sd15 dpo fp32"] == 0 and 1e-4 < gaps["sd15 dpo bf16"] < 0.05


@pytest.mark.slow
def test_every_row_runs_tiny_on_the_cpu(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--smoke", "--device", "cpu", "--out", tmp_path]
    subprocess.run([*command, "--minutes", "30"], check=True, timeout=1900)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    failed = {name: found["error"] for name, found in rows.items() if "error" in found}
    allowed = ("torchao", "does not run on cpu", "No viable backend")
    assert len(rows) > 30 and all(any(text in error for text in allowed) for error in failed.values()), failed
