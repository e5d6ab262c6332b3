"""Shards as the viewer and old trainers want them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.hub import push_shards as shards

SCHEMA = pa.schema([("jpg_0", pa.binary()), ("caption", pa.string())])
ROWS = [{"jpg_0": bytes([i]) * 1000, "caption": "the same words"} for i in range(25)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 3000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 9000)


def write(folder):
    with shards.Shards(folder, SCHEMA) as out:
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
    assert shards.ROW_GROUP_BYTES <= 100 << 20 and shards.SHARD_BYTES <= 500 << 20
