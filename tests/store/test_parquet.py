"""Shards as the viewer and old trainers want them, and rows read without whole row groups."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.store import parquet

SCHEMA = pa.schema([("jpg_0", pa.binary()), ("caption", pa.string())])
ROWS = [{"jpg_0": bytes([i]) * 1000, "caption": "the same words"} for i in range(25)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 3000)
    monkeypatch.setattr(parquet, "SHARD_BYTES", 9000)


def write(folder):
    with parquet.Shards(folder, SCHEMA) as out:
        for row in ROWS:
            out.put(row)
    return sorted(folder.glob("*.parquet"))


def test_groups_are_small_images_plain_and_bytes_the_same(small, tmp_path):
    files = write(tmp_path / "a")
    assert len(files) == 3 and [r for f in files for r in pq.read_table(f).to_pylist()] == ROWS
    for path in files:
        found = pq.read_metadata(path)
        for group in range(found.num_row_groups):
            image, caption = (found.row_group(group).column(i) for i in (0, 1))
            assert found.row_group(group).num_rows <= 3 and image.compression == "UNCOMPRESSED"
            assert not image.has_dictionary_page and not image.is_stats_set and caption.has_dictionary_page
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in write(tmp_path / "b")]


def test_the_limits_in_force_are_below_the_viewers():
    assert parquet.ROW_GROUP_BYTES <= 100 << 20 and parquet.SHARD_BYTES <= 500 << 20


def test_images_inside_of_structs_and_lists_count_and_stay_plain(small, tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("images", pa.list_(image)), ("said", pa.string())])
    rows = [{"images": [{"bytes": bytes([i]) * 1000, "path": "x.png"}] * 2, "said": "so"} for i in range(6)]
    with parquet.Shards(tmp_path, schema, "train-") as out:
        for row in rows:
            out.put(row)
    files = sorted(tmp_path.glob("train-0000*.parquet"))
    assert [r for f in files for r in parquet.read_rows(f)] == rows and out.rows == 6
    group = pq.read_metadata(files[0]).row_group(0)
    found = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    (data,) = (column for path, column in found.items() if path.endswith("bytes"))
    (path,) = (column for path, column in found.items() if path.endswith("path"))
    assert group.num_rows == 1 and data.compression == "UNCOMPRESSED" and not data.has_dictionary_page
    assert path.compression == "SNAPPY" and path.has_dictionary_page


def test_tables_are_row_groups_and_only_what_repeats_has_a_dictionary(tmp_path):
    table = pa.table({"id": [f"{i:08x}" for i in range(100)], "caption": ["a", "b"] * 50})
    with parquet.Shards(tmp_path, table.schema, repeated=["caption"]) as out:
        out.write(table.slice(0, 60))
        out.write(table.slice(60))
    (file,) = tmp_path.glob("*.parquet")
    found = pq.read_metadata(file)
    assert [found.row_group(i).num_rows for i in (0, 1)] == [60, 40] and out.rows == 100
    assert [found.row_group(0).column(i).has_dictionary_page for i in (0, 1)] == [False, True]


def test_reading_does_not_hold_the_row_group(tmp_path):
    """A row group of 64 MB, in pages of one value: what the pool held at most while it was read is a small part."""
    table = pa.table({"jpg": pa.array([bytes([i % 256]) * (1 << 20) for i in range(64)], pa.binary())})
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 1 << 20, "write_batch_size": 1}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64, **options)
    del table
    code = """
import sys, pyarrow as pa
from prefkit.store.parquet import read_rows
count = sum(len(row["jpg"]) == 1 << 20 for row in read_rows(sys.argv[1]))
print(count, pa.default_memory_pool().max_memory())
"""
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.parquet"], capture_output=True, text=True, check=True
    )
    count, most = map(int, out.stdout.split())
    assert count == 64 and most < 48 << 20


def test_a_shard_that_fails_half_way_does_not_write_what_waits(tmp_path):
    with pytest.raises(ZeroDivisionError), parquet.Shards(tmp_path, SCHEMA) as out:
        out.put(ROWS[0])
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
