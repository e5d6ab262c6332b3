"""`embed: false`: readers of pairs without images get the same images as readers of pairs with images."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prefkit.config import Pair, Recipe
from prefkit.fit.preferences import read_preferences
from prefkit.hub.export_run import run_export
from prefkit.hub.importing.run import run_import
from prefkit.hub.pair_reader import Pairs
from prefkit.pair.run import run_pair
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import candidate_row
from prefkit.train.data.batches import first_size
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.types import Candidate, Request


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Pairs `main` with images and `bare` without, both with ties and lists; half of the images stay in their files."""
    folder = tmp_path_factory.mktemp("bare")
    store = Store.create(folder / "run")
    store.write_requests([Request(f"r{i}", f"prompt {i}", "test" if i == 5 else "train") for i in range(6)])
    rows = []
    for i in range(18):
        data = picture(i)
        (folder / f"{i}.png").write_bytes(data)
        where = {"path": str(folder / f"{i}.png")} if i % 2 else {"image": data}
        sha = hashlib.sha256(data).hexdigest()
        rows.append(candidate_row(Candidate(f"c{i}", f"r{i // 3}", i % 3, i, sha256=sha, **where)))
    store.candidates("own").append(rows)
    values = [0.0, 1.0, 0.95, 0.0, 0.0, 0.0, *np.random.default_rng(0).normal(size=12)]
    store.scores("a").append([{"id": f"c{i}", "value": float(v)} for i, v in enumerate(values)])
    write_json(store.scores("a").folder / "spec.json", {"name": "a"})
    for name, embed in (("main", True), ("bare", False)):
        settings = Pair(use="all_pairs", embed=embed, lists=True)
        run_pair(store, Recipe(run=str(store.folder), pair={name: settings}), name)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    """Every file except the hidden list of files, which holds their times."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."
    }


@pytest.mark.parametrize("layout", ["chosen_rejected", "folders", "unpaired", "trl_judge", "rapidata"])
def test_every_layout_is_the_same_to_the_byte(store, tmp_path, layout):
    """Ties and lists of a pair set are not exported as pairs."""
    assert (store.pairs("main") / "ties").exists() and (store.pairs("main") / "lists").exists()
    for name in ("main", "bare"):
        counts = run_export(f"{store.folder}/{name}", tmp_path / name, layout=layout)
        assert counts["pairs"] == 14
    assert contents(tmp_path / "main") == contents(tmp_path / "bare") != {}


def test_training_reads_the_same_images_also_of_another_run(store, tmp_path):
    other = Store.create(tmp_path / "other")
    for place, names in ((store, ("main", "bare")), (other, [str(store.pairs(n)) for n in ("main", "bare")])):
        main, bare = (PairSource.find(place, name) for name in names)
        assert list(main.images()) == list(bare.images()) != []
        assert read_pairs(main) == read_pairs(bare)
        assert first_size(bare, place, read_pairs(bare)) == (24, 16)


def test_a_scorer_is_fitted_on_the_same_images(store):
    main, bare = (read_preferences("fit", str(store.pairs(name)), "", "") for name in ("main", "bare"))
    assert main.rows == bare.rows
    assert [main.encoded(image) for row in main.rows for image in row.images] == [
        bare.encoded(image) for row in bare.rows for image in row.images
    ]


def test_a_pair_set_is_imported_without_its_ties_and_lists(store, tmp_path):
    found = run_import(Store(tmp_path / "run"), str(store.pairs("main")), pairs=True)
    assert found["items"] == 14 and found["failed"] == 0 and sum(found["pairs"].values()) == 14
    shown = [
        {(p.split, p.caption, p.win, p.lose) for p in Pairs(where).rows()}
        for where in (f"{store.folder}/main", f"{tmp_path}/run/pickapic")
    ]
    assert shown[0] == shown[1] and len(shown[0]) == 14
