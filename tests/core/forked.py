"""Command lines in forked children, so that torch and diffusers are imported once, and a small run to try them on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS, ITEMS = ("red", "blue", "green"), ("dress", "hat", "boot", "coat")
JUDGE = """
from types import SimpleNamespace
from prefkit.types import Comparison, ScorerSpec
class Judge:
    scope, requires = "absolute", frozenset({"image"})
    def __init__(self, options=None):
        pass
    def spec(self):
        return ScorerSpec("larger", "1")
    def score(self, candidates):
        raise NotImplementedError
    def judge_spec(self):
        return {"name": "larger", "version": "1"}
    def load(self, device, dtype):
        pass
    def compare(self, pairs, template="", aspect=""):
        def row(a, b, order):
            return Comparison(a.id, b.id, "a" if a.sha256 > b.sha256 else "b", "larger", order=order)
        shown = [row(a, b, order) for a, b in pairs for order in ("ab", "ba")]
        return SimpleNamespace(rows=[row(a, b, "both") for a, b in pairs], shown=shown)
"""
RECIPE = """
run: run
model: {base: sd}
requests: {source: p.txt, test_share: 0.25}
generate: {own: {n: 2, steps: 2, guidance: 3.0, height: 64, width: 64}}
score: {size: {use: jpeg}}
compare: {duel: {use: "judge.py:Judge", batch_size: 1}}
pair: {main: {use: topk_bottomk, k: 1}}
train:
  dpo: {pairs: main, lora: {rank: 4}, steps: 6, learning_rate: 1e-3, validation: 2, batch_size: 2, checkpoint_every: 2,
        patience: 9, validate_every: 2}
  on:
    objective: {use: ddpo, clip: 2e-3}
    lora: {rank: 4}
    learning_rate: 1e-3
    warmup: 0
    batch_size: 4
    online: {rewards: {size: 1.0}, rounds: 3, requests: 2, samples: 2, updates: 1, steps: 2, watch_requests: 2,
             watch_every: 0, max_drift: 1e-3}
eval:
  held: {models: [dpo], scorers: [size], seeds: 1, bootstrap: 50}
"""


def preload() -> None:
    """Everything that the verbs import, before any fork."""
    import diffusers
    import peft
    import torch

    import prefkit.cli.main
    import prefkit.evaluate.run
    import prefkit.pair.run
    import prefkit.report.page
    import prefkit.testing
    import prefkit.train.online.run
    import prefkit.train.run

    for name in ("StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler"):
        getattr(diffusers, name)
    assert peft and prefkit
    torch.set_num_threads(1)


def start(argv: list[Any], where: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """The pid of a child that runs the command line in `where`, after `before`; stdout and stderr go to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.chdir(where)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # noqa: SIM115
        from prefkit.cli.main import run

        before()
        code = run([str(a) for a in argv])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Exit code; -9 for a killed child."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def call(argv: list[Any], where: Path) -> tuple[int, str]:
    """(exit code, stdout and stderr)"""
    log = where.parent / f"{where.name}.log"
    code = finish(start(argv, where, log))
    return code, log.read_text(encoding="utf-8", errors="replace")


def killed_after(seconds: float, argv: list[Any], where: Path) -> bool:
    """Whether the child was still running then, and was killed."""
    pid = start(argv, where, where.parent / f"{where.name}.log")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return finish(pid) == -signal.SIGKILL


def lay_out(where: Path) -> None:
    """Recipe, prompts and a tiny model."""
    from prefkit.testing import tiny_pipeline

    where.mkdir(parents=True)
    (where / "p.txt").write_text("\n".join(f"a {c} {i}" for c in COLOURS for i in ITEMS), encoding="utf-8")
    (where / "r.yaml").write_text(RECIPE, encoding="utf-8")
    (where / "judge.py").write_text(JUDGE, encoding="utf-8")
    tiny_pipeline("sd", where / "sd")


def do(where: Path, *lines: str) -> None:
    """Command lines that must succeed."""
    for line in lines:
        code, said = call([*line.split(), "-q"], where)
        assert code == 0, f"{line}: {code}\n{said}"


# -- what a run says, whatever its file names ------------------------------------------------------------------------
def tensors(path: Path) -> str:
    import torch
    from safetensors import safe_open

    seen = hashlib.sha256()
    with safe_open(path, "pt") as file:
        for key in sorted(file.keys()):
            seen.update(key.encode() + file.get_tensor(key).contiguous().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def rows(folder: Path, ignored: tuple[str, ...] = ("time", "seconds")) -> str:
    """All rows of a folder of Parquet parts, in order of their text."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted(folder.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found.append(repr(sorted((k, v) for k, v in row.items() if k not in ignored)))
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16]


def said(path: Path, ignored: tuple[str, ...] = ()) -> Any:
    from prefkit.store.files import read_json

    return {key: value for key, value in read_json(path).items() if key not in ignored}


def litter(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob(".*") if p.name.endswith((".tmp", ".partial", ".new", ".old"))]


def metrics(path: Path) -> str:
    from prefkit.store.files import read_lines

    kept = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in read_lines(path)]
    return json.dumps(kept, sort_keys=True)
