"""The score stage, and the scorers clip, jpeg and file.py:function."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Recipe, Score
from prefkit.errors import FingerprintError, PluginError, TooManyFailures, UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request


def png(seed=0, size=(24, 16)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path):
    """Two requests with four candidates each; score(alias, file text) scores with f of that file."""
    store = Store.create(tmp_path / "run")
    store.write_requests(
        [Request("r0", "a hat", extra={"user": "ann"}), Request("r1", "a boot", extra={"user": "bob"})]
    )
    rows = [Candidate(f"c{i}", f"r{i // 4}", i % 4, i, image=png(i), sha256=str(i)) for i in range(8)]
    store.candidates("own").append([candidate_row(c) for c in rows])

    def score(alias, text=None, **settings):
        if text is not None:
            (tmp_path / f"{alias}.py").write_text(text)
            settings["use"] = f"{tmp_path}/{alias}.py:f"
        return Run(recipe=Recipe(run=str(tmp_path / "run"), score={alias: Score(**settings)})).score()[alias]

    score.store, score.folder = store, tmp_path
    return score


def test_jpeg_is_the_size_in_kB_at_quality_95():
    image = Image.open(io.BytesIO(png())).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    scorer = make_scorer("jpeg", {})
    assert scorer.score([Candidate("a", "r", 0, 0, image=png())])[0].value == len(buffer.getvalue()) / 1000
    assert not scorer.spec().higher_is_better
    assert make_scorer("jpeg", {"direction": "expand"}).spec().higher_is_better


def test_functions_get_images_prompts_and_extra(run):
    run(
        "f1",
        "def f(images, prompts, user):\n    return [len(p) + len(u) + i.width for i, p, u in zip(images, prompts, user)]\n",
    )
    values = run.store.scores("f1").frame().value.tolist()
    assert values == [5 + 3 + 24] * 4 + [6 + 3 + 24] * 4


def test_only_what_is_missing_is_scored(run):
    text = "def f(images, prompts):\n    return [1.0 for _ in images]\n"
    assert run("a", text)["scored"] == 8
    assert run("a", text) == {"wanted": 8, "present": 8, "scored": 0, "failed": 0}
    run.store.candidates("own").append([candidate_row(Candidate("c8", "r1", 4, 8, image=png(8)))])
    assert run("a", text)["scored"] == 1


def test_a_changed_function_is_another_score(run):
    run("a", "def f(images, prompts):\n    return [1.0 for _ in images]\n")
    with pytest.raises(FingerprintError, match="version"):
        run("a", "def f(images, prompts):\n    return [2.0 for _ in images]\n")


def test_failures_are_null_with_a_reason_never_zero(run):
    text = (
        "def f(images, prompts):\n"
        "    if len(images) > 1: raise RuntimeError('one at a time')\n"
        "    s = images[0].getpixel((0, 0))[0]\n"
        "    if s % 4 == 0: raise ValueError('odd one')\n"
        "    return [float('nan') if s % 4 == 1 else None if s % 4 == 2 else float(s)]\n"
    )
    with pytest.raises(TooManyFailures, match="max_failed"):
        run("a", text)
    frame = run.store.scores("a").frame()
    assert len(frame) == 8 and (frame.value.isna() == frame.error.notna()).all() and frame.value.notna().any()
    reasons = set(frame.error.dropna())
    assert reasons <= {"ValueError: odd one", "the scorer returned nan", "the function returned None"} and reasons
    assert run("a", text, max_failed=1.0)["wanted"] == 8


def test_a_wrong_length_is_the_plugins_fault(run):
    with pytest.raises(PluginError, match="returned 1 value for 8 images"):
        run("a", "def f(images, prompts):\n    return [1.0]\n")
    assert not run.store.scores("a").parts()


@pytest.mark.parametrize(
    "values, kept, said",
    [
        ("['3', 2.0]", [None, 2.0], "'3' (a str), which is not a number"),
        ("[float('inf'), -float('inf')]", [None, None], "the scorer returned inf"),
        ("[1j, [1.0, 2.0]]", [None, None], "a complex), which is not a number"),
        ("np.array([1.5, 2.5], np.float32)", [1.5, 2.5], None),
        ("torch.tensor([1.0, float('nan')])", [1.0, None], "the scorer returned nan"),
        ("[True, np.int64(7)]", [None, 7.0], "'True' (a bool), which is not a number"),
    ],
)
def test_only_numbers_are_scores(tmp_path, values, kept, said):
    (tmp_path / "f.py").write_text(f"def f(images, prompts):\n    import numpy as np, torch\n    return {values}\n")
    scores = score_batch(
        make_scorer(f"{tmp_path}/f.py:f", {}), [Candidate(f"c{i}", "r", i, i, image=png()) for i in (0, 1)]
    )
    assert [s.value for s in scores] == kept and all(type(s.value) is float for s in scores if s.error is None)
    assert said is None or said in next(s.error for s in scores if s.error)


@pytest.mark.parametrize(
    "returned, said",
    [
        ("None", "returned None for 2"),
        ("[1.0, 2.0]", "returned a list of items that are not all Scores for 2"),
        ("[Score(1.0)]", "returned 1 Score for 2"),
        ("(Score(1.0) for _ in batch)", "returned a generator for 2"),
    ],
)
def test_a_scorer_that_gives_no_scores_breaks_its_contract(tmp_path, returned, said):
    text = (
        "from prefkit.types import Score, ScorerSpec\nclass S:\n    requires, scope = frozenset(), 'absolute'\n"
        "    def __init__(self, options): pass\n    def spec(self): return ScorerSpec('mine', '1')\n"
        f"    def load(self, device, dtype): pass\n    def score(self, batch): return {returned}\n"
    )
    (tmp_path / "s.py").write_text(text)
    with pytest.raises(PluginError, match=f"scorer mine {said}"):
        score_batch(make_scorer(f"{tmp_path}/s.py:S", {}), [Candidate(f"c{i}", "r", i, i) for i in (0, 1)])


def test_all_failed_stops_with_the_first_reason(run):
    with pytest.raises(PluginError, match="every candidate failed, the first with: ValueError: never"):
        run("a", "def f(images, prompts):\n    raise ValueError('never')\n")


def test_what_requests_lack_is_said_before_anything_runs(run):
    with pytest.raises(UsageError, match="the scorer needs history, which request r0 does not have"):
        run("a", "def f(images, prompts, history):\n    return [1.0 for _ in images]\n")


def test_a_corrupt_image_fails_alone(run):
    run.store.candidates("own").append([candidate_row(Candidate("bad", "r1", 9, 9, image=b"no image"))])
    run("a", "def f(images, prompts):\n    return [1.0 for _ in images]\n", max_failed=1.0)
    frame = run.store.scores("a").frame().set_index("id")
    assert "could not be decoded" in frame.error["bad"] and frame.value.notna().sum() == 8


def test_unknown_files_and_functions(run):
    with pytest.raises(UsageError, match="was not found"):
        run("a", use="none.py:f")
    (run.folder / "b.py").write_text("def good(images, prompts): return []\n")
    with pytest.raises(UsageError, match=r"has no goood. Did you mean 'good'\?"):
        run("b", use=f"{run.folder}/b.py:goood")
    with pytest.raises(PluginError, match="could not be imported: SyntaxError"):
        run("c", "def f(:\n")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of a small open_clip architecture, saved as people save them."""
    import open_clip
    import safetensors.torch
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path, model.eval()


def test_clip_is_the_cosine_of_open_clip(checkpoint):
    import open_clip
    import torch

    path, model = checkpoint
    batch = [
        Candidate(str(i), "r", i, i, prompt=p, image=png(i, (40, 30)))
        for i, p in enumerate(["a hat", "a boot", "a hat"])
    ]
    scorer = make_scorer("clip", {"model": "ViT-B-32", "pretrained": str(path)})
    scorer.load("cpu", "float32")
    found = [s.value for s in score_batch(scorer, batch)]
    transform = open_clip.image_transform(224, is_train=False, mean=model.visual.image_mean, std=model.visual.image_std)
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(c.pil()) for c in batch])).double()
        text = model.encode_text(open_clip.get_tokenizer("ViT-B-32")([c.prompt for c in batch])).double()
    expected = torch.nn.functional.cosine_similarity(image, text)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    alone = [score_batch(scorer, [c])[0].value for c in batch]
    np.testing.assert_allclose(found, alone, atol=2e-6)
    logit = make_scorer("clip", {"model": "ViT-B-32", "pretrained": str(path), "scaling": "logit"})
    logit.load("cpu", "float32")
    np.testing.assert_allclose(
        [s.value for s in logit.score(batch)], expected * float(model.logit_scale.exp()), atol=2e-4
    )
    assert scorer.spec() != logit.spec() and scorer.spec().revision


def test_clip_says_what_it_cannot_load():
    with pytest.raises(UsageError, match=r"no model 'ViT-B-23'. Did you mean"):
        make_scorer("clip", {"model": "ViT-B-23"}).load("cpu", "float32")
    with pytest.raises(UsageError, match="neither a file nor a tag"):
        make_scorer("clip", {"model": "ViT-B-32", "pretrained": "no_such_tag"}).load("cpu", "float32")


@pytest.mark.parametrize("pretrained", [None, ""])
def test_clip_without_weights_is_refused(pretrained):
    with pytest.raises(UsageError, match="whose weights would be random"):
        make_scorer("clip", {"model": "ViT-B-32", "pretrained": pretrained})
    assert make_scorer("clip", {"model": "tiny", "pretrained": pretrained})


def test_two_aliases_of_one_scorer_stand_side_by_side(run):
    both = Recipe(run=str(run.store.folder), score={"s": Score("jpeg"), "l": Score("jpeg", {"direction": "expand"})})
    Run(recipe=both).score()
    frame = Run(recipe=replace(both)).scores()
    assert (frame.s == frame.l).all() and len(frame) == 8


def test_a_function_is_not_kept_waiting_for_torch(tmp_path):
    """Importing torch takes seconds, and a function of images and prompts needs none of it."""
    (tmp_path / "s.py").write_text(
        "def f(images, prompts):\n    return [float(i.width) for i in images]\n", encoding="utf-8"
    )
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    store = Store.create(tmp_path / "run")
    store.write_requests([Request("r", "a hat")])
    store.candidates("own").append([candidate_row(Candidate("c", "r", 0, 0, image=buffer.getvalue(), sha256="x"))])
    code = "import sys\nfrom prefkit.cli.main import run\ncode = run(sys.argv[1:])\nsys.exit(code or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "score", str(tmp_path / "run"), "--use", f"{tmp_path / 's.py'}:f"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert store.scores("f").frame().value.tolist() == [8.0]
    flags = ["--name", "g", "--score.g.use", f"{tmp_path / 's.py'}:f"]
    line = shlex.join([sys.executable, "-m", "prefkit", "score", str(tmp_path / "run"), *flags])
    assert subprocess.run(f"{line} 2>&-", shell=True, stdout=subprocess.DEVNULL).returncode == 0  # stderr is closed
    assert store.scores("g").frame().value.tolist() == [8.0]
