"""Judges loaded here: expected values against float64, the parser, both orders of a comparison, BERTScore."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.score.embed.bertscore import BertScore
from prefkit.score.judge.backend import make_backend
from prefkit.score.judge.compare import compare
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.ratings import expected, parse, scale_of
from prefkit.score.judge.templates import fill
from prefkit.score.scorers.mllm import _fashion_scale
from prefkit.types import Candidate


def picture(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def batch(n=3):
    prompts = ["a hat", "a rather long boot with a long lace", "é"]
    return [Candidate(str(i), "r", i, i, prompt=prompts[i % 3], image=picture(i)) for i in range(n)]


# ---- the parser: the table of answers in notes on FashionDPO's, and what must not be taken for a rating

TEN = _fashion_scale()


@pytest.mark.parametrize(
    "text, value",
    [
        ("7", 7),
        ("6", 6),
        ("10", 10),
        ("1", 1),
        ("Score: 7/10", 7),
        ("9-high quality", 9),
        ("3-Moderately Compatible", 3),
        ("4-Compatible", 4),
        ("5-Perfectly Compatible", 5),
        ("7-Good", 7),
        ("**7-Good**", 7),
        ("8 – Very Good.", 8),
        ("8/10", 8),
        ("8 out of 10.", 8),
        ("very good", 8),
        ("Category: Very Good", 8),
        ("The score is 4.", 4),
        ("I would say 9-Excellent.", 9),
        ("6. The sleeves are complete.", 6),
        ('{"reason": "2 sleeves", "score": "7-Good"}', 7),
        ('```json\n{"score": 3}\n```', 3),
        ("0-", None),
        ("0-Unusable", None),
        ("0", None),
        ("11", None),
        ("-3", None),
        ("7.5", None),
        ("7/5", None),
        ("Score: 7/100", None),
        ("Score: 70", None),
        ("6 or 7", None),
        ("Score: 6, or rather score: 7", None),
        ("not good", None),
        ("It has 3 buttons", None),
        ("a 3-piece suit", None),
        ("1. The hat is red. 2. It is complete.", None),
        ('{"score": true}', None),
        ('{"score": 12}', None),
        ('{"score": 3', None),
        ("", None),
        ("I cannot judge this.", None),
    ],
)
def test_parser(text, value):
    assert parse(text, TEN) == value


def test_scales():
    assert scale_of(["bad", "fair", "good"], "x").values == (1.0, 2.0, 3.0)
    assert scale_of(["-1", "0", "2.5"], "x").values == (-1.0, 0.0, 2.5)
    assert parse("Fair.", scale_of(["bad", "fair", "good"], "x")) == 2.0
    with pytest.raises(UsageError):
        scale_of(["good", "Good"], "x")


def test_expected_keeps_what_is_left():
    value, left = expected([0.1, 0.3], [1.0, 5.0])
    assert value == pytest.approx((0.1 + 1.5) / 0.4, abs=1e-15) and left == pytest.approx(0.6, abs=1e-15)
    assert expected([0.0, 0.0], [1.0, 5.0]) == (None, 1.0)


def test_braces_of_a_prompt_stay():
    assert fill("{prompt} {x} {y}", {"prompt": "{x}", "x": 1}) == "{x} 1 {y}"


# ---- a real model


@pytest.fixture(scope="module")
def reference(vlm):
    """(candidate, text) -> log-probabilities of the next token in float64, from the model's parts, unbatched."""
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(vlm, backend="pil")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(vlm, dtype=torch.float64).eval()

    def logprobs(candidate, text):
        inputs = processor(images=candidate.pil(), text=f"USER: <image>{text} ASSISTANT:", return_tensors="pt")
        with torch.no_grad():
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=inputs["pixel_values"].double(),
            ).logits[0, -1]
        assert logits.dtype == torch.float64
        return (logits - torch.logsumexp(logits, 0)).tolist(), processor.tokenizer

    return logprobs


def test_expected_value_against_float64(vlm, reference):
    scorer = make_scorer("mllm", {"model": str(vlm), "min_mass": 0.0, "template": "Rate {prompt} as {scale}."})
    scorer.load("cpu", "float32")
    scores = score_batch(scorer, batch())
    spread = []
    for c, score in zip(batch(), scores):
        logprobs, tokenizer = reference(c, f"Rate {c.prompt} as 1, 2, 3, 4, 5.")
        ids = {n: [tokenizer.convert_tokens_to_ids(str(n))] for n in range(1, 6)}
        ids[1].append(tokenizer.convert_tokens_to_ids("Ġ1"))  # the same level with a space before it
        masses = {n: sum(math.exp(logprobs[i]) for i in own) for n, own in ids.items()}
        total = sum(masses.values())
        assert score.value == pytest.approx(sum(n * m for n, m in masses.items()) / total, abs=2e-5)
        assert score.aspects["leftover"] == pytest.approx(1 - total, abs=2e-5)
        spread.append(score.value)
    assert max(spread) - min(spread) > 1e-3  # else any image would do


def test_p_yes_against_float64(vlm, reference):
    scorer = make_scorer("vqascore", {"model": str(vlm), "min_mass": 0.0})
    scorer.load("cpu", "float32")
    for c, score in zip(batch(), score_batch(scorer, batch())):
        logprobs, tokenizer = reference(c, f'Does this figure show "{c.prompt}"? Please answer yes or no.')
        p = [
            sum(math.exp(logprobs[tokenizer.convert_tokens_to_ids(w)]) for w in ws)
            for ws in (("Yes", "yes", "ĠYes"), ("No",))
        ]
        assert score.value == pytest.approx(p[0], abs=1e-5)
        assert score.aspects["leftover"] == pytest.approx(1 - sum(p), abs=1e-5)


@pytest.mark.parametrize("options", [{"min_mass": 0.0}, {"answer": "text", "temperature": 0.9, "max_tokens": 4}])
def test_neither_batch_nor_order_matter(vlm, options):
    scorer = make_scorer("mllm", {"model": str(vlm), **options})
    scorer.load("cpu", "float32")
    together = scorer.score(batch(4))
    backwards = scorer.score(batch(4)[::-1])[::-1]
    alone = [scorer.score([c])[0] for c in batch(4)]
    for one, two, three in zip(together, backwards, alone):
        assert one.text == two.text == three.text
        if one.value is not None:
            assert one.value == pytest.approx(two.value, abs=1e-5) == pytest.approx(three.value, abs=1e-5)


def test_a_model_with_a_part_for_videos_and_images_of_any_size(qwen_vl):
    scorer = make_scorer("vqascore", {"model": str(qwen_vl), "min_mass": 0.0})
    scorer.load("cpu", "float32")
    assert type(scorer.backend.processor.image_processor).__name__.endswith("Pil")
    sizes = [(60, 30), (28, 90), (56, 56)]
    shown = []
    for c, (width, height) in zip(batch(), sizes):
        buffer = io.BytesIO()
        c.pil().resize((width, height)).save(buffer, "PNG")
        shown.append(Candidate(c.id, "r", c.index, 0, c.prompt, buffer.getvalue()))
    together, alone = scorer.score(shown), [scorer.score([c])[0] for c in shown]
    assert [s.value for s in together] == pytest.approx([s.value for s in alone], abs=1e-6)
    assert len({round(s.value, 7) for s in together}) == 3


def test_levels_must_be_tokens_and_a_model_must_be_one(vlm, tmp_path):
    scorer = make_scorer("mllm", {"model": str(vlm), "scale": ["1", "5", "10", "excellent"]})
    scorer.load("cpu", "float32")
    with pytest.raises(UsageError, match="excellent is not a single token"):
        scorer.score(batch(1))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="could not be loaded as an image-text-to-text model"):
        make_scorer("mllm", {"model": str(tmp_path)}).load("cpu", "float32")


def test_specs_tell_questions_apart(vlm):
    specs = [
        make_scorer("mllm", {"model": str(vlm), **options}).spec()
        for options in ({}, {"scale": ["1", "2"]}, {"template": "{prompt}?"}, {"aspects": ["a"]}, {"answer": "text"})
    ]
    assert len(set(specs)) == len(specs)
    assert make_scorer("mllm", {"model": str(vlm), "in_flight": 3, "cache": "x"}).spec() == specs[0]


# ---- comparisons


class Biased:
    """Prefers the larger id by `gap` in log-odds, and whatever is shown first by `bias`."""

    def __init__(self, gap, bias, said=None):
        self.gap, self.bias, self.said = gap, bias, said

    def _odds(self, question):
        first, second = (int(part.id) for part in question.parts if not isinstance(part, str))
        return self.gap * (1 if first > second else -1) + self.bias

    def masses(self, questions, labels):
        assert labels == ("A", "B")
        p = [1 / (1 + math.exp(-self._odds(q))) for q in questions]
        return [Reply(masses=(0.8 * x, 0.8 * (1 - x))) for x in p]

    def texts(self, questions, max_tokens):
        return [Reply(self.said or ("A" if self._odds(q) > 0 else " B. ")) for q in questions]


def pairs():
    c = [Candidate(str(i), "r", i, i, prompt="a hat", image=picture(i)) for i in range(4)]
    return [(c[0], c[1]), (c[3], c[2])]


@pytest.mark.parametrize("answer", ["logprobs", "text"])
def test_only_a_verdict_that_survives_the_swap_is_a_win(answer):
    fair = compare(Biased(1.0, 0.3), pairs(), "j", answer=answer)
    assert [row.outcome for row in fair.rows] == ["b", "a"] and fair.flip_rate == 0.0 and fair.first_rate == 0.5
    assert [(row.order, row.outcome) for row in fair.shown] == [("ab", "b"), ("ba", "b"), ("ab", "a"), ("ba", "a")]
    biased = compare(Biased(0.3, 1.0), pairs(), "j", answer=answer)
    assert [row.outcome for row in biased.rows] == ["tie", "tie"] and biased.flip_rate == 1.0 == biased.first_rate


def test_the_probability_is_the_mean_of_both_orders():
    (row, _), shown = (found := compare(Biased(1.0, 0.3), pairs(), "j", aspect="cut")).rows, found.shown
    ab, ba = 1 / (1 + math.exp(0.7)), 1 / (1 + math.exp(-1.3))  # p(first) of (0, 1) and of (1, 0)
    assert row.probability == pytest.approx((ab + 1 - ba) / 2, abs=1e-12)
    assert shown[1].probability == pytest.approx(1 - ba, abs=1e-12)
    assert (row.id_a, row.id_b, row.judge, row.order, row.aspect) == ("0", "1", "j", "both", "cut")


def test_failures_and_ties_of_a_comparison():
    failed = compare(Biased(1, 0, said="both are nice"), pairs(), "j", answer="text")
    assert {row.outcome for row in failed.rows} == {None} and "not A, B or tie" in failed.rows[0].error
    assert failed.flip_rate is None is failed.first_rate
    tied = compare(Biased(1, 0, said="Tie"), pairs(), "j", answer="text")
    assert {row.outcome for row in tied.rows} == {"tie"} and tied.rows[0].error is None
    assert compare(Biased(1.0, 0.3), pairs(), "j", margin=0.4).rows[0].outcome == "tie"
    assert "less than 0.9" in compare(Biased(1.0, 0.3), pairs(), "j", min_mass=0.9).rows[0].error
    (a, _), (c, _) = pairs()
    other = Candidate("x", "r", 0, 0, prompt="a boot", image=c.image)
    with pytest.raises(UsageError, match="different prompts"):
        compare(Biased(1, 0), [(a, other)], "j")


def test_two_images_reach_a_real_model_in_their_order(vlm):
    backend = make_backend(JudgeOptions(model=str(vlm)), "test")
    backend.load("cpu", "float32")
    found = compare(backend, pairs(), "tiny", min_mass=0.0)
    again = compare(backend, [pair[::-1] for pair in pairs()], "tiny", min_mass=0.0)
    for row, mirrored in zip(found.rows, again.rows):
        assert row.probability == pytest.approx(1 - mirrored.probability, abs=1e-5)
    assert found.shown[0].probability != pytest.approx(found.shown[1].probability, abs=1e-6)


# ---- captions


@pytest.mark.parametrize("layer", [None, 2])
def test_bertscore_recall_against_float64(encoder, layer):
    import torch
    import transformers

    scorer = BertScore(str(encoder), layer)
    scorer.load("cpu", "float32")
    references = ["the image contains a red hat", "a boot", "two hat"]
    captions = ["a blue hat and a boot", "the image contains a red hat and two boot", "hat"]
    found = scorer.recall(references, captions)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder, dtype=torch.float64)

    def vectors(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        return states[3 if layer is None else layer][0].numpy()

    for reference, caption, value in zip(references, captions, found):
        best = []
        for x in vectors(reference)[1:-1]:  # without [CLS] and [SEP]
            best.append(max(x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in vectors(caption)))
        assert value == pytest.approx(np.mean(best), abs=2e-6)
    assert scorer.recall(["a red hat"], ["a red hat"]) == pytest.approx([1.0], abs=1e-6)
    with pytest.raises(UsageError, match="hidden states 0 to 3, not 40"):
        BertScore(str(encoder), 40).load("cpu", "float32")


def test_caption_alignment_scores_what_the_server_says(encoder, faulty, tmp_path):
    said = {"hat.png": "the image contains a red hat", "boot.png": "two blue boot", "none.png": " "}
    urls = {}

    def behave(payload, count):
        url = payload["messages"][0]["content"][0]["image_url"]["url"]
        text = said[urls[url]]
        return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    from prefkit.score.judge.server import data_url

    server = faulty(behave)
    candidates = [Candidate(name, "r", i, i, "a red hat", picture(i)) for i, name in enumerate(said)]
    urls |= {data_url(c): c.id for c in candidates}
    options = {"model": "j", "server": server.url, "cache": str(tmp_path / "a"), "encoder": str(encoder), "layer": None}
    scorer = make_scorer("caption_alignment", options)
    scorer.load("cpu", "float32")
    hat, boot, none = score_batch(scorer, candidates)
    assert hat.value == pytest.approx(1.0, abs=1e-6) and hat.text == said["hat.png"]
    assert boot.value is not None and boot.value < 0.999
    assert none.value is None and "answer is empty" in none.error
    assert "hidden state last" in scorer.spec().formula


def test_questions_are_plain_data():
    c = batch(1)[0]
    assert Question((c, "a")) == Question((c, "a")) != Question((c, "a"), 1)
