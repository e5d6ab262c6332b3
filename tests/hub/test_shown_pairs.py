"""Images that leave a run look as its scorers saw them: datasets, exports, judges, processes, audits, the background."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prefkit.hub.export_run import run_export
from prefkit.hub.importing.run import run_import
from prefkit.images import Background, rgb, traits
from prefkit.score.judge.server import data_url
from prefkit.score.remote.process import ProcessScorer
from prefkit.score.remote.protocol import decode_item, encode_item
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.types import Candidate

NEEDS = frozenset({"image"})


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def cut_out(seed: int) -> bytes:
    """A square of noise, surrounded by transparent noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 4), np.uint8)
    pixels[..., 3] = 0
    pixels[8:24, 8:24, 3] = 255
    return png(Image.fromarray(pixels))


def opaque(seed: int) -> bytes:
    return png(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)))


def photo(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    return png(Image.fromarray(noise), exif=exif)


KINDS = {"cut out": cut_out, "photo": photo, "plain": opaque}


@pytest.fixture(autouse=True)
def on_white():
    yield
    Background.set("white")


@pytest.fixture
def folder(tmp_path):
    for n, make in enumerate(KINDS.values()):
        for side, seed in (("w", 2 * n), ("l", 2 * n + 1)):
            (tmp_path / "d" / side).mkdir(parents=True, exist_ok=True)
            (tmp_path / "d" / side / f"{n}.png").write_bytes(make(seed))
    return tmp_path


def pil_alone(data: bytes) -> np.ndarray:
    """The pixels that trainers read, from Pillow's convert."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def originals(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "d").rglob("*.png"))]


def test_pairs_and_exports_hold_what_is_seen(folder):
    store = Store(folder / "run")
    run_import(store, str(folder / "d"), flags={"prompt": "a square"}, pairs=True)
    name = store.names("pairs")[0]
    rows = [row for path in store.pairs(name).rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    files = {data: rgb(data) for data in originals(folder)}
    wanted = sorted(np.asarray(image).tobytes() for image in files.values())
    both = [row[f"jpg_{i}"] for row in rows for i in (0, 1)]
    assert sorted(pil_alone(data).tobytes() for data in both) == wanted
    assert sum(data in files for data in both) == 2  # plain images keep their bytes
    run_export(f"{store.folder}/{name}", str(folder / "out"), layout="folders", flags={})
    exported = [path.read_bytes() for path in (folder / "out").rglob("*.png")]
    assert sorted(pil_alone(data).tobytes() for data in exported) == wanted
    kept = [c.path for c in store.iter_candidates()]
    assert sorted(Path(path).read_bytes() for path in kept) == sorted(files)  # the candidates stay untouched


def test_exports_of_foreign_pairs_too(folder):
    import pyarrow as pa

    row = {"jpg_0": cut_out(0), "jpg_1": opaque(1), "label_0": 1.0, "label_1": 0.0, "caption": "a square"}
    (folder / "foreign").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), folder / "foreign" / "train.parquet")
    run_export(str(folder / "foreign"), str(folder / "out"), layout="chosen_rejected", flags={})
    (found,) = [row for path in (folder / "out").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert np.array_equal(pil_alone(found["chosen"]["bytes"]), np.asarray(rgb(cut_out(0))))
    assert found["rejected"]["bytes"] == opaque(1)


@pytest.mark.parametrize("kind", KINDS)
def test_judges_and_other_processes_get_what_is_seen(kind, tmp_path):
    data = KINDS[kind](0)
    (tmp_path / "x.png").write_bytes(data)
    held = Candidate("x", "r", 0, 0, image=data)
    kept = Candidate("x", "r", 0, 0, path=str(tmp_path / "x.png"))
    for candidate in (held, kept):
        url = data_url(candidate)
        sent = [base64.b64decode(url.split(",", 1)[1]), decode_item(encode_item(candidate, NEEDS), paths=False).image]
        for seen in sent:
            assert np.array_equal(pil_alone(seen), np.asarray(rgb(data)))
            assert (seen == data) == (kind == "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_reads_files_gets_a_copy_whose_pixels_are_as_shown(kind, tmp_path):
    data = KINDS[kind](0)
    (tmp_path / "x.png").write_bytes(data)
    scorer = type("Own", (ProcessScorer,), {"address": "exec:none", "requires": NEEDS})(ProcessScorer.Options("path"))
    (tmp_path / "other").mkdir()
    path = scorer._path(Candidate("x", "r", 0, 0, path=str(tmp_path / "x.png")), str(tmp_path / "other"))
    assert path != (tmp_path / "x.png").resolve() and (path.read_bytes() == data) == (kind == "plain")
    assert np.array_equal(pil_alone(path.read_bytes()), np.asarray(rgb(data)))


RECIPE = """
run: RUN
background: "#204060"
score: {light: {use: "FILE:light"}}
pair: {main: {degenerate: drop}}
"""


def test_audit_counts_and_one_background_for_all(folder, cli):
    run_import(Store(folder / "run"), str(folder / "d"), flags={"prompt": "a square"})
    (folder / "light.py").write_text(
        "import numpy as np\ndef light(images, prompts):\n    return [float(np.asarray(i)[0, 0, 2]) + np.asarray(i).mean() / 1e3 for i in images]\n"
    )
    text = RECIPE.replace("RUN", str(folder / "run")).replace("FILE", str(folder / "light.py"))
    (folder / "r.yaml").write_text(text)
    assert cli("score", "-r", folder / "r.yaml", "-q")[0] == 0
    code, _, err = cli("pair", "-r", folder / "r.yaml")
    assert code == 0 and "2 have transparency (composited on #204060)" in err and "2 have an EXIF orientation" in err
    audit = read_json(folder / "run" / "pairs" / "main" / "audit.json")
    counts = {
        key: audit["images"][key] for key in ("looked_at", "transparent", "turned", "deep", "animated", "profile")
    }
    assert counts == {"looked_at": 6, "transparent": 2, "turned": 2, "deep": 0, "animated": 0, "profile": 0}
    store = Store(folder / "run")
    values = store.scores("light").frame().value
    assert sum(np.floor(values) == 0x60) >= 2  # what scorers saw in the corner of the cut-outs
    assert "#204060" in json.dumps(store.scores("light").spec())
    corners = []
    for path in store.pairs("main").rglob("*.parquet"):
        corners += [tuple(pil_alone(row[f"jpg_{i}"])[0, 0]) for row in pq.read_table(path).to_pylist() for i in (0, 1)]
    assert (0x20, 0x40, 0x60) in corners and (255, 255, 255) not in corners
    Background.set("white")
    run_export(f"{store.folder}/main", str(folder / "out"), layout="folders", flags={})  # knows the run's own colour
    assert Background.name() == "#204060"
    Background.set("white")
    code, _, err = cli("score", "-r", folder / "r.yaml", "--background", "white")  # other pixels, other scores
    assert code == 1 and "preprocessing" in err
    assert not any(traits(row[f"jpg_{i}"]) for row in pq.read_table(path).to_pylist() for i in (0, 1))


def test_a_background_that_is_no_colour(folder, cli):
    code, _, err = cli("score", folder / "run", "--use", "jpeg", "--background", "whitish")
    assert code == 2 and "'whitish' is not a colour" in err
