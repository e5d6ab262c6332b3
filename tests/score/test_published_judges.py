"""Published judges: what they write, checklists, and the programs in pipelines/judges, on tiny models of the real classes."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import math
import re
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_reward
from reward_numbers import KEPT, PROMPTS, pictures

from prefkit.errors import PluginError, UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.score.judge.question import Reply
from prefkit.score.judge.written import EDIT_SECTIONS, T2I_SECTIONS, sectioned, yes_or_no
from prefkit.types import Candidate

JUDGES = Path(__file__).parents[2] / "pipelines" / "judges"
NAMES = ("build", "lines", "reward", "program", "hpsv3", "editreward")
SERVER = {"model": "m", "server": "http://127.0.0.1:9/v1"}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FIRST, SECOND, SOURCE = map(png, pictures())
SOURCE_ID = hashlib.sha256(SOURCE).hexdigest()


def candidate(name="c", prompt="a cat", image=FIRST, source=SOURCE_ID):
    return Candidate(name, "r", 0, 0, prompt, image, extra={"source": source}, inputs={SOURCE_ID: SOURCE}.__getitem__)


# ---- answers


CRITIQUE = """# User Request Analysis
A hat. Score: 2 would be harsh.
# Detailed Judgement
1. Text Faithfulness:
## Justification: all there; text rendering is not needed. I start from a score of 3.
## Score: 3.5
2. Physical and Visual Quality:
## Justification: fine
## Score: 2.75 (minor flaws)
3. Text Rendering:
## Justification: none
## Score: N/A
# Summary: good
3. Text Rendering:
## Score: 1"""
EDITED = CRITIQUE.replace("3. Text", "4. Text").replace(
    "2. Physical", "2. Image Faithfulness:\n## Score: 4\n3. Physical"
)


@pytest.mark.parametrize(
    "text, sections, found",
    [
        (CRITIQUE, T2I_SECTIONS, (3.5, 2.75)),
        (CRITIQUE.replace("N/A", "n/a"), T2I_SECTIONS, (3.5, 2.75)),
        (CRITIQUE.replace("N/A", "2/4"), T2I_SECTIONS, (3.5, 2.75, 2)),
        (CRITIQUE.replace("## Score: 3.5", "**Score:** 3.5"), T2I_SECTIONS, (3.5, 2.75)),
        (CRITIQUE.replace("1. Text Faithfulness:", "### **1. Text Faithfulness**"), T2I_SECTIONS, (3.5, 2.75)),
        (EDITED, EDIT_SECTIONS, (3.5, 4, 2.75)),
        (EDITED, T2I_SECTIONS, ()),  # the score of image faithfulness would be one of text faithfulness
        (CRITIQUE, EDIT_SECTIONS, ()),
        (CRITIQUE.replace("3.5", "4.5"), T2I_SECTIONS, ()),
        (CRITIQUE.replace("3.5", "-3.5"), T2I_SECTIONS, ()),
        (CRITIQUE.replace("3.5", "N/A"), T2I_SECTIONS, ()),
        (CRITIQUE.replace("## Score: 3.5", "## Score: 3\n## Score: 4"), T2I_SECTIONS, ()),
        (CRITIQUE.replace("## Score: 3.5", ""), T2I_SECTIONS, ()),
        (CRITIQUE.partition("3. Text")[0], T2I_SECTIONS, ()),  # cut off
        ("1. Text Faithfulness:\n# Summary: fine\n## Score: 4", T2I_SECTIONS, ()),
        ('{"text_faithfulness": 4, "physical_quality": 4, "text_rendering": ', T2I_SECTIONS, ()),
        ("I'm sorry, but I can't assist with that.", T2I_SECTIONS, ()),
        ("", T2I_SECTIONS, ()),
    ],
)
def test_scores_of_rationalrewards(text, sections, found):
    assert tuple(sectioned(text, sections, 1, 4).values()) == found


@pytest.mark.parametrize(
    "text, answer",
    [
        ("yes", True),
        (" Yes.", True),
        ("**No**, there are none", False),
        ("NO", False),
        ("yes and no", None),
        ("Yes/No", None),
        ("yes or no?", None),
        ("not quite", None),
        ("None", None),
        ("yesterday", None),
        ("It does.", None),
        ('{"answer": "yes"}', None),
        ("I cannot see an image.", None),
        ("", None),
    ],
)
def test_answers_to_a_checklist(text, answer):
    assert yes_or_no(text) is answer


@pytest.mark.parametrize(
    "preset, text, value, names",
    [
        ("rationalrewards", CRITIQUE, (3.125 - 1) / 3, ["text faithfulness", "physical and visual quality"]),
        ("rationalrewards_edit", EDITED, (10.25 / 3 - 1) / 3, None),
        ("rationalrewards", "No.", None, []),
    ],
)
def test_rationalrewards_is_a_mean_from_0_to_1(preset, text, value, names):
    asked = []

    class Backend:
        def texts(self, questions, max_tokens):
            asked.extend((question.parts, max_tokens) for question in questions)
            return [Reply(text) for _ in questions]

    scorer = make_scorer("reward_vlm", {**SERVER, "preset": preset})
    scorer.backend = Backend()
    (score,) = scorer.score([candidate()])
    assert score.value == (value if value is None else pytest.approx(value, abs=1e-12))
    assert names is None or list(score.aspects) == names
    ((parts, most),) = asked
    shown = [part.id for part in parts if isinstance(part, Candidate)]
    assert shown == ([SOURCE_ID, "c"] if "edit" in preset else ["c"]) and most == 2048
    assert ("no valid scores" in (score.error or "")) == (value is None)


def test_the_question_asks_for_what_the_parser_reads():
    for preset, sections in {"rationalrewards": T2I_SECTIONS, "rationalrewards_edit": EDIT_SECTIONS}.items():
        question = make_scorer("reward_vlm", {**SERVER, "preset": preset}).templates[0]
        answer = question.partition("Answer in this format:\n")[2].replace("Score: X", "Score: 2.5")
        assert set(sectioned(answer, sections, 1, 4).values()) == {2.5}


# ---- checklists

LIST = {
    "alignment": 2.0,
    "intercept": 0.5,
    "questions": [
        {"question": "Hands?", "weight": 0},
        {"question": "Clear?", "weight": 0.3},
        {"question": "Good hands?", "weight": 0.07, "only_if": "Hands?"},
    ],
}


class Answers:
    """A back end that answers questions by a table; P(yes) = 0.8 and P(no) = 0.1 for questions about the prompt."""

    def __init__(self, answers, masses=(0.8, 0.1)):
        self.answers, self.yes, self.asked = answers, masses, []

    def about(self):
        return {}

    def texts(self, questions, max_tokens):
        self.asked += [question.parts[1] for question in questions]
        return [Reply(self.answers[question.parts[1]]) for question in questions]

    def masses(self, questions, labels):
        self.asked += [question.parts[-1] for question in questions]
        return [Reply(masses=self.yes) for _ in questions]


def checklist(tmp_path, content=LIST, answers=None, **backend):
    (tmp_path / "list.json").write_text(json.dumps(content))
    scorer = make_scorer("checklist", {**SERVER, "checklist": str(tmp_path / "list.json")})
    scorer.backend = scorer.alignment.backend = Answers(answers, **backend)
    return scorer


@pytest.mark.parametrize(
    "hands, clear, good, value",
    [
        ("yes", "yes", "yes", 0.5 + 1.6 + 0.3 + 0.07),
        ("yes", "no", "No.", 0.5 + 1.6 - 0.3 - 0.07),
        ("no", "yes", "yes", 0.5 + 1.6 + 0.3),
        ("no", "yes", "which hands?", 0.5 + 1.6 + 0.3),
        ("yes", "yes", "which hands?", None),
        ("perhaps", "yes", "yes", None),
        ("yes", "I cannot help with that.", "yes", None),
    ],
)
def test_a_checklist_is_a_weighted_sum(tmp_path, hands, clear, good, value):
    scorer = checklist(tmp_path, answers={"Hands?": hands, "Clear?": clear, "Good hands?": good})
    (score,) = scorer.score([candidate()])
    assert score.value == (value if value is None else pytest.approx(value, abs=1e-12))
    assert scorer.backend.asked[:3] == ["Hands?", "Clear?", "Good hands?"] and "a cat" in scorer.backend.asked[3]
    assert (score.error is None) == (value is not None) and score.aspects["alignment"] == 0.8
    if hands == "no":
        assert score.aspects["Good hands?"] == 0 and score.aspects["Hands?"] == -1
    low, high = scorer.spec().range
    assert value is None or low < value < high


def test_a_checklist_asks_about_the_prompt_only_if_that_counts(tmp_path):
    yes = dict.fromkeys(["Hands?", "Clear?", "Good hands?"], "yes")
    (score,) = checklist(tmp_path, answers=yes, masses=(0.01, 0.02)).score([candidate()])
    assert score.value is None and "alignment: yes and no have a total probability" in score.error
    scorer = checklist(tmp_path, {"questions": LIST["questions"]}, yes)
    (score,) = scorer.score([candidate()])
    assert score.value == pytest.approx(0.37) and len(scorer.backend.asked) == 3 and "alignment" not in score.aspects
    assert scorer.requires == {"image"} and checklist(tmp_path, LIST).requires == {"image", "prompt"}
    assert scorer.spec().formula != checklist(tmp_path, LIST).spec().formula


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "could not be read"),
        ([], "has no list `questions`"),
        ({"questions": []}, "has no list `questions`"),
        ({"questions": ["Clear?"]}, "question 1 must be an object"),
        ({"questions": [{"question": "Clear?", "weight": "0.3"}]}, "question 1: weight is '0.3'"),
        ({"questions": [{"question": "", "weight": 1}]}, "must be strings"),
        ({"questions": [{"question": "Clear?", "weight": 1}] * 2}, "the question 'Clear\\?' twice"),
        (
            {"questions": [{"question": "Clear?", "weight": 1, "only_if": "Big?"}]},
            "`only_if` is 'Big\\?'; it must be a question",
        ),
        ({"questions": [{"question": "Clear?", "weight": 10**400}]}, "weight is 1000+; it must be a number from"),
        ({"questions": [{"question": "alignment", "weight": 1}]}, "Reword the question"),
        (LIST | {"aligment": 2.0}, "has the unknown key 'aligment'"),
        ("[" * 100_000, "could not be read"),
        (LIST | {"alignment": True}, "alignment is True"),
        (LIST | {"intercept": math.nan}, "intercept is nan"),
    ],
)
def test_invalid_checklists(tmp_path, content, message):
    path = tmp_path / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError, match=message):
        make_scorer("checklist", {**SERVER, "checklist": str(path)})


def test_a_checklist_needs_a_file():
    with pytest.raises(UsageError, match=r"`checklist` is not set.*build.py visionreward"):
        make_scorer("checklist", SERVER)


# ---- pipelines/judges


@pytest.fixture(scope="module")
def judges():
    """The modules of pipelines/judges; they are forgotten afterwards, since other pipelines have the same names."""
    before, path = {name: sys.modules.pop(name, None) for name in NAMES}, list(sys.path)
    sys.path.insert(0, str(JUDGES))
    yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    sys.path[:] = path
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model in the files of each published one, and its questions."""
    found = {}
    for name, kind in {"hpsv3": "qwen2_vl", "editreward": "qwen2_5_vl"}.items():
        found[name] = tiny_reward.write(tmp_path_factory.mktemp(name), kind)
        question = tiny_reward.QUESTION
        texts = {"question": question, "following": question, "quality": "Quality. " + question}
        (found[name] / "texts.json").write_text(json.dumps({"texts": texts}))
    return found


def words(folder):
    options = {"--checkpoint": folder / "checkpoint.safetensors", "--base": folder, "--texts": folder / "texts.json"}
    return [str(word) for pair in options.items() for word in pair] + ["--device", "cpu"]


def run(judges, name, given, monkeypatch, requests):
    """Return the messages that a program writes, run in this process."""
    out = io.StringIO()
    monkeypatch.setattr(judges.lines, "take_output", lambda: out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    getattr(judges, name).main(given)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def item(prompt, image=FIRST):
    return {"id": "c", "prompt": prompt, "image": base64.b64encode(image).decode(), "extra": {}}


def test_hpsv3_equals_the_published_code(judges, folders, monkeypatch):
    items = [item(PROMPTS[0]), item("<|image_pad|>"), item("a", b"not an image"), item(PROMPTS[1], SECOND)]
    requests = [{"request": 1, "items": items}, {"request": 2}, {"request": 3, "items": [item(PROMPTS[1], SECOND)]}]
    hello, first, second, third = run(judges, "hpsv3", words(folders["hpsv3"]), monkeypatch, requests)
    assert hello["protocol"] == 1 and hello["requires"] == ["image", "prompt"]
    assert hello["spec"]["name"] == "hpsv3" and hello["spec"]["dtype"] == "float32"
    assert first["request"] == 1 and second["request"] == 2 and "not a request" in second["error"]
    asked = hashlib.sha256(tiny_reward.QUESTION.encode()).hexdigest()[:12]
    assert hello["spec"]["formula"].endswith(asked) and hello["spec"]["weights"] == "checkpoint.safetensors"
    a, special, damaged, b = first["scores"]
    published = json.loads(KEPT.read_text())["hpsv3"]
    for score, (mu, log_sigma) in zip([a, b], published, strict=True):
        assert score["value"] == pytest.approx(mu, abs=3e-5)
        assert score["aspects"]["sigma"] == pytest.approx(math.exp(log_sigma), abs=3e-5)
    assert special["value"] is None and "a special token" in special["error"]
    assert damaged["value"] is None and "could not be decoded" in damaged["error"]
    assert third["scores"][0]["value"] == pytest.approx(b["value"], abs=3e-5)  # alone, without padding


def test_editreward_over_exec_equals_the_published_code(folders):
    command = " ".join([sys.executable, str(JUDGES / "editreward.py"), *words(folders["editreward"]), "--batch", "2"])
    scorer = make_scorer(f"exec:{command}", {"timeout": 120, "start_timeout": 120})
    assert scorer.spec().name == "editreward" and scorer.requires == {"image", "prompt", "source"}
    pair = [candidate("a", PROMPTS[0], FIRST), candidate("b", PROMPTS[1], SECOND)]
    scores = score_batch(scorer, [*pair, candidate("d", source="no id"), candidate("e", source=[SOURCE_ID] * 2)])
    published = json.loads(KEPT.read_text())["editreward"]
    for score, (mu, log_sigma) in zip(scores[:2], published, strict=True):
        aspects = score.aspects
        assert score.value == pytest.approx(mu, abs=3e-5)
        assert score.value == pytest.approx((aspects["following"] + aspects["quality"]) / 2, abs=1e-9)
        product = aspects["sigma following"] * aspects["sigma quality"]
        assert math.log(product) / 2 == pytest.approx(log_sigma, abs=3e-5)
    for failed in scores[2:]:
        assert failed.value is None and "source must hold one image; list source under requests.images" in failed.error
    scorer.close()


@pytest.mark.slow
def test_hpsv3_over_exec(folders):
    command = " ".join([sys.executable, str(JUDGES / "hpsv3.py"), *words(folders["hpsv3"])])
    scorer = make_scorer(f"exec:{command}", {})
    (score,) = score_batch(scorer, [candidate(prompt=PROMPTS[0])])
    assert score.value == pytest.approx(json.loads(KEPT.read_text())["hpsv3"][0][0], abs=3e-5)
    scorer.close()
    with pytest.raises(PluginError, match="ended with code"):
        make_scorer(f"exec:{command} --texts /no/such/file", {}).spec()


def test_a_program_says_what_it_cannot_use(judges, folders, monkeypatch, tmp_path):
    import torch

    folder = folders["hpsv3"]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "texts.json").write_text(json.dumps({"texts": {"question": "no places"}}))
    edits = folders["editreward"] / "checkpoint.safetensors"
    for change, message in {
        ("--texts", str(tmp_path / "none.json")): "does not contain the questions",
        ("--texts", str(tmp_path / "texts.json")): "must contain {text_prompt} and <|Reward|> once",
        ("--checkpoint", str(tmp_path)): "contains none of HPSv3.safetensors",
        ("--checkpoint", str(tmp_path / "broken.safetensors")): "could not be read as a checkpoint",
        ("--checkpoint", str(tmp_path / "list.pth")): "does not contain named tensors",
        ("--checkpoint", str(edits)): "has no head rm_head of the published shape",
        ("--checkpoint", "no such/file"): "does not exist",
        ("--base", str(tmp_path)): "is a model of type llama",
        ("--base", str(tmp_path / "none")): "could not be loaded",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            run(judges, "hpsv3", [*words(folder), *change], monkeypatch, [])
        assert message in str(stopped.value.code), change


@pytest.mark.parametrize(
    "shape, message", [((256, 32), "256 tokens, but <|Reward|> is number 264"), ((265, 16), "does not fit --base")]
)
def test_a_checkpoint_of_another_base_is_refused(judges, folders, tmp_path, shape, message):
    import safetensors.torch
    import torch

    state = tiny_reward.tensors("qwen2_vl")
    state["model.embed_tokens.weight"] = torch.zeros(shape)
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(judges.reward.Unusable, match=message.replace("|", r"\|")):
        judges.reward.RewardModel(
            str(folders["hpsv3"]), tmp_path / "other.safetensors", ["rm_head."], "cpu", torch.float32
        )


def test_names_of_both_generations_of_checkpoints(judges):
    names = {
        "model.layers.0.mlp.up_proj.weight": "language_model.layers.0.mlp.up_proj.weight",
        "model.language_model.norm.weight": "language_model.norm.weight",
        "model.visual.merger.ln_q.weight": "visual.merger.ln_q.weight",
        "visual.merger.ln_q.weight": "visual.merger.ln_q.weight",
        "lm_head.weight": "",
    }
    assert {old: judges.reward.renamed(old) for old in names} == names


RELEASE = {
    "hpsv3/dataset/data_collator_qwen.py": 'INSTRUCTION = """Ask {text_prompt}\n"""\nprompt_with_special_token = "<|Reward|>"\n'
    "raise SystemExit('this code must not run')\n",
    "EditReward/dataset/prompts.py": 'INSTRUCTION_EDIT_FOLLOWING = "F {text_prompt}"\nINSTRUCTION_EDIT_QUALITY = "Q"\n',
    "EditReward/dataset/data_collator_qwen_edit.py": 'prompt_with_special_token = " <|Reward|>"\n',
    "VisionReward_Image/VisionReward_image_qa_select.txt": "\n".join(f"Question {n}?" for n in range(30)) + "\n",
    "VisionReward_Image/weight_select.json": json.dumps({"coef": [2.5, *range(3, 30)], "intercept": [0.25]}),
}


@pytest.fixture
def releases(judges, monkeypatch, tmp_path):
    """A folder with small releases, whose hashes the build command expects."""
    for path, text in RELEASE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    with zipfile.ZipFile(tmp_path / "hpsv3-1.0.0-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "hpsv3/dataset/data_collator_qwen.py", "hpsv3/dataset/data_collator_qwen.py")
    for name, release in judges.build.RELEASES.items():
        files = {path: hashlib.sha256(RELEASE[path].encode()).hexdigest() for path in release.files}
        monkeypatch.setitem(judges.build.RELEASES, name, judges.build.Release(release.where, files))
    return tmp_path


def test_build_reads_the_questions_of_the_releases(judges, releases, monkeypatch, capsys):
    out, run = releases / "out", []
    monkeypatch.setattr(judges.build, "pip", lambda *given: run.append(given))
    monkeypatch.setattr(judges.build.venv, "create", lambda folder, with_pip: run.append((folder, with_pip)))
    for name in ("hpsv3", "editreward", "visionreward"):
        judges.build.main([name, str(out), "--from", str(releases)])
    texts = json.loads((out / "hpsv3/texts.json").read_text())["texts"]
    assert texts == {"question": "Ask {text_prompt}\n<|Reward|>"}
    texts = json.loads((out / "editreward/texts.json").read_text())["texts"]
    assert texts == {"following": "F {text_prompt} <|Reward|>", "quality": "Q <|Reward|>"}
    assert run[0] == (out / "hpsv3", True) and run[1][-1] == str(JUDGES / "requirements.txt") and len(run) == 4
    assert "editreward.py" in capsys.readouterr().out


def test_build_writes_visionrewards_checklist(judges, releases, tmp_path):
    judges.build.main(["visionreward", str(tmp_path / "out"), "--from", str(releases)])
    scorer = make_scorer("checklist", {**SERVER, "checklist": str(tmp_path / "out/visionreward.json")})
    answers = {f"Question {n}?": "yes" for n in range(30)} | {"Question 1?": "no", "Question 3?": "no"}
    scorer.backend = scorer.alignment.backend = Answers(answers)
    (score,) = scorer.score([candidate()])
    # as in the authors' inference-image.py: questions 25 and 26 do not count without a face (question 1)
    signs = [0, 0, 0, -1, *([1] * 21), 0, 0, 1, 1, 1]
    assert score.value == pytest.approx(0.25 + 2.5 * 0.8 + sum(n * sign for n, sign in enumerate(signs)))


def test_build_refuses_changed_and_missing_files(judges, releases, capsys):
    good = shutil.copytree(releases, releases / "good")
    (releases / "a file").touch()
    (releases / "EditReward/dataset/prompts.py").write_text("INSTRUCTION_EDIT_FOLLOWING = 'other'")
    for words, message in {
        ("editreward", "out", "--from", str(releases)): "prompts.py from .* is not the expected file",
        ("visionreward", "out", "--from", str(releases / "none")): "could not be read from",
        ("hpsv3", "out", "--from", str(releases / "hpsv3")): "does not contain a wheel of hpsv3==1.0.0",
        ("editreward", str(releases / "a file"), "--from", str(good)): "a file/editreward could not be made: ",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            judges.build.main([*words])
        assert stopped.value.code == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("text", ["0", "x", "-1"])
def test_a_program_needs_a_batch_of_at_least_one(judges, text, capsys):
    with pytest.raises(SystemExit):
        judges.hpsv3.main([f"--batch={text}"])
    assert f"'{text}' is not a whole number from 1" in capsys.readouterr().err


def test_build_without_network_names_from(judges, monkeypatch, capsys):
    def fail(*given, **options):
        raise http.client.IncompleteRead(b"")

    monkeypatch.setattr(judges.build.urllib.request, "urlopen", fail)
    monkeypatch.setattr(judges.build.subprocess, "run", lambda *given: SimpleNamespace(returncode=1))
    for name in ("hpsv3", "editreward"):
        with pytest.raises(SystemExit):
            judges.build.main([name, "out"])
        assert "give a folder with --from" in capsys.readouterr().err
