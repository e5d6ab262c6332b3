"""Workers of --shard that are killed, started twice, with other clocks and late directory listings: one process's tables."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from prefkit.store import Store

HERE = Path(__file__).parent
RECIPE = """
run: run
requests: {source: p.txt, test_share: 0}
generate: {own: {use: "draw.py:draw", n: 4, batch_size: 8}}
score:
  size: {use: jpeg}
  wide: {use: "wide.py:wide", batch_size: 4}
"""
#: a scorer whose values depend on which images it gets together
WIDE = """
import prefkit

@prefkit.scorer(scope="within_request")
def wide(images, prompts):
    means = [sum(image.resize((1, 1)).getpixel((0, 0))) for image in images]
    return [mean - sum(means) / len(means) for mean in means]
"""


def kit():
    spec = importlib.util.spec_from_file_location("workers_forked", HERE / "forked.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def on_another_machine(number, rng):
    """Give this process another host, a clock that is hours off, and a listing that shows others' parts late."""
    from prefkit.generate import run as generate
    from prefkit.score import passes
    from prefkit.store import litter

    skew, late = rng.uniform(-5, 5) * 3600, rng.uniform(0, 1.5)
    now, now_ns, real_glob = time.time, time.time_ns, Path.glob
    litter._host = lambda: f"{number:012x}"
    time.time = lambda: now() + skew
    time.time_ns = lambda: now_ns() + int(skew * 1e9)
    generate.FLUSH_ROWS, passes.FLUSH_ROWS = 16, 24
    own = f"{number:012x}-{os.getpid()}-"

    def glob(self, pattern):
        for path in real_glob(self, pattern):
            try:
                if not path.name.startswith("part-") or own in path.name or now() - path.stat().st_mtime > late:
                    yield path
            except FileNotFoundError:
                continue

    Path.glob = glob


class Storm:
    """Workers 0 to `count` - 1 of a verb. `kills` of them are killed at random instants and started again."""

    def __init__(self, kit, where, verb, count, rng):
        self.kit, self.where, self.verb, self.count, self.rng = kit, where, verb, count, rng
        self.running, self.started, self.killed = {}, 0, 0

    def start(self, shard):
        self.started += 1
        number, seed = self.started, self.rng.random()
        argv = [self.verb, "-r", "r.yaml", "--shard", f"{shard}/{self.count}", "-q"]
        log = self.where / f"{self.verb}-{number}.log"
        pid = self.kit.start(argv, self.where, log, lambda: on_another_machine(number, random.Random(seed)))
        self.running[pid] = (shard, log)

    def work(self, kills, seconds):
        """Kill a worker after at most `seconds`, again and again, then let all end."""
        for shard in range(self.count):
            self.start(shard)
            time.sleep(self.rng.uniform(0, seconds / self.count))
        while self.killed < kills:
            time.sleep(self.rng.uniform(0, seconds))
            self.reap(os.WNOHANG)
            if not self.running:
                return
            pid = self.rng.choice(list(self.running))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.killed += 1
            shard, _ = self.running.pop(pid)
            for _ in range(self.rng.choice((1, 1, 1, 2))):  # some are started twice
                self.start(shard)
        self.reap(0)

    def reap(self, how):
        for pid in list(self.running):
            done, status = os.waitpid(pid, how)
            if done:
                _, log = self.running.pop(pid)
                assert os.waitstatus_to_exitcode(status) == 0, log.read_text(errors="replace")[-2000:]


def lay_out(where, prompts):
    where.mkdir()
    (where / "p.txt").write_text("\n".join(f"thing number {n}" for n in range(prompts)), encoding="utf-8")
    (where / "r.yaml").write_text(RECIPE, encoding="utf-8")
    (where / "wide.py").write_text(WIDE, encoding="utf-8")
    (where / "draw.py").write_text((HERE.parent / "drawing.py").read_text(encoding="utf-8"), encoding="utf-8")


def tables(where):
    store = Store(where / "run")
    found = {"own": store.candidates("own"), "size": store.scores("size"), "wide": store.scores("wide")}
    return {name: table.frame().sort_values("id", ignore_index=True) for name, table in found.items()}


def storm(tmp_path, prompts, count, kills, seconds, seed):
    """Generate and score with killed workers, and compare with one process; returns the number of kills."""
    found, rng = kit(), random.Random(seed)
    for module in ("prefkit.cli.main", "prefkit.generate.run", "prefkit.score.run", "pandas", "pyarrow.parquet"):
        importlib.import_module(module)  # once, before any fork
    lay_out(tmp_path / "one", prompts)
    found.do(tmp_path / "one", "generate -r r.yaml", "score -r r.yaml")
    where, killed = tmp_path / "many", 0
    lay_out(where, prompts)
    for verb, share in (("generate", kills // 2), ("score", kills - kills // 2)):
        for workers in (count, count - 1, count, count + 1):  # N may change between attempts
            attempt = Storm(found, where, verb, workers, rng)
            attempt.work(-(-share // 4) if workers != count + 1 else max(0, share - 3 * -(-share // 4)), seconds)
            killed += attempt.killed
        time.sleep(1.6)  # so that the last command sees the last part
        for path in where.rglob(".*.tmp"):  # what killed workers of other machines left is removed an hour later
            os.utime(path, (0, 0))
        code, text = found.call([verb, "-r", "r.yaml", "--json"], where)
        assert code == 0 and (f'"{"made" if verb == "generate" else "scored"}": 0' in text), text[-2000:]
    one, many = tables(tmp_path / "one"), tables(where)
    for name, frame in one.items():
        assert len(frame) == 4 * prompts
        pd.testing.assert_frame_equal(frame, many[name])
    assert not found.litter(where)
    return killed


def test_killed_workers_make_the_tables_of_one_process(tmp_path):
    assert storm(tmp_path, 24, 3, 4, 0.1, seed=1) >= 2


@pytest.mark.slow
def test_a_storm_over_2000_candidates(tmp_path):
    assert storm(tmp_path, 500, 8, 50, 0.5, seed=int(os.environ.get("PREFKIT_SEED", "7"))) >= 50
