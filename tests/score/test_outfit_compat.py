"""The scorer outfit_compat: the head in float64, where the others' images come from, and why a score is missing."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer, missing_keys
from prefkit.score.embed.encoder import Encoder
from prefkit.score.embed.outfit_head import OutfitHead
from prefkit.score.fitted import describe
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 180, 60), "grey": (90, 90, 90)}


def png(colour):
    data = io.BytesIO()
    Image.new("RGB", (20, 20), COLOURS[colour]).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def encoder():
    found = Encoder("tiny")
    found.load("cpu", "float32")
    return found


@pytest.fixture
def folder(tmp_path, encoder):
    """folder(pool) -> a head of random weights as `fit` would have left it; images beside it."""
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_bytes(png(name))

    def write(pool="heads", **changed):
        torch.manual_seed(0)
        head = OutfitHead(64, 16, 8, pool)
        where = tmp_path / pool
        where.mkdir(exist_ok=True)
        save_file(head.state_dict(), where / "weights.safetensors")
        spec = {"fit": "outfit_compat", "head": {"pool": pool}, "encoder": describe(encoder), **changed}
        (where / "spec.json").write_text(json.dumps(spec))
        return where

    return write


def scorer_of(where, **options):
    scorer = make_scorer("outfit_compat", {"model": str(where), "images": str(where.parent), **options})
    scorer.load("cpu", "float32")
    return scorer


def candidate(colour, outfit, number=0):
    return Candidate(str(number), "r", number, 0, image=png(colour), extra={"outfit": outfit})


def by_formula(scorer, encoder, colour, outfit):
    """h(u) . h(f) + b . f + b0 in float64, from single embeddings."""
    w = {name: value.double().numpy() for name, value in scorer.head.state_dict().items()}

    def leaky(x):
        return np.where(x > 0, x, 0.01 * x)

    def h(x):
        inner = leaky(x @ w["first.weight"].T + w["first.bias"])
        return leaky(inner @ w["second.weight"].T + w["second.bias"])

    def seen(name):
        return encoder.images([Image.new("RGB", (20, 20), COLOURS[name])])[0].double().numpy()

    f, others = seen(colour), np.stack([seen(name) for name in outfit])
    u = h(others).mean(0) if scorer.fitted.spec["head"]["pool"] == "heads" else h(others.mean(0))
    return float(u @ h(f) + w["own.weight"][0] @ f + w["own.bias"][0])


@pytest.mark.parametrize("pool", ["heads", "embeddings"])
def test_the_formula_in_float64(folder, encoder, pool):
    """Outfits of several lengths in one batch; order does not matter."""
    scorer = scorer_of(folder(pool))
    outfits = [["blue"], ["blue", "green", "grey"], ["grey", "blue", "green"], ["grey", "red"]]
    scores = scorer.score([candidate("red", [f"{n}.png" for n in outfit], i) for i, outfit in enumerate(outfits)])
    for score, outfit in zip(scores, outfits):
        assert score.value == pytest.approx(by_formula(scorer, encoder, "red", outfit), abs=1e-5)
    assert scores[1].value == pytest.approx(scores[2].value, abs=1e-6)
    assert len({round(score.value, 5) for score in scores}) == 3


def test_the_two_pools_differ_and_say_so(folder):
    values, formulas = set(), set()
    for pool in ("heads", "embeddings"):
        scorer = scorer_of(folder(pool))
        values.add(round(scorer.score([candidate("red", ["blue.png", "green.png"])])[0].value, 6))
        formulas.add(scorer.spec().formula)
    assert len(values) == len(formulas) == 2


def test_others_by_mapping_path_and_id_of_an_input(folder, tmp_path):
    where = folder()
    store = Store.create(tmp_path / "run")
    name = hashlib.sha256(png("blue")).hexdigest()
    store.inputs().append([{"id": name, "bytes": png("blue")}])
    by_id = scorer_of(where, images=str(tmp_path / "run")).score([candidate("red", [name])])
    by_path = scorer_of(where).score([candidate("red", [str(tmp_path / "blue.png")])])
    mapped = scorer_of(where).score([candidate("red", [{"image": "blue.png", "category": "hat"}])])
    assert by_id[0].value == by_path[0].value == mapped[0].value


@pytest.mark.parametrize(
    "outfit, reason",
    [
        ([], "it must be a list of images"),
        (None, "it must be a list of images"),
        ("blue.png", "it must be a list of images"),
        ([{"category": "hat"}], "names no image"),
        ([""], "names no image"),
        (["blue.png", "gone.png"], "gone.png could not be read: No such file"),
        (["broken.png"], "broken.png could not be read: not an image format"),
    ],
)
def test_without_the_other_items_there_is_no_score_and_a_reason(folder, tmp_path, outfit, reason):
    scorer = scorer_of(folder())
    (tmp_path / "broken.png").write_bytes(png("blue")[:40])
    before, lacking, after = scorer.score(
        [candidate("red", ["blue.png"]), candidate("red", outfit), candidate("green", ["blue.png"])]
    )
    assert lacking.value is None and reason in lacking.error
    alone = [scorer.score([candidate(colour, ["blue.png"])])[0].value for colour in ("red", "green")]
    assert [before.value, after.value] == pytest.approx(alone, abs=1e-6)
    assert missing_keys(scorer, Candidate("x", "r", 0, 0, image=png("red"))) == ["outfit"]


def test_what_is_no_fitted_folder_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="not set"):
        make_scorer("outfit_compat", {})
    with pytest.raises(UsageError, match=r"has no spec\.json"):
        make_scorer("outfit_compat", {"model": str(tmp_path)})
    with pytest.raises(UsageError, match="fitted for another scorer, 'vbpr'"):
        scorer_of(folder(fit="vbpr"))
    where = folder()
    with pytest.raises(UsageError, match="is not a folder"):
        scorer_of(where, images=str(tmp_path / "none"))
    save_file({"first.weight": torch.zeros(4, 64)}, where / "weights.safetensors")
    with pytest.raises(UsageError, match="has no weights for outfit_compat"):
        scorer_of(where)


def test_another_head_is_another_score(folder):
    where = folder()
    before = scorer_of(where).spec()
    assert scorer_of(where).spec() == before
    save_file(OutfitHead(64, 16, 8, "heads").state_dict(), where / "weights.safetensors")
    assert scorer_of(where).spec() != before


def test_from_the_command_line(folder, tmp_path, encoder, cli):
    where = folder()
    store = Store.create(tmp_path / "run")
    store.write_requests(
        [
            Request("r0", "a hat", extra={"outfit": ["blue.png", "green.png"]}),
            Request("r1", "a boot", extra={"outfit": ["gone.png"]}),
        ]
    )
    rows = [Candidate(f"c{i}", f"r{i // 3}", i % 3, i, image=png(c), sha256=str(i))
            for i, c in enumerate(("red", "grey", "blue", "red"))]  # fmt: skip
    store.candidates("own").append([candidate_row(c) for c in rows])
    code, _, err = cli("score", tmp_path / "run", "--use", "outfit_compat", "--model", where, "--images", tmp_path,
                       "--max_failed", 0.5)  # fmt: skip
    assert code == 0, err
    found = store.scores("outfit_compat").frame().set_index("id")
    scorer = scorer_of(where)
    for name, colour in (("c0", "red"), ("c1", "grey"), ("c2", "blue")):
        wanted = by_formula(scorer, encoder, colour, ["blue", "green"])
        assert found.loc[name, "value"] == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(found.loc["c3", "value"]) and "gone.png" in found.loc["c3", "error"]
