"""mllm: ratings through SFT and pairs through DPO on a tiny LLaVA; what is trained is the token that the scorer reads."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from prefkit.cli.main import run as prefkit
from prefkit.errors import UsageError
from prefkit.fit.fitters.mllm import MllmFit, MllmFitter
from prefkit.fit.judge_data import Examples, level, prompt_text, read_ratings
from prefkit.fit.judge_tune import PairTask
from prefkit.fit.preferences import split_by_text
from prefkit.fit.statistics import correlation
from prefkit.score.core import make_scorer
from prefkit.score.judge.backend import make_backend
from prefkit.score.judge.compare import compare
from prefkit.score.judge.question import JudgeOptions, Question
from prefkit.score.judge.ratings import scale_of
from prefkit.store.files import read_json
from prefkit.types import Candidate

FAST = {"device": "cpu", "batch_size": 8, "accumulate": 1, "learning_rate": 5e-3, "lora_rank": 8}
SCALE = ("1", "2", "3")


def picture(brightness, rng):
    pixels = np.clip(brightness + rng.integers(-10, 10, (28, 28, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """Dark is a 1, bright a 3, whatever was asked for."""
    folder, rng, rows = tmp_path_factory.mktemp("rated"), np.random.default_rng(0), []
    for i in range(80):
        rating = i % 3 + 1
        (folder / f"{i}.png").write_bytes(picture((20, 128, 235)[rating - 1], rng))
        rows.append((f"{i}.png", f"hat {i // 4}", rating))
    pd.DataFrame(rows, columns=["image", "prompt", "rating"]).to_csv(folder / "ratings.csv", index=False)
    return folder / "ratings.csv"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The brighter one is better."""
    folder, rng, rows = tmp_path_factory.mktemp("pairs"), np.random.default_rng(1), []
    for i in range(48):
        first = bool(rng.integers(2))
        sides = [picture(235 if first == (side == 0) else 20, rng) for side in (0, 1)]
        row = {"jpg_0": sides[0], "jpg_1": sides[1], "caption": f"h{i // 2}"}
        rows.append(row | {"label_0": float(first), "label_1": float(not first)})
    (folder / "train").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train" / "part.parquet")
    return folder


@pytest.fixture(scope="module")
def by_ratings(rated, vlm, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "judge"
    more = FAST | {"lora_rank": 0, "learning_rate": 3e-3, "epochs": 14, "patience": 4}
    options = MllmFit(ratings=str(rated), model=str(vlm), out=str(out), scale=SCALE, test_share=0.3, **more)
    return options, MllmFitter(options).run(), out


def test_ratings_are_learned_and_the_scorer_says_what_was_measured(by_ratings, rated):
    _, spec, out = by_ratings
    found = spec["validation"]
    assert spec["training"]["trainer"] == "SFTTrainer"
    assert found["pearson"]["mean"] > 0.8 and found["pearson"]["low"] > (found["pearson_before"]["mean"] or 0)
    course = [row["validation_loss"] for row in spec["training"]["course"]]
    assert min(course) < 0.6 * spec["training"]["loss_before"]
    assert found["absolute_error"]["high"] < found["absolute_error_before"]["low"]
    scorer = make_scorer("mllm", {"model": str(out), "scale": list(SCALE), "min_mass": 0.5})
    scorer.load("cpu", "float32")
    rows, _ = read_ratings(str(rated))
    test = split_by_text("mllm", [r.candidate.prompt for r in rows], 0.1, 0.3, 0)[2]
    values = [s.value for s in scorer.score([rows[n].candidate for n in test])]
    assert None not in values  # the levels hold the mass: the answer is the next token, not a space before it
    ratings = [rows[n].rating for n in test]
    assert np.corrcoef(values, ratings)[0, 1] == pytest.approx(found["pearson"]["mean"], abs=1e-4)
    assert np.abs(np.array(values) - ratings).mean() == pytest.approx(found["absolute_error"]["mean"], abs=1e-4)


def test_a_refit_does_nothing_and_other_settings_are_refused(by_ratings, vlm, capsys):
    options, spec, out = by_ratings
    assert MllmFitter(options).run() == spec == read_json(out / "spec.json")
    flags = ["--ratings", options.ratings, "--model", str(vlm), "--out", str(out), "--seed", "7"]
    assert prefkit(["fit", "mllm", *flags]) != 0
    assert "fitted with different settings or data" in capsys.readouterr().err


def test_pairs_are_learned_in_both_orders(pairs, vlm, tmp_path):
    out = tmp_path / "judge"
    more = {"epochs": 6, "patience": 6, "test_share": 0.3, "beta": 0.5} | FAST
    options = MllmFit(pairs=str(pairs), model=str(vlm), out=str(out), **more)
    spec = MllmFitter(options).run()
    found = spec["validation"]
    assert spec["training"]["trainer"] == "DPOTrainer"
    losses = [row["validation_loss"] for row in spec["training"]["course"]]
    assert spec["training"]["loss_before"] == pytest.approx(np.log(2), abs=1e-4) and min(losses) < np.log(2)
    assert found["accuracy"]["low"] > found["accuracy_before"]["high"] and found["flips"]["high"] < 0.5
    backend = make_backend(JudgeOptions(str(out)), "test")
    backend.load("cpu", "float32")
    task = PairTask(options, backend)
    test = split_by_text("mllm", task.prompts, 0.1, 0.3, 0)[2]
    verdicts = compare(backend, [task._candidates(n) for n in test], "x", min_mass=0.0)
    best = [x for n in test for x in 2 * ["a" if task.rows[n].p > 0.5 else "b"]]
    right = [float(v.outcome == b) for v, b in zip(verdicts.shown, best)]
    assert np.mean(right) == pytest.approx(found["accuracy"]["mean"]) and verdicts.flip_rate == found["flips"]["mean"]


def test_what_is_trained_is_what_is_asked(vlm):
    """Prompt and image of TRL's batch against the inputs of the scorer's back end, token by token; answers one token each."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    backend = make_backend(JudgeOptions(str(vlm)), "test")
    backend.load("cpu", "float32")
    image = Candidate("0", "r", 0, 0, "hat", picture(90, np.random.default_rng(0)))
    question = Question((image, "Rate the hat."))
    assert prompt_text(backend.processor, question) == "USER: <image>Rate the hat. ASSISTANT:"
    rows = Examples(backend.processor, [question], [("2",)]).dataset()
    batch = DataCollatorForVisionLanguageModeling(backend.processor, completion_only_loss=True)([rows[0]])
    inputs = backend._inputs([question])
    ids = backend.processor.tokenizer.convert_tokens_to_ids(["2", "</s>"])
    assert batch["input_ids"][0].tolist() == inputs["input_ids"][0].tolist() + ids
    assert batch["labels"][0, -2:].tolist() == ids and (batch["labels"][0, :-2] == -100).all()
    assert (batch["pixel_values"] == inputs["pixel_values"]).all()


def test_levels_and_means(tmp_path, rated):
    scale = scale_of(["1", "2", "4"], "x")
    assert [level(r, scale) for r in (1, 1.4, 1.5, 1.6, 3.1, 4)] == ["1", "1", "1", "2", "4", "4"]
    with pytest.raises(UsageError, match="a rating of 5 is outside the scale"):
        level(5, scale)
    (tmp_path / "a.png").write_bytes((rated.parent / "0.png").read_bytes())
    (tmp_path / "t.csv").write_text("image,prompt,rating\na.png,x,1\na.png,x,4\na.png,y,2\n")
    assert [(r.candidate.prompt, r.rating) for r in read_ratings(str(tmp_path / "t.csv"))[0]] == [
        ("x", 2.5),
        ("y", 2.0),
    ]
    with pytest.raises(UsageError, match="give one of --ratings TABLE, --pairs FOLDER"):
        MllmFitter(MllmFit(ratings="a", pairs="b", model="c"))


def test_correlations_against_scipy():
    rng = np.random.default_rng(0)
    x, texts = rng.normal(size=50), [str(i) for i in range(50)]
    y = np.round(x + rng.normal(size=50))  # ties
    assert correlation(x, y, texts, False)["mean"] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    found = correlation(x, y, texts, True)
    assert (
        found["mean"] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
        and found["low"] < found["mean"] < found["high"]
    )
    assert correlation(x, np.ones(50), texts, False)["mean"] is None
