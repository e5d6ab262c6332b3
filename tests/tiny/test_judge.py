"""The embedded judge, as shipped and through the scorers that ask it, and the training script's layout of a question.

`pipelines/tiny/judge_gate.py` measures it with more pictures; here a few pictures must reach the gate less two standard
errors.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prefkit import tiny
from prefkit.tiny.captions import caption
from prefkit.tiny.domain import COLOURS, ITEMS, Scene
from prefkit.tiny.scene import render
from prefkit.types import Candidate

FOLDER = Path(__file__).parents[2] / "pipelines" / "tiny"
SCENES = [Scene(item, list(COLOURS)[i % 10], "mint" if i % 2 else "navy") for i, item in enumerate(ITEMS)]


def candidate(image: Image.Image, prompt: str, **extra: str) -> Candidate:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Candidate(prompt, "r", 0, 0, prompt, file.getvalue(), extra=extra)


def noisy(image: Image.Image, severity: float, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).standard_normal((64, 64, 3)) * 80 * severity
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def test_vqascore_tells_what_a_render_shows():
    from prefkit.score.scorers.vqascore import Vqascore, VqascoreOptions

    scorer = Vqascore(VqascoreOptions(model=tiny.NAME))
    scorer.load("cpu", "float32")
    wrong = [Scene(SCENES[i - 1].item, s.colour, s.background) for i, s in enumerate(SCENES)]
    wrong += [Scene(s.item, SCENES[i - 1].colour, s.background) for i, s in enumerate(SCENES)]
    images = [render(scene, 70 + i) for i, scene in enumerate(SCENES)]
    true = scorer.score([candidate(image, caption(s)) for image, s in zip(images, SCENES)])
    false = scorer.score([candidate(image, caption(s)) for image, s in zip(images * 2, wrong)])
    assert all(s.aspects["leftover"] < 0.01 for s in true + false)
    hits = [s.value > 0.5 for s in true] + [s.value < 0.5 for s in false]
    assert np.mean(hits) >= 0.95 - 2 * (0.05 * 0.95 / len(hits)) ** 0.5


def test_mllm_rates_a_kind_of_damage_that_training_never_showed():
    from scipy.stats import spearmanr

    from prefkit.score.scorers.mllm import Mllm, MllmOptions

    scorer = Mllm(MllmOptions(model=tiny.NAME))
    scorer.load("cpu", "float32")
    severity = np.linspace(0, 1, len(SCENES))
    batch = [candidate(noisy(render(s, 5), v, i), caption(s)) for i, (s, v) in enumerate(zip(SCENES, severity))]
    scores = scorer.score(batch)
    assert all(1 <= s.value <= 5 and s.aspects["leftover"] < 0.01 for s in scores)
    assert spearmanr([s.value for s in scores], -severity).statistic >= 0.8


def test_compare_prefers_the_undamaged_picture_in_both_orders():
    from prefkit.score.scorers.mllm import Mllm, MllmOptions

    scorer = Mllm(MllmOptions(model=tiny.NAME))
    scorer.load("cpu", "float32")
    pairs = []
    for i, scene in enumerate(SCENES):
        pair = candidate(render(scene, 5), caption(scene)), candidate(noisy(render(scene, 6), 0.7, i), caption(scene))
        pairs.append(pair if i % 2 else pair[::-1])
    rows = scorer.compare(pairs).rows
    hits = [row.outcome == ("a" if i % 2 else "b") for i, row in enumerate(rows)]
    assert np.mean(hits) >= 0.95 - 2 * (0.05 * 0.95 / len(hits)) ** 0.5


def test_a_written_answer_is_a_word():
    from prefkit.score.scorers.mllm import Mllm, MllmOptions

    scorer = Mllm(MllmOptions(model=tiny.NAME, answer="text", template="What is the item?"))
    scorer.load("cpu", "float32")
    (score,) = scorer.score([candidate(render(Scene("dress", "red", "mint"), 3), "a red dress")])
    assert score.text == "dress" and score.value is None and "no level" in score.error


def test_the_judge_loads_without_prefkit(tmp_path):
    code = f"""
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained({str(tiny.JUDGE)!r})
model = AutoModelForImageTextToText.from_pretrained({str(tiny.JUDGE)!r})
content = [{{"type": "image", "image": Image.open({str(tiny.HISTORY.parent / "00.png")!r})}},
           {{"type": "text", "text": "Is the background mint?"}}]
inputs = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True,
                                       return_dict=True, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=3)[0, inputs["input_ids"].shape[1]:]
assert processor.decode(answer, skip_special_tokens=True) in ("yes", "no")
assert not [m for m in sys.modules if m.startswith("prefkit")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def training(monkeypatch):
    """The modules (judge, judge_model, judge_questions) of pipelines/tiny."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import judge
    import judge_model
    import judge_questions

    return judge, judge_model, judge_questions


def test_training_shows_a_question_as_the_processor_does_and_counts_the_answer_alone(training):
    """Equal token ids, and the loss of transformers' own forward pass with labels on the answer."""
    import torch

    judge, models, questions = training
    torch.manual_seed(0)
    processor = models.processor()
    model = models.judge(processor.tokenizer).eval()
    images = [render(scene, 1) for scene in SCENES[:2]]
    pixels = processor.image_processor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = model.model.vision_tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    decoder = judge.Decoder(model, processor.tokenizer, seen)
    text = questions.fill(questions.VQA, {"prompt": "a red t-shirt"})
    one = [{"type": "image", "image": images[1]}, {"type": "text", "text": text}]
    asked = questions.comparison("a t-shirt", 0.9, 0.1)
    two = [
        part
        for name, image in zip("AB", images)
        for part in ({"type": "text", "text": f"Image {name}:"}, {"type": "image", "image": image})
    ]
    two.append({"type": "text", "text": asked.text})
    for content, question, rows in ((one, questions.yes(text, True), [[1]]), (two, asked, [[0, 1]])):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids, answer = decoder.rows(question, len(rows[0]))
        assert inputs["input_ids"][0].tolist() == ids and processor.tokenizer.unk_token_id not in ids
        whole = torch.tensor([[*ids, *answer]])
        labels = whole.masked_fill(torch.arange(whole.shape[1]) < len(ids), -100)
        with torch.no_grad():
            theirs = model(input_ids=whole, pixel_values=inputs["pixel_values"], labels=labels).loss
            ours = decoder.loss([question], np.array(rows))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_rating_between_two_levels_is_learned_as_their_mixture(training):
    _, _, questions = training
    for severity in (0.0, 0.1, 0.33, 0.625, 0.9, 1.0):
        question = questions.rating("Rate this picture.", severity)
        assert sum(question.levels) == pytest.approx(1)
        mean = sum(p * (i + 1) for i, p in enumerate(question.levels))
        assert mean == pytest.approx(5 - 4 * severity)
        assert question.levels[int(question.answer) - 1] == max(question.levels)
