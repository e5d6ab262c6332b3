"""SIGKILL at random instants of every verb; the same command again ends as if nothing had happened."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look there
    spec.loader.exec_module(found)
    return found


#: verb -> (command line, what it fills below the scratch folder)
VERBS = {
    "generate": ("generate -r r.yaml", "run/candidates"),
    "score": ("score -r r.yaml", "run/scores"),
    "compare": ("compare -r r.yaml", "run/comparisons"),
    "pair": ("pair -r r.yaml", "run/pairs"),
    "train": ("train -r r.yaml --name dpo", "run/train/dpo"),
    "online": ("train -r r.yaml --name on", "run/train/on"),
    "eval": ("eval -r r.yaml", "run/eval"),
    "report": ("report -r r.yaml", "run/report.html"),
    "export": ("export run/pairs/main out --as chosen_rejected --overwrite", "out"),
    "import": ("import run/pairs/main other --as pickapic --name given", "other"),
    "fit": ("fit vbpr --interactions log.csv --features f.npy --epochs 3 --out fitted", "fitted"),
    "push": ("push run --to you/x --pairs main", "run/push"),
}
ORDER = list(VERBS)


def outcome(kit, where, verb):
    """What the verb left, without file names, clocks and the order of parts."""
    path = where / VERBS[verb][1]
    if verb in ("train", "online"):
        adapter = path / "final" / "pytorch_lora_weights.safetensors"
        last = kit.said(path / "result.json")["last"]
        kept = {k: v for k, v in last.items() if not k.startswith("seconds")}
        return [kit.tensors(adapter), kit.metrics(path / "metrics.jsonl"), kept]
    if verb == "report":
        return path.is_file() and "</html>" in path.read_text(encoding="utf-8")
    if verb == "fit":
        spec = kit.said(path / "spec.json")
        spec["training"].pop("seconds_per_epoch")
        return [kit.tensors(path / "weights.safetensors"), spec]
    if verb == "eval":
        return [kit.rows(path), kit.said(path / "held" / "result.json")]
    if verb == "import":
        return [kit.rows(path), kit.said(path / ".imports" / "given.json", ("counts", "what"))]
    return kit.rows(path)


def prepare(kit, where):
    """The scratch folder before every verb, in order."""
    kit.lay_out(where)
    rng = np.random.default_rng(1)
    np.save(where / "f.npy", rng.normal(size=(60, 8)).astype(np.float32))
    (where / "f.txt").write_text("\n".join(f"i{n}" for n in range(60)), encoding="utf-8")
    rows = [f"u{u},i{2 * n + u % 2},{t}" for u in range(20) for t, n in enumerate(rng.choice(30, 8, replace=False))]
    (where / "log.csv").write_text("\n".join(["user,item,time", *rows]), encoding="utf-8")


class Scene:
    """Snapshots before each verb, its duration, and what it leaves when nobody disturbs it."""

    def __init__(self, kit, root, verbs):
        self.kit, self.root = kit, root
        self.before, self.good, self.seconds = {}, {}, {}
        now = root / "whole"
        prepare(kit, now)
        for verb in ORDER:
            self.before[verb] = root / f"before-{verb}"
            shutil.copytree(now, self.before[verb], symlinks=True)
            begun = time.monotonic()
            kit.do(now, VERBS[verb][0])
            self.seconds[verb] = time.monotonic() - begun
            self.good[verb] = outcome(kit, now, verb)
            if verb == verbs[-1]:
                break

    def trial(self, number, verb, rng):
        """None, or what is wrong after kills and a run to the end; and the number of kills."""
        where = self.root / f"trial-{number}"
        shutil.copytree(self.before[verb], where, symlinks=True)
        line, kills = [*VERBS[verb][0].split(), "-q"], 0
        for _ in range(rng.choice((1, 1, 2, 3))):
            kills += self.kit.killed_after(rng.uniform(0, self.seconds[verb]), line, where)
        code, text = self.kit.call(line, where)
        if code:
            return f"{verb}: resume ends with {code}: {text[-300:]}", kills
        if outcome(self.kit, where, verb) != self.good[verb]:
            return f"{verb}: another result in {where}: {text[-200:]}", kills
        if left := self.kit.litter(where):
            return f"{verb}: left behind: {left}", kills
        shutil.rmtree(where)
        return None, kills


def work(root, verbs, wanted, seed):
    """(faults, kills by verb) after at least `wanted` kills."""
    kit = module("core_forked", HERE / "forked.py")
    kit.preload()
    scene, rng = Scene(kit, root, verbs), random.Random(seed)
    faults, counts, number = [], Counter(), 0
    while sum(counts.values()) < wanted:
        verb = verbs[number % len(verbs)]
        fault, kills = scene.trial(number, verb, rng)
        number, counts[verb] = number + 1, counts[verb] + kills
        print(number, verb, kills, fault or "as uninterrupted", flush=True)
        faults += [fault] if fault else []
    print(sum(counts.values()), "kills,", number, "resumes:", dict(counts))
    return faults, counts


def test_kills_of_the_cheap_verbs(tmp_path):
    faults, kills = work(tmp_path, ["generate", "score", "compare", "pair"], 6, 7)
    assert not faults and sum(kills.values()) >= 6, "\n".join(faults)


@pytest.mark.slow
def test_kills_of_every_verb(tmp_path, monkeypatch):
    hub = module("hub_server", HERE.parent / "hub" / "hub_server.py").Hub()
    from huggingface_hub import constants

    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("ENDPOINT", hub.url),
                        ("HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")):  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_goodtoken")
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    wanted, seed = int(os.environ.get("PREFKIT_KILLS", "200")), int(os.environ.get("PREFKIT_SEED", "7"))
    faults, kills = work(tmp_path, ORDER, wanted, seed)
    assert not faults and set(kills) == set(ORDER), "\n".join(faults)
