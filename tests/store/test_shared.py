"""Several machines that write to one folder without locks: claims, part numbers, damaged and vanishing parts, listings."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import safetensors
from torch.distributed import HashStore

from prefkit.distributed import Group
from prefkit.errors import DamagedError, FingerprintError, StoreError
from prefkit.store import Store, files, run, seal
from prefkit.store import table as tables
from prefkit.store.table import check_fingerprint
from prefkit.types import Request

ROWS = [{"id": "c", "value": 1.0, "aspects": None, "text": None, "error": None}]


def at_once(work, count):
    """Results of work(i) in `count` threads that start together."""
    gate, results = threading.Barrier(count), [None] * count

    def act(i):
        gate.wait()
        try:
            results[i] = work(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=act, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("links", [True, False])
def test_of_many_claims_at_once_one_counts(tmp_path, monkeypatch, links):
    def refused(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    for attempt in range(4 if links else 1):
        path = tmp_path / str(attempt) / "spec.json"
        found = at_once(lambda i, path=path: check_fingerprint(path, {"seed": i}, "Stop."), 8 if links else 1)
        (winner,) = [i for i, result in enumerate(found) if result is None]
        assert files.read_json(path) == {"seed": winner}
        assert all(isinstance(result, FingerprintError) for i, result in enumerate(found) if i != winner)
        with pytest.raises(FingerprintError, match=f"seed: stored {winner}, requested 99"):
            check_fingerprint(path, {"seed": 99}, "Stop.")
        assert [file.name for file in path.parent.iterdir()] == ["spec.json"]


def test_a_lost_reply_of_the_file_system_counts_as_success(tmp_path, monkeypatch):
    """NFS repeats a request whose reply was lost, and the repetition finds the name taken by the first."""
    real = os.link

    def twice(source, target):
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert files.create_json(tmp_path / "spec.json", {"a": 1})
    assert not files.create_json(tmp_path / "spec.json", {"a": 2})


def test_a_row_replaces_an_older_one_even_if_the_clock_has_gone_back(tmp_path, monkeypatch):
    table = Store(tmp_path).scores("a")
    table.append([{**ROWS[0], "value": None, "error": "out of memory"}])
    now = time.time_ns()
    monkeypatch.setattr(tables.time, "time_ns", lambda: now - 10**13)
    later = Store(tmp_path).scores("a")
    later.append(ROWS)
    later.append([{**ROWS[0], "value": 2.0}])
    assert later.frame().value.tolist() == [2.0] and len(later.parts()) == 3


def test_a_part_that_another_process_set_aside_is_no_damage(tmp_path, monkeypatch, capsys):
    table = Store(tmp_path).scores("a")
    table.append(ROWS)
    (part,) = table.parts()
    aside = part.with_name(f"{part.name}.damaged")
    part.rename(aside)
    before = aside.read_bytes()
    assert tables.read_part(part) is None and capsys.readouterr().err == ""
    assert files.set_aside(part) == aside and aside.read_bytes() == before


def test_an_error_of_the_file_system_is_no_damage(tmp_path, monkeypatch):
    table = Store(tmp_path).scores("a")
    table.append(ROWS)

    def fails(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tables, "open_sealed", fails)
    with pytest.raises(StoreError, match="Too many open files"):
        table.read()
    assert len(table.parts()) == 1


def listing_late(monkeypatch, seconds):
    """Directory listings of rank 1's thread that show parts only after `seconds`."""
    start, real = time.monotonic(), Path.glob

    def glob(self, pattern):
        if threading.current_thread().name == "late" and time.monotonic() - start < seconds:
            return iter(())
        return real(self, pattern)

    monkeypatch.setattr(Path, "glob", glob)


@pytest.mark.parametrize("seconds", [0.3, 60])
def test_processes_wait_until_all_see_the_parts_of_all(tmp_path, monkeypatch, seconds):
    table, store, found = Store(tmp_path).scores("a"), HashStore(), [None, None]
    table.append(ROWS)
    listing_late(monkeypatch, seconds)
    monkeypatch.setattr(tables, "LATE", 30.0 if seconds < 1 else 0.5)

    def act(rank):
        group = Group(rank, 2, store)
        try:
            tables.see(table.folder, group.gather, group.broadcast)
            found[rank] = len(table.parts())
        except StoreError as error:
            found[rank] = str(error)
        group.heart.stopping.set()

    threads = [threading.Thread(target=act, args=(rank,), name=("main", "late")[rank], daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if seconds < 1:
        assert found == [1, 1]
    else:
        assert all("must share the run folder" in text for text in found)


def test_a_part_that_is_replaced_while_it_is_opened_is_not_damaged(tmp_path, monkeypatch):
    """Live votes replace their part at each vote, between the steps in which a reader opens it."""
    table, check, more = Store.create(tmp_path).scores("a"), seal.check, ["d"]
    table.write("part-live.parquet", ROWS)

    def replacing(path, *rest):
        if more:
            table.write("part-live.parquet", [*ROWS, ROWS[0] | {"id": more.pop(), "value": 0.1}])
        check(path, *rest)

    monkeypatch.setattr(seal, "check", replacing)
    assert table.ids() == {"c", "d"} and not more
    assert [path.name for path in table.parts()] == ["part-live.parquet"]


def fails_once(monkeypatch, where, name, number):
    """The next call of `where.name` raises an OSError with this number, as a network file system does."""
    real, left = getattr(where, name), [number]

    def call(*given, **how):
        if left:
            raise OSError(left.pop(), "the file system failed")
        return real(*given, **how)

    monkeypatch.setattr(where, name, call)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_files_are_not_renamed_because_a_file_system_failed(tmp_path, monkeypatch, number):
    import torch

    from prefkit.store.tensors import load_tensors, save_tensors

    store, spec, kept = Store.create(tmp_path), tmp_path / "a.json", tmp_path / "kept.safetensors"
    store.write_requests([Request("r", "hat")])
    files.write_json(spec, {"a": 1})
    save_tensors(kept, {"w": torch.zeros(2)}, {})
    before = sorted(path.name for path in tmp_path.iterdir())
    reads = {
        (Path, "read_bytes"): lambda: files.sound_json(spec),
        (run, "open_sealed"): store.requests,
        (safetensors, "safe_open"): lambda: load_tensors(kept, "Remove it."),
    }
    for (where, name), read in reads.items():
        fails_once(monkeypatch, where, name, number)
        with pytest.raises(StoreError, match="file system failed; run the same command again") as found:
            read()
        assert not isinstance(found.value, DamagedError) and read()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_spec_json_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    table = Store.create(tmp_path).scores("a")
    table.claim({"seed": 0}, "Stop.", empty=False)
    real = Path.read_bytes

    def vanishes(path):
        (table.folder / "spec.json").unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", vanishes)
    assert table.spec() is None
    with pytest.raises(StoreError, match="moved or changed"):
        table.append(ROWS)
