"""Scorers and judges that see the images of the request: the image before an edit, and examples of what is wanted."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from prefkit.api import Run
from prefkit.errors import UsageError
from prefkit.score.core import FunctionScorer, make_scorer, score_batch
from prefkit.score.judge.compare import compare
from prefkit.score.judge.question import Reply
from prefkit.score.judge.templates import shown
from prefkit.score.judge.written import listed, written
from prefkit.score.remote.protocol import decode_item, encode_item
from prefkit.store import Store
from prefkit.types import Candidate

IDS = {colour: f"{number:064x}" for number, colour in enumerate(("red", "green", "blue"))}
FILES = {}
for colour, name in IDS.items():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    FILES[name] = buffer.getvalue()


def candidate(**extra):
    return Candidate("c", "r", 0, 0, "make it blue", FILES[IDS["blue"]], extra=extra, inputs=FILES.__getitem__)


def names(parts):
    return [part if isinstance(part, str) else part.id for part in parts]


def test_a_question_shows_images_where_the_template_names_them():
    c = candidate(source=IDS["red"], good=[IDS["green"], IDS["blue"]], user="ann", text="{prompt}")
    assert names(shown("{prompt}?", c, {"prompt": "x"})) == ["c", "x?"]
    assert names(shown("from {source} to {image} for {user}", c, {})) == ["from ", IDS["red"], " to ", "c", " for ann"]
    assert names(shown("{good}\n{text} {other}", c, {})) == ["c", IDS["green"], IDS["blue"], "\n{prompt} {other}"]
    assert names(shown("{source}", candidate(source="red.png"), {})) == ["c", "red.png"]  # not an input image


def test_a_column_of_images_is_read_as_images():
    c = candidate(source=IDS["red"], good=[IDS["green"], IDS["blue"]], user="ann", none=None)
    assert c.value("source").getpixel((0, 0)) == (255, 0, 0)
    assert [image.getpixel((0, 0)) for image in c.value("good")] == [(0, 128, 0), (0, 0, 255)]
    assert c.value("user") == "ann" and c.value("none") is None is c.value("other")
    assert candidate(good=[]).value("good") == []

    def changed(images, prompts, source):
        return [float(np.abs(np.subtract(a, b, dtype=float)).mean()) for a, b in zip(images, source)]

    (score,) = score_batch(FunctionScorer(changed, "changed"), [c])
    assert score.value == pytest.approx(2 * 255 / 3)


def test_a_remote_scorer_gets_the_images_that_it_requires():
    c = candidate(source=IDS["red"], good=[IDS["green"]])
    item = json.loads(json.dumps(encode_item(c, frozenset({"image", "source"}))))
    assert list(item["inputs"]) == [IDS["red"]]
    assert decode_item(item, paths=False).value("source").getpixel((0, 0)) == (255, 0, 0)
    assert "inputs" not in encode_item(c, frozenset({"image"}))
    with pytest.raises(ValueError, match="not an object"):
        decode_item(item | {"inputs": [1]}, paths=False)


def test_a_comparison_shows_the_source_too():
    asked = []

    class Judge:
        def masses(self, questions, labels):
            asked.extend(names(q.parts) for q in questions)
            return [Reply(masses=(0.5, 0.4)) for _ in questions]

    pair = [Candidate(i, "r", 0, 0, "p", extra={"source": IDS["red"]}, inputs=FILES.__getitem__) for i in "ab"]
    compare(Judge(), [tuple(pair)], "j", template="Both were made of {source}. Which is better?")
    assert asked[1] == ["Image A:", "b", "Image B:", "a", "Both were made of ", IDS["red"], ". Which is better?"]
    with pytest.raises(UsageError, match=r"cannot have \{image\}"):
        compare(Judge(), [tuple(pair)], "j", template="{image}?")
    with pytest.raises(UsageError, match=r"names \{sauce\}, but the requests have no such column"):
        compare(Judge(), [tuple(pair)], "j", template="{prompt}{aspect} {sauce}?")


@pytest.fixture
def edits(tmp_path):
    """A recipe whose requests have the columns source and good; its generator draws the colour in the prompt."""
    (tmp_path / "draw.py").write_text(
        "from PIL import Image\n\ndef draw(prompts, seeds):\n"
        "    return [Image.new('RGB', (32, 32), p.split()[-1]) for p in prompts]\n"
    )
    (tmp_path / "own.py").write_text(
        "def kept(images, prompts, source):\n    return [float(i.getpixel((0, 0)) == s.getpixel((0, 0))) "
        "for i, s in zip(images, source)]\n"
    )
    for colour, name in IDS.items():
        (tmp_path / f"{colour}.png").write_bytes(FILES[name])
    rows = [
        {"prompt": f"make it {colour}", "source": "red.png", "good": ["green.png", "blue.png"]}
        for colour in ("red", "green", "blue")
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "run": str(tmp_path / "run"),
        "requests": {"source": str(tmp_path / "requests.jsonl"), "test_share": 0, "images": ["source", "good"]},
        "generate": {"own": {"use": f"{tmp_path}/draw.py:draw", "n": 1}},
        "score": {
            "kept": {"use": f"{tmp_path}/own.py:kept"},
            "near": {"use": "similarity", "options": {"examples": "good", "model": "tiny"}},
            "edit": {"use": "mllm", "options": {"model": "tiny", "preset": "edit", "min_mass": 0}},
        },
    }
    return recipe


def test_a_run_scores_with_the_images_of_its_requests(edits, tmp_path, cli):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(edits))
    code, _, err = cli("run", "-r", tmp_path / "recipe.yaml")
    assert code == 0, err
    run = Run(tmp_path / "run")
    table = {c.prompt: c.id for c in run.store.iter_candidates()}
    kept = {row.id: row.value for row in run.store.scores("kept").frame(["id", "value"]).itertuples()}
    assert {prompt: kept[cid] for prompt, cid in table.items()} == {
        "make it red": 1.0,
        "make it green": 0.0,
        "make it blue": 0.0,
    }
    near = {row.id: row.value for row in run.store.scores("near").frame(["id", "value"]).itertuples()}
    assert near[table["make it red"]] < min(near[table["make it green"]], near[table["make it blue"]])
    edit = run.store.scores("edit").frame(["id", "value", "error"])
    assert edit.value.between(1, 5).all() and edit.error.isna().all()
    evaluated = Store(tmp_path / "run/eval/e/held_out/base")
    assert evaluated.input_images()(next(iter(run.store.inputs().ids())))


def test_a_run_compares_beside_the_example_images_of_its_requests(edits, tmp_path, cli, monkeypatch):
    asked = []

    def masses(self, questions, labels):
        asked.extend([p if isinstance(p, str) else p.pil().getpixel((0, 0)) for p in q.parts] for q in questions)
        return [Reply(masses=(0.5, 0.5)) for _ in questions]

    judge = make_scorer("mllm", {"model": "tiny"})
    monkeypatch.setattr(type(judge.backend), "masses", masses)
    template = "These are good:\n{good}\nWhich of A and B is more like these, for: {prompt}?"
    options = {"model": "tiny"}
    edits |= {"score": {}, "compare": {"like": {"use": "mllm", "template": template, "options": options}}}
    edits["generate"]["own"]["n"] = 2
    (tmp_path / "draw.py").write_text(
        "from PIL import Image\n\ndef draw(prompts, seeds):\n"
        "    return [Image.new('RGB', (32, 32), (s % 251, s % 241, 7)) for s in seeds]\n"
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(edits))
    code, _, err = cli("generate", "-r", tmp_path / "recipe.yaml")
    assert code == 0, err
    code, _, err = cli("compare", "-r", tmp_path / "recipe.yaml")
    assert code == 0, err
    examples = ["These are good:\n", (0, 128, 0), (0, 0, 255)]
    assert len(asked) == 6  # three pairs in both orders
    assert all(parts[0::2][:2] == ["Image A:", "Image B:"] and parts[4:7] == examples for parts in asked)
    for ab, ba in zip(asked[0::2], asked[1::2]):
        assert ab[1] == ba[3] != ab[3] == ba[1]
    assert {parts[7] for parts in asked[:2]} == {"\nWhich of A and B is more like these, for: make it red?"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": ["sauce", "good"]}, "no request of .* has a column 'sauce' with a value"),
        ({"images": ["source", "note"]}, "extra.note is 'nothing', which is not an image or its path"),
    ],
)
def test_columns_without_images_are_refused(edits, tmp_path, cli, change, message):
    lines = [json.loads(line) | {"note": "nothing"} for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    edits["requests"] |= change
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(edits))
    code, _, err = cli("generate", "-r", tmp_path / "recipe.yaml")
    assert code == 2
    assert re.search(message, err), err


def test_what_needs_images_says_so(tmp_path):
    with pytest.raises(UsageError, match="`examples` is not set"):
        make_scorer("similarity", {})
    with pytest.raises(UsageError, match="quality_template"):
        make_scorer("reward_vlm", {"model": "m", "quality_template": "x"})
    scorer = make_scorer("mllm", {"model": "tiny", "preset": "edit"})
    assert scorer.requires == {"image", "prompt", "source"}
    (score,) = score_batch(scorer, [candidate(source="red.png")])
    assert score.value is None and "list source under requests.images" in score.error


# ---- answers of published reward models


@pytest.mark.parametrize(
    "text, found",
    [
        ("Alignment Score (1-5): 3.5\nCoherence Score (1-5): 4\nStyle Score (1-5): 2.25", (3.5, 4, 2.25)),
        ("**Alignment Score (1-5):** 5\n**Coherence Score:** 4\n**Style:** 3", (5, 4, 3)),
        ("Final Score: 3", (3,)),
        ("The image is fine. Final Score: 4.5", (4.5,)),
        ("Alignment Score (1-5): 3.5\nCoherence Score (1-5): 4", ()),
        ("Alignment Score (1-5): 7\nCoherence Score (1-5): 4\nStyle Score (1-5): 2", ()),
        ("Alignment: 3, or rather Alignment: 4\nCoherence: 4\nStyle: 2", ()),
        ("I cannot rate this image.", ()),
        ("", ()),
    ],
)
def test_scores_of_unifiedreward(text, found):
    assert tuple(written(text, 1, 5).values()) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ('{"reasoning": "good", "score": [20, 15.5]}', [20, 15.5]),
        ('```json\n{"score": [25, 0], "reasoning": "a {brace}"}\n```', [25, 0]),
        ('{"score": 12}', [12]),
        ('{"score": [26, 3]}', []),
        ('{"score": [true, 3]}', []),
        ('{"score": []}', []),
        ('{"score": ["20", 3]}', []),
        ('{"score": [20, 3', []),
        ("I am sorry, I cannot help with that.", []),
    ],
)
def test_scores_of_editscore(text, found):
    assert listed(text, 0, 25) == found


def test_reward_models_combine_what_they_write():
    answers = iter(['{"score": [16, 25]}', '{"score": [9, 20]}', '{"score": [16, 25]}', "no"])

    class Backend:
        def texts(self, questions, max_tokens):
            return [Reply(next(answers)) for _ in questions]

    scorer = make_scorer("reward_vlm", {"model": "m", "preset": "editscore", "server": "http://127.0.0.1:9/v1"})
    scorer.backend = Backend()
    batch = [candidate(source=IDS["red"]), Candidate("d", "r", 0, 0, "p", FILES[IDS["red"]], extra={"source": 1})]
    scores = scorer.score(batch)
    assert scores[0].value == 12.0 and scores[0].aspects == {"edit": 16.0, "quality": 9.0}
    assert "list source under requests.images" in scores[1].error
    (failed,) = scorer.score(batch[:1])
    assert failed.value is None and failed.aspects == {"edit": 16.0} and "no valid scores" in failed.error
