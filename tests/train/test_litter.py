"""What killed processes left goes, what others are writing stays, and what goes by itself is no error."""

from __future__ import annotations

import os
import time

from prefkit.train import litter


def test_old_goes_fresh_stays_and_gone_is_no_error(tmp_path, monkeypatch):
    folder, cache = tmp_path / "dpo", tmp_path / ".cache" / "model" / "latents"
    (folder / ".final.tmp").mkdir(parents=True)
    (folder / "checkpoints" / ".step-00000002.tmp").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    cache.mkdir(parents=True)
    old, fresh, part = (
        cache / ".part-1.safetensors.7.tmp",
        cache / ".part-2.safetensors.8.tmp",
        cache / "part-3.safetensors",
    )
    for path in (old, fresh, part):
        path.write_text("")
    long_ago = time.time() - 2 * litter.ABANDONED
    for path in (old, part):
        os.utime(path, (long_ago, long_ago))
    listed = litter._listed

    def finished_meanwhile(cache):
        return [cache / ".part-0.safetensors.6.tmp", *listed(cache)]

    monkeypatch.setattr(litter, "_listed", finished_meanwhile)
    litter.remove(folder)
    assert not old.exists() and fresh.exists() and part.exists()
    assert sorted(path.name for path in folder.rglob("*")) == ["checkpoints", "metrics.jsonl"]
    litter.remove(tmp_path / "never")
