"""A fitted scorer on the Hub: pushed with its card, and loaded by its Hub id at a revision, wherever it was loaded by path."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from prefkit import tiny

SCORE = """
import json, sys
from prefkit.score.core import make_scorer
from prefkit.types import Candidate
model, image, revision = sys.argv[1:]
scorer = make_scorer("vbpr", {"model": model, "revision": revision or None})
scorer.load("cpu", "float32")
data = open(image, "rb").read()
scores = scorer.score([Candidate(str(n), "r", n, 0, image=data, extra={"user": f"u{n}"}) for n in (0, 1)])
print(json.dumps([scorer.spec().revision, scorer.spec().weights, [score.value for score in scores]]))
"""


def answer(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    for n in range(8):
        Image.new("RGB", (16, 16), (250, 9 * n, 10) if n % 2 else (10, 9 * n, 250)).save(folder / f"images/i{n}.png")
    log = [f"u{user},i{(item + user) % 8},{item}" for user in range(4) for item in range(4)]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *log]))
    shutil.copytree(tiny.CLIP, folder / "clip")
    return folder


def test_a_scorer_on_a_local_encoder_works_where_the_encoder_is_not(hub, outside, shop, tmp_path):
    options = ("--interactions", shop / "log.csv", "--images", shop / "images", "--epochs", 1, "--json")
    fitted = outside.run("fit", "vbpr", *options, "--encoder", f"local-dir:{shop}/clip", "--out", shop / "fitted/vbpr")
    assert fitted.returncode == 0 and f"prefkit push {shop}/fitted/vbpr --to you/NAME" in fitted.stderr
    here = answer(outside.code(SCORE, shop / "fitted/vbpr", shop / "images/i1.png", ""))
    plan = answer(outside.run("push", shop / "fitted/vbpr", "--to", "you/taste", "--dry-run", "--json"))
    assert ("model", "you/taste") not in hub.repositories and "encoder/model/open_clip_config.json" in plan["files"]
    pushed = answer(outside.run("push", shop / "fitted/vbpr", "--to", "you/taste", "--json"))
    assert not answer(outside.run("push", shop / "fitted/vbpr", "--to", "you/taste", "--json"))["changed"]
    shutil.move(shop / "clip", tmp_path / "clip")
    assert "Restore it" in outside.code(SCORE, shop / "fitted/vbpr", shop / "images/i1.png", "").stderr
    for revision in ("", pushed["tag"]):
        commit, weights, values = answer(outside.code(SCORE, "you/taste", shop / "images/i1.png", revision))
        assert (commit, values) == (pushed["commit"], here[2]) and "you/taste" in weights
        assert str(shop) not in weights and "/snapshots/" not in weights
    files = hub.files("model", "you/taste")
    card = files["README.md"].decode()
    assert str(shop) not in card + files["spec.json"].decode() and "auc_visual" in card and ".../log.csv" in card
    assert "whose files are in `encoder/`" in card and "model: you/taste" in card and "`users.json`" in card
    missing = outside.code(SCORE, "you/taste", shop / "images/i1.png", "v9")
    assert "you/taste on the Hub has no revision 'v9'" in missing.stderr
    for model, text in {
        "fitted/absent": "fitted/absent does not exist",
        "you/absent": "you/absent does not exist",
    }.items():
        assert text in outside.code(SCORE, model, shop / "images/i1.png", "").stderr


def test_a_tuned_clip_scores_and_starts_another_fit_by_its_hub_id(hub, outside, store, shop):
    out = store.folder / "fitted" / "taste"
    pairs = ("fit", "clip_preference", "--pairs", store.pairs("main"), "--library", "open_clip", "--device", "cpu")
    steps = ("--steps", 1, "--validation_share", 0.3, "--test_share", 0.3, "--json")
    answer(outside.run(*pairs, *steps, "--model", "tiny", "--out", out))
    pushed = answer(outside.run("push", out, "--to", "you/clip", "--json"))
    card = hub.files("model", "you/clip")["README.md"].decode()
    assert "The winners were chosen by the scorer warmth (a program)" in card and "accuracy_before" in card
    (store.folder / "recipe.yaml").write_text("model: {base: tiny}")  # without the scorer, whose file is not here
    hubs = ("--model", "hf-hub:you/clip", "--revision", pushed["tag"])
    scored = answer(outside.run("score", store.folder, "--name", "taste", "--use", "clip", *hubs, "--json"))
    assert scored["taste"]["scored"] == 36
    spec = json.loads((store.folder / "scores/taste/spec.json").read_text())
    assert spec["revision"] == pushed["commit"]
    again = answer(outside.run(*pairs, *steps, *hubs, "--out", store.folder / "fitted/again"))
    assert again["encoder"]["revision"] == pushed["commit"]


def test_what_cannot_be_pushed_is_refused_with_the_fix(outside, store, shop, tmp_path):
    folder = tmp_path / "fitted" / "vbpr"
    folder.mkdir(parents=True)
    spec = {"fit": "vbpr", "version": "1", "settings": {}, "data": {}, "encoder": None}
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "weights.safetensors").write_bytes(b"")
    gone = {**spec, "encoder": {"library": "open_clip", "model": f"local-dir:{tmp_path}/gone", "revision": "x"}}
    (tmp_path / "fitted/gone").mkdir()
    (tmp_path / "fitted/gone/spec.json").write_text(json.dumps(gone))
    (tmp_path / "fitted/gone/weights.safetensors").write_bytes(b"")
    to = ("--to", "you/x", "--dry-run")
    cases = {
        "with --encoder and the images": outside.run("push", folder, *to),
        "Restore it, or fit again with its Hub id": outside.run("push", tmp_path / "fitted/gone", *to),
        "--pairs does not apply": outside.run("push", folder, *to, "--pairs", "main"),
        "neither a run folder": outside.run("push", tmp_path, *to),
    }
    for text, process in cases.items():
        assert process.returncode == 2 and text in process.stderr, process.stderr
