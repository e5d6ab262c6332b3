"""Of an id that was stored several times the last row counts, whoever reads, and however it is spread over parts."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prefkit.config import Pair
from prefkit.pair.image_stats import image_stats
from prefkit.pair.pool import add_scores, read_pool
from prefkit.store import Store, latest, reader, table
from prefkit.store.reader import CandidateReader, by_request
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request, candidate_schema

COLUMNS = candidate_schema().names


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def made(i, request="r0", seed=None):
    return candidate_row(Candidate(f"c{i}", request, i, i, image=png(i if seed is None else seed), sha256=f"{seed}"))


def failed(i, request="r0"):
    return candidate_row(Candidate(f"c{i}", request, i, i, error="out of memory"))


@pytest.fixture
def store(tmp_path):
    found = Store.create(tmp_path / "run")
    found.write_requests([Request(f"r{i}", f"a hat {i}", extra={"n": i}) for i in range(3)])
    return found


def test_retries_count_once_and_the_last_word_holds(store):
    table_ = store.candidates("own")
    table_.append([failed(1), made(2)])
    table_.append([made(1, seed=7), made(3), made(3, seed=8)])
    table_.append([failed(2)])
    found = {c.id: c for c in store.iter_candidates()}
    assert [c.id for c in store.iter_candidates()] == ["c1", "c3", "c2"]
    assert found["c1"].error is None and found["c1"].sha256 == "7" and found["c3"].sha256 == "8"
    assert found["c2"].error == "out of memory"
    frame = table_.frame(["id", "error"])
    assert {c.id: c.error for c in found.values()} == dict(zip(frame.id, frame.error.replace({np.nan: None})))
    assert [c.id for c in store.iter_candidates(ids={"c3", "c9"})] == ["c3"]
    assert read_pool(store, Pair()).frame["index"].tolist() == [1, 3]
    seen = image_stats(store, ["own"], {"c1", "c3"})
    assert seen.error.isna().all() and len(seen) == 2


def test_ids_that_differ_are_recognised_without_looking_each_up():
    ids = [f"{number:020x}" for number in range(300)]
    for width in (1, 8, 20):
        short = [text[-width:] for text in ids]
        for some in (short, short[: 10 if width == 1 else None], [*short[:9], short[4]]):
            assert latest._differ(pa.array(["x" * width, *some])[1:]) is (len({*some}) == len(some))
    assert not latest._differ(pa.array(["a", "bb"])) and not latest._differ(pa.array(["a", None]))  # unknown
    assert not latest._differ(pa.array(["", ""])) and latest._differ(pa.array([], pa.string()))


def test_two_generators_with_equal_ids_give_the_one_that_did_not_fail(store):
    store.candidates("a").append([made(1, seed=1), failed(2), made(3, seed=3)])
    store.candidates("b").append([failed(1), made(2, seed=2), made(3, seed=4)])
    assert {c.id: c.sha256 for c in store.iter_candidates()} == {"c1": "1", "c2": "2", "c3": "4"}
    assert {c.id: c.error for c in store.iter_candidates(["b"])} == {"c1": "out of memory", "c2": None, "c3": None}


@pytest.mark.parametrize("again", [made, failed])
def test_two_generators_with_equal_ids_are_paired_as_one(store, again):
    """Both lists name c2 once: its score, its look and its image are those of the row that did not fail."""
    store.candidates("a").append([made(1), made(2)])
    store.candidates("b").append([made(1), again(2)])
    store.scores("x").append([{"id": "c1", "value": 1.0}, {"id": "c2", "value": 2.0}])
    pool, _ = add_scores(store, read_pool(store, Pair()), ["x"])
    assert dict(zip(pool.frame["index"], pool.frame.x)) == {1: 1.0, 2: 2.0}
    assert image_stats(store, ["a", "b"], {"c1", "c2"}).error.isna().all()
    reader = CandidateReader(store)
    assert [reader.image(f"c{i}") for i in (1, 2)] == [png(1), png(2)]


def test_parts_without_a_wanted_row_are_not_read_and_ids_are_looked_up_once(store, monkeypatch):
    for i in range(6):
        store.candidates("own").append([made(i)])
    opened, inner = [], table.read_part
    monkeypatch.setattr(
        latest, "read_part", lambda path, columns=None: opened.append(tuple(columns)) or inner(path, columns)
    )
    assert [c.id for c in store.iter_candidates(ids={"c2", "c4"})] == ["c2", "c4"]
    assert opened.count(("id", "error")) == 6 and len(opened) == 6 + 2


def test_random_histories_read_as_frame_does(store):
    rng = np.random.default_rng(3)
    table_ = store.candidates("own")
    for _ in range(12):
        ids = rng.integers(0, 15, rng.integers(1, 9))
        table_.append([failed(i) if rng.random() < 0.4 else made(i, seed=int(rng.integers(99))) for i in ids])
    frame = table_.frame(["id", "sha256"])
    assert [(c.id, c.sha256) for c in store.iter_candidates()] == list(
        zip(frame.id, frame.sha256.replace({np.nan: None}))
    )


@pytest.mark.parametrize("step", [1, reader.STEP_BYTES])
def test_requests_come_whole_from_parts_that_interleave(store, monkeypatch, step):
    """A larger n, a second generator and a retry: the candidates of a request lie in six parts."""
    monkeypatch.setattr(reader, "STEP_BYTES", step)
    monkeypatch.setattr("prefkit.store.reader.OPEN_PARTS", 2)
    for index in range(2):
        store.candidates("a").append([made(10 * r + index, f"r{r}") for r in range(3)])
    store.candidates("a").append([failed(12, "r1"), made(2, "r0")])
    store.candidates("a").append([made(12, "r1", seed=12)])
    store.candidates("b").append([made(10 * r + 5, f"r{r}") for r in (2, 0, 1)])  # in another order
    ids = {c.id for c in store.iter_candidates()}
    found = list(by_request(store, [], ids, COLUMNS))
    assert [[c.id for c in request] for request in found] == [["c0", "c1", "c2", "c5"], ["c10", "c11", "c12", "c15"], ["c20", "c21", "c25"]]  # fmt: skip
    assert all(c.error is None and c.prompt == f"a hat {c.extra['n']}" for request in found for c in request)
    by_id = {c.id: c.image for c in store.iter_candidates()}
    assert all(c.image == by_id[c.id] for request in found for c in request)
    some = by_request(store, ["a"], {"c0", "c1", "c20"}, COLUMNS)
    assert [[c.id for c in request] for request in some] == [["c0", "c1"], ["c20"]]


def test_a_request_in_a_damaged_part_is_left_out_as_a_whole(store, capsys):
    store.candidates("a").append([made(0, "r0"), made(10, "r1")])
    store.candidates("a").append([made(11, "r1"), made(12, "r1"), made(20, "r2")])
    path = store.candidates("a").parts()[1]
    data = bytearray(path.read_bytes())
    at = bytes(data).index(b"IDAT")
    data[at + 8] ^= 1
    path.write_bytes(data)
    found = list(by_request(store, [], {"c0", "c10", "c11", "c12", "c20"}, COLUMNS))
    assert [[c.id for c in request] for request in found] == [["c0"]]
    assert capsys.readouterr().err.count(path.name + " is damaged") == 1 and not path.exists()


@pytest.mark.parametrize("column", ["seed", "image", "extra"])
def test_no_flip_in_the_headers_of_pages_changes_what_a_request_holds(store, column):
    """Page checksums do not cover them."""
    store.candidates("a").append([made(i, "r0") for i in range(4)])
    (path,) = store.candidates("a").parts()
    data, ids = path.read_bytes(), {f"c{i}" for i in range(4)}
    (wanted,) = by_request(store, [], ids, COLUMNS)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(COLUMNS.index(column))
    for bit in range(8 * 40):
        changed = bytearray(data)
        changed[chunk.data_page_offset + bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert list(by_request(store, [], ids, COLUMNS)) in ([wanted], []), bit
