"""A damaged part of RUN/image_stats is made again, whichever column the damage is in."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from prefkit.pair import image_stats as module
from prefkit.pair.image_stats import image_stats, usable_cores
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("column", ["id", "thumb", "lightest"])
def test_image_stats_are_the_same_after_damage(tmp_path, capsys, column):
    import pyarrow.parquet as pq

    store = Store.create(tmp_path / "run")
    store.candidates("own").append([candidate_row(Candidate(f"c{i}", "r", i, i, image=png(20 * i))) for i in range(6)])
    wanted = {f"c{i}" for i in range(6)}
    good = image_stats(store, ["own"], wanted)
    (path,) = (store.folder / "image_stats").glob("part-*")
    chunks = [pq.read_metadata(path).row_group(0).column(i) for i in range(11)]
    (chunk,) = (c for c in chunks if c.path_in_schema == column)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 5] ^= 4
    path.write_bytes(data)
    again = image_stats(store, ["own"], wanted)
    assert str(path) in capsys.readouterr().err and again.equals(good)


@pytest.mark.parametrize(("limit", "cores"), [(None, 3), ("2", 2), ("8", 3), ("2,4", 2), ("0", 3), ("many", 3)])
def test_as_many_threads_as_the_process_may_use(monkeypatch, limit, cores):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limit is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert usable_cores() == cores


def test_threads_change_nothing(tmp_path, monkeypatch):
    store, ids = Store.create(tmp_path / "run"), {f"c{i}" for i in range(70)}
    rows = [Candidate(f"c{i}", "r", i, i, image=png(3 * i)) for i in range(70)]
    store.candidates("own").append([candidate_row(candidate) for candidate in rows])
    frames = []
    for cores in (1, 4):
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        frames.append(image_stats(store, ["own"], ids).sort_index())
        for part in (store.folder / "image_stats").glob("part-*"):
            part.unlink()
    assert frames[0].equals(frames[1]) and len(frames[0]) == 70
