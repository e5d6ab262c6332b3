"""What killed processes left half written goes; what another process is writing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from prefkit.errors import StoreError
from prefkit.store import Store, litter
from prefkit.store.files import write_json
from prefkit.store.folders import files_in, whole_folder

PLACES = ("", "candidates/own", "scores/size", "comparisons/duel", "image_stats", "pairs", "train/dpo", "train/dpo/checkpoints",
          "train/dpo/watch", "train/on/rounds/0001/candidates/policy", "train/.cache/x/latents", "eval/held/set/base",
          ".imports", "push")  # fmt: skip


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(path, pid, host=None, age=0.0):
    """A temporary file that a process of this pid left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{host or litter._host()}-{pid}-0123abcd.tmp"
    found = path.with_name(name)
    found.write_text("half", encoding="utf-8")
    os.utime(found, (time.time() - age, time.time() - age))
    return found


def test_a_lock_removes_what_the_dead_left_in_every_folder_of_a_run(tmp_path):
    store, pid = Store.create(tmp_path / "run"), dead_pid()
    gone = [left(store.folder / place / "spec.json", pid) for place in PLACES]
    folder = gone[6].with_name(f".final.{litter._host()}-{pid}-0123abcd.tmp")
    (folder / "deep").mkdir(parents=True)
    living = [left(store.folder / place / "spec.json", os.getppid()) for place in PLACES]
    mine = left(store.folder / "mine", os.getpid())
    users = store.folder / ".notes.tmp"
    users.write_text("", encoding="utf-8")
    with store.lock("scores/size"):
        pass
    assert not any(path.exists() for path in [*gone, folder])
    assert all(path.exists() for path in [*living, mine, users])


@pytest.mark.parametrize("name", [".part-1.safetensors.7.tmp", ".final.tmp", ".step-00000002.tmp", ".main.new", "HOST"])
def test_of_another_machine_or_an_earlier_version_only_what_is_old_goes(tmp_path, name):
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    for folder, age in ((old, 2 * litter.ABANDONED), (fresh, 0.0)):
        folder.mkdir()
        if name == "HOST":
            left(folder / "a", dead_pid(), host="0" * 12, age=age)
        else:
            (folder / name).write_text("", encoding="utf-8")
            os.utime(folder / name, (time.time() - age, time.time() - age))
    litter.sweep(tmp_path)
    assert not list(old.iterdir()) and len(list(fresh.iterdir())) == 1


def test_files_that_go_meanwhile_are_no_error(tmp_path, monkeypatch):
    path, gone = left(tmp_path / "a", dead_pid()), left(tmp_path / "b", dead_pid(), host="0" * 12)
    gone.unlink()
    monkeypatch.setattr(litter.os, "walk", lambda _: [(str(tmp_path), [], [gone.name, path.name])])
    litter.sweep(tmp_path)
    assert not path.exists()  # what is still there is removed, whatever else has gone
    litter.sweep(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_no_two_names_are_equal_and_pids_of_other_hosts_are_not_looked_up(tmp_path, monkeypatch):
    names = {litter.temporary_beside(tmp_path / "spec.json").name for _ in range(100)}
    assert len(names) == 100
    here = left(tmp_path / "a", os.getpid())
    monkeypatch.setattr(litter, "_host", lambda: "f" * 12)  # another container, in which this pid is somebody else's
    monkeypatch.setattr(litter, "_alive", lambda pid: False)
    litter.sweep(tmp_path)
    assert here.exists()


def test_an_export_sweeps_only_its_own_names(tmp_path):
    pid = dead_pid()
    own, other = left(tmp_path / "out", pid), left(tmp_path / "else", pid)
    with whole_folder(tmp_path / "out") as folder:
        write_json(folder / "a.json", {"a": 1})
    assert not own.exists() and other.exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "prefkit-checksums.json"]


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_that_cannot_be_replaced_is_as_it_was(tmp_path, monkeypatch, old):
    def refused(one, other):
        if str(other) == str(tmp_path / "out") and (one / "new.txt").exists():
            raise OSError(28, "No space left on device")
        replace(one, other)

    replace = os.replace
    if old:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old.txt").write_text("kept", encoding="utf-8")
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(StoreError, match="No space left"), whole_folder(tmp_path / "out", manifest=False) as folder:
        (folder / "new.txt").write_text("x", encoding="utf-8")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["out/old.txt"] * old


def test_a_folder_that_another_machine_is_filling_stays_and_counts_as_changed_when_its_files_are(tmp_path):
    folder = left(tmp_path / "pairs", 1, host="0" * 12)
    folder.unlink()
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "part-0000.parquet").write_text("half", encoding="utf-8")
    old = time.time() - 2 * litter.ABANDONED
    for path in (folder / "train", folder):
        os.utime(path, (old, old))
    litter.sweep(tmp_path)
    assert folder.exists()
    os.utime(folder / "train" / "part-0000.parquet", (old, old))
    litter.sweep(tmp_path)
    assert not folder.exists()


def test_removed_files_that_are_still_open_on_nfs_are_not_foreign(tmp_path):
    for name in ("spec.json", ".nfs000000000a3f01c200000002", ".DS_Store"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert files_in(tmp_path) == ["spec.json"]
