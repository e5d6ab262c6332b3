"""The importer of Science-T2I: both published schemas, rows that cannot be used, and large row groups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.hub.importing.records import Item, Picture
from prefkit.hub.importing.run import _batches, run_import
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts

NAME = "train-00000-of-00001.parquet"


def imported(source: Path, run: Path, **options):
    store = Store(run)
    return store, run_import(store, str(source), **options)


def test_texts_and_lists_of_images(tmp_path):
    store, counts = imported(layouts.science_t2i(tmp_path / "s"), tmp_path / "run")
    assert counts["requests"] == 3 and counts["candidates"] == 12 and counts["comparisons"] == 3 * 2 * 2
    request = store.requests()[0]
    assert request.prompt.startswith("an unripe fruit") and request.split == "train"
    number = request.prompt.split()[-1]
    extra = {"explicit": f"a green fruit {number}", "superficial": f"a red fruit {number}"}
    assert request.extra == extra | {"law": "ripeness", "category": "biology"}
    tiers = {c.id: c.extra["tier"] for c in store.iter_candidates()}
    frame = store.comparisons("science_t2i").frame()
    assert set(frame.outcome) == {"a"} and {tiers[cid] for cid in frame.id_a} == {"explicit"}
    assert {tiers[cid] for cid in frame.id_b} == {"superficial"}
    again, matched = imported(tmp_path / "s", tmp_path / "two", flags={"matched": "true"})
    pairs = again.comparisons("science_t2i").frame()
    assert matched["comparisons"] == 6 and set(pairs.id) < set(frame.id)


def test_a_column_of_splits_counts_more_than_the_name_of_the_file(tmp_path):
    path = layouts.science_t2i(tmp_path / "s", 3) / NAME
    table = pq.read_table(path)
    pq.write_table(table.append_column("split", pa.array(["train", "word", None])), path)
    store, _ = imported(tmp_path / "s", tmp_path / "run")
    assert [request.split for request in store.requests()] == ["train", "word", "train"]


def test_lists_of_wordings_are_kept(tmp_path):
    store, _ = imported(layouts.science_t2i(tmp_path / "s", 1, lists=True), tmp_path / "run")
    (request,) = store.requests()
    assert request.prompt == "an unripe fruit 0"
    assert request.extra["implicit"] == ["an unripe fruit 0", "an unripe fruit 0 again"]
    assert request.extra["superficial"] == ["a red fruit 0", "a red fruit 0 again"]


def test_rows_that_cannot_be_used_say_why(tmp_path):
    path = layouts.science_t2i(tmp_path / "s", 6, lists=True) / NAME
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["implicit_prompt"] = []
    rows[1]["superficial_image"] = []
    rows[2]["explicit_image"] = None
    rows[3]["explicit_image"][1] = {"bytes": None, "path": None}
    rows[4]["superficial_prompt"] = None
    rows[5]["law"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    store, counts = imported(tmp_path / "s", tmp_path / "run", max_failed=1.0)
    assert counts["failed"] == 5 and [r.extra.get("law") for r in store.requests()] == [None]
    listed = (tmp_path / "run" / ".imports" / "science_t2i.json").read_text()
    for text in ("row 1: implicit_prompt has no text", "row 2: superficial_image is an empty list",
                 "row 3: explicit_image 0: the image is missing", "row 4: explicit_image 1: the image is missing",
                 "row 5: superficial_prompt has no text"):  # fmt: skip
        assert text in listed


def test_a_dataset_of_the_library_keeps_its_images_encoded(tmp_path):
    import datasets

    table = pq.read_table(layouts.science_t2i(tmp_path / "s", 1) / NAME)
    texts = {name: datasets.Value("string") for name in table.column_names if not name.endswith("_image")}
    pictures = {name: datasets.List(datasets.Image()) for name in table.column_names if name not in texts}
    features = datasets.Features({**texts, **pictures})
    datasets.Dataset.from_list(table.to_pylist(), features=features).save_to_disk(tmp_path / "saved")
    store, counts = imported(tmp_path / "saved", tmp_path / "run", layout="science_t2i")
    assert counts["candidates"] == 4 and layouts.image(0) in [c.image for c in store.iter_candidates()]


def test_large_images_make_small_batches():
    heavy = [Item(str(n), pictures=(Picture("a", bytes(20 << 20)),)) for n in range(5)]
    assert [len(batch) for batch in _batches(iter(heavy), 16)] == [2, 2, 1]
    assert [len(batch) for batch in _batches(iter([Item("x")] * 20), 16)] == [16, 4]


MEASURE = """
import sys
from prefkit.hub.importing.run import run_import
from prefkit.store import Store
run_import(Store(sys.argv[2]), sys.argv[1])
status = open("/proc/self/status").read()  # getrusage would count the memory of the process that started this one
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.slow
def test_a_row_group_of_300_mb(tmp_path):
    """A row has 8 images of 0.9 MB. With a page per image, memory is constant. With pyarrow's default settings, a column
    of a row group is one page, of which the reader holds two copies."""
    source = layouts.science_t2i(tmp_path / "default", 43, size=550, images=4)
    table = pq.read_table(source / NAME)
    for name, rows in (("few", 4), ("paged", 43)):
        (tmp_path / name).mkdir()
        options = {"use_dictionary": False, "write_batch_size": 1, "data_page_size": 1 << 20}
        pq.write_table(table.slice(0, rows), tmp_path / name / NAME, row_group_size=rows, **options)
    del table
    group = pq.read_metadata(source / NAME).row_group(0)
    size = group.total_byte_size >> 20
    assert size > 290 and group.num_rows == 43
    peaks = {}
    for name in ("few", "paged", "default"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / name), str(tmp_path / f"run {name}")]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
        peaks[name] = float(found.stdout.split()[-1])
    assert len(Store(tmp_path / "run default").candidates("science_t2i").frame(["id"])) == 8 * 43
    print(size, peaks)
    assert peaks["paged"] - peaks["few"] < 150
    assert peaks["default"] - peaks["paged"] < 2.5 * size
