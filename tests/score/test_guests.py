"""Scorers that are not prefkit's own: what they may change, what they may return, and how they may not end."""

from __future__ import annotations

import io
import json
import signal
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prefkit import plugin_guard as guest
from prefkit.errors import PluginError
from prefkit.score.contract import checked, read_number, row_of
from prefkit.score.core import decode, make_scorer, score_batch
from prefkit.score.remote.protocol import decode_answer
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request, Score

CLASS = """
from prefkit.types import Score, ScorerSpec
class S:
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options): pass
    def spec(self): return ScorerSpec("mine", "1")
    def load(self, device, dtype): pass
    def score(self, batch):
        for c in batch:
            image = c.pil()
            BODY
        return [Score(1.0) for _ in batch]
"""
FUNCTION = """
import prefkit
def f(images, prompts, tags):
    for image in images:
        BODY
    return [1.0] * len(images)
g = prefkit.scorer(range=(0, 1))(f)
"""
PAINTS = {
    "paste": "image.paste((255, 255, 255), (0, 0, image.width, image.height))",
    "thumbnail": "image.thumbnail((2, 2))",
    "putpixel": "[image.putpixel((x, 0), (9, 9, 9)) for x in range(image.width)]",
    "load": "p = image.load(); p[0, 0] = (1, 2, 3)",
    "draw": "from PIL import ImageDraw; ImageDraw.Draw(image).rectangle((0, 0, 20, 20), fill=(0, 0, 0))",
    "putdata": "image.putdata([(0, 0, 0)] * image.width * image.height)",
    "info": "image.info.update(dpi=(9, 9), exif=b'x'); image.im = image.resize((3, 3)).im",
}


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 20, 3), np.uint8)).save(
        buffer, "PNG", dpi=(72, 72)
    )
    return buffer.getvalue()


def batch(n=3):
    rows = [Candidate(f"c{i}", "r", i, i, "a hat", png(i), extra={"tags": ["a"], "deep": {"k": [1]}}) for i in range(n)]
    return decode(rows)


@pytest.mark.parametrize("paints", PAINTS)
@pytest.mark.parametrize("kind", ["S", "f", "g"])
def test_what_a_scorer_does_to_its_images_nobody_else_sees(tmp_path, kind, paints):
    (tmp_path / "s.py").write_text((CLASS if kind == "S" else FUNCTION).replace("BODY", PAINTS[paints]))
    rows = batch()
    before = [(c.decoded.tobytes(), c.decoded.size, dict(c.decoded.info)) for c in rows]
    scores = score_batch(make_scorer(f"{tmp_path}/s.py:{kind}", {}), rows)
    assert [s.value for s in scores] == [1.0] * 3
    assert [(c.decoded.tobytes(), c.decoded.size, dict(c.decoded.info)) for c in rows] == before


def test_a_second_try_sees_what_the_first_one_saw(tmp_path):
    """The batch is repeated image by image after an error, and once painted it must not stay so."""
    text = (
        "def f(images, prompts, tags):\n    found = [float(i.getpixel((0, 0))[0]) + len(t) for i, t in zip(images, tags)]\n"
        "    for i, t in zip(images, tags):\n        i.putpixel((0, 0), (0, 0, 0)); t.append('b')\n"
        "    if len(images) > 1: raise ValueError('one at a time')\n    return found\n"
    )
    (tmp_path / "s.py").write_text(text)
    rows = batch()
    wanted = [float(c.decoded.getpixel((0, 0))[0]) + 1 for c in rows]
    assert [s.value for s in score_batch(make_scorer(f"{tmp_path}/s.py:f", {}), rows)] == wanted
    assert all(c.extra == {"tags": ["a"], "deep": {"k": [1]}} for c in rows)


def test_built_in_scorers_share_the_decoded_images(monkeypatch):
    copied = []
    monkeypatch.setattr(guest, "picture", lambda image: copied.append(image) or image)
    rows = batch()
    score_batch(make_scorer("jpeg", {}), rows)
    assert not copied

    class Mine(type(make_scorer("jpeg", {}))):
        """A class of somebody's file that builds on ours is a guest all the same."""

    score_batch(Mine(Mine.Options()), rows)
    assert len(copied) == 3


# -- what is returned ---------------------------------------------------------------------------------------------
ROWS = {
    "dict": ({0: 1.0, 1: 2.0}, "a dict"),
    "set": ({1.0, 2.0}, "a set"),
    "frozenset": (frozenset({1.0, 2.0}), "a frozenset"),
    "str": ("12", "a str"),
    "bytes": (b"12", "a bytes"),
    "generator": ((x for x in (1.0, 2.0)), "a generator"),
    "map": (map(float, (1, 2)), "a map"),
    "values": ({0: 1.0, 1: 2.0}.values(), "a dict_values"),
    "matrix": (np.ones((2, 1)), r"an ndarray of shape \(2, 1\)"),
    "scalar array": (np.array(1.0), r"an ndarray of shape \(\)"),
    "tensor": (torch.ones(2, 3), r"a Tensor of shape \(2, 3\)"),
    "frame": (pd.DataFrame({"a": [1.0, 2.0]}), r"a DataFrame of shape \(2, 1\)"),
    "times": (np.array([1, 2], "m8[s]"), "an ndarray"),
    "float": (1.0, "a float"),
    "None": (None, "None"),
    "short": ([1.0], "1 value for 2 images"),
    "long": (np.ones(3), "3 values for 2 images"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_no_row_of_numbers_is_refused_by_name(kind):
    found, said = ROWS[kind]
    with pytest.raises(PluginError, match=f"scorer x returned {said}"):
        row_of(found, 2, "scorer x")


@pytest.mark.parametrize(
    "found",
    [
        [1.0, 2.0],
        (1.0, 2.0),
        range(1, 3),
        np.array([1, 2], np.int8),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
        pd.Series([1.0, 2.0], index=[7, 3]),
        np.array([1.0, 2.0], object),
    ],
)
def test_rows_of_numbers_are_taken_by_position(found):
    assert [read_number(v)[0] for v in row_of(found, 2, "x")] == [1.0, 2.0]


NUMBERS = [1, 2.5, np.float32(0.5), np.int64(7), np.array(0.5), np.array([[0.5]]), torch.tensor([0.5]), Decimal("0.25"), Fraction(1, 4)]  # fmt: skip
NONE = [True, np.True_, torch.tensor(True), 1j, np.complex64(1), torch.tensor(1j), "7", b"7", np.str_("7"), [0.5], {"v": 1},
        10**400, Decimal("NaN"), float("inf"), np.float64("nan"), np.timedelta64(3, "ns"), np.ones(2), None, object()]  # fmt: skip


def test_one_rule_says_what_a_number_is():
    assert all(
        read_number(value) == (float(value.item() if hasattr(value, "item") else value), "") for value in NUMBERS
    )
    for value in NONE:
        number, said = read_number(value)
        assert number is None and said, value


@pytest.mark.parametrize("value", [True, 10**400, float("nan"), float("inf"), "7", [0.5]])
def test_the_rule_holds_for_other_processes_too(value):
    (score,) = decode_answer({"scores": [value]}, 1, "a server")
    assert score.value is None and score.error.startswith("a server returned ")
    (score,) = decode_answer({"scores": [{"value": 1.0, "aspects": {"a": value}}]}, 1, "a server")
    assert score.value is None


@pytest.mark.parametrize(
    "score, said",
    [
        ("Score(10**400)", "too large"),
        ("Score(True)", "a bool"),
        ("Score(1.0, {'a': float('nan')})", "aspects that are not numbers"),
        ("Score(1.0, ['a'])", "aspects that are not numbers"),
        ("Score(None)", "neither a value nor an error"),
    ],
)
def test_a_score_that_is_none_fails_alone(tmp_path, score, said):
    text = CLASS.replace("            BODY\n", "").replace("[Score(1.0) for _ in batch]", f"[{score}, Score(2.0)]")
    (tmp_path / "s.py").write_text(text)
    first, second = score_batch(make_scorer(f"{tmp_path}/s.py:S", {}), batch(2))
    assert first.value is None and said in first.error and second.value == 2.0


def test_aspects_and_texts_are_stored_whatever_their_types(tmp_path):
    text = CLASS.replace("            BODY\n", "").replace(
        "Score(1.0)", "Score(1.0, {1: __import__('numpy').float32(0.5)}, 'lone \\ud800')"
    )
    (tmp_path / "s.py").write_text(text)
    (score,) = score_batch(make_scorer(f"{tmp_path}/s.py:S", {}), batch(1))
    assert score.aspects == {"1": 0.5} and score.text == "lone ?"


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('"absolute"', '"global"', "scope is 'global'"),
        ('frozenset({"image"})', '"image"', "requires is 'image'"),
        ("    def load", "    concurrency = '4'\n    def load", "concurrency is '4'"),
        ("    def load", "    batch = 0\n    def load", "batch is 0"),
    ],
)
def test_what_a_class_says_of_itself_is_checked(tmp_path, old, new, said):
    (tmp_path / "s.py").write_text(CLASS.replace("BODY", "pass").replace(old, new))
    with pytest.raises(PluginError, match=said):
        make_scorer(f"{tmp_path}/s.py:S", {})


# -- how it may not end -------------------------------------------------------------------------------------------
ENDS = {
    "exit 0": "import sys; sys.exit(0)",
    "exit 3": "raise SystemExit(3)",
    "generator exit": "raise GeneratorExit",
    "own": "raise type('Odd', (BaseException,), {})('x')",
}
PLACES = {
    "import": "{end}\n" + CLASS,
    "init": CLASS.replace("def __init__(self, options): pass", "def __init__(self, options):\n        {end}"),
    "spec": CLASS.replace('def spec(self): return ScorerSpec("mine", "1")', "def spec(self):\n        {end}"),
    "load": CLASS.replace("def load(self, device, dtype): pass", "def load(self, device, dtype):\n        {end}"),
    "score": CLASS.replace("        return [Score", "        {end}\n        return [Score"),
    "threads": CLASS.replace("        return [Score", "        {end}\n        return [Score").replace(
        "    def load", "    concurrency = 2\n    def load"
    ),
}


@pytest.fixture
def run(tmp_path):
    """A run with four candidates of two requests."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request("r0", "a hat"), Request("r1", "a coat")])
    rows = [Candidate(f"c{i}", f"r{i % 2}", i, i, image=png(i)) for i in range(4)]
    store.candidates("own").append([candidate_row(c) for c in rows])
    return store


def recipe(folder, **uses):
    lines = [f"  {alias}: {{use: '{use}', batch_size: 1}}" for alias, use in uses.items()]
    (folder / "r.yaml").write_text(f"run: {folder}/run\nscore:\n" + "\n".join(lines) + "\n")
    return folder / "r.yaml"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", ENDS)
def test_a_scorer_that_ends_the_program_is_named_and_stops_alone(tmp_path, run, cli, place, end):
    text = PLACES[place].replace("            BODY\n", "            pass\n").replace("{end}", ENDS[end])
    (tmp_path / "bad.py").write_text(text)
    code, _, err = cli("score", "-r", recipe(tmp_path, bad=f"{tmp_path}/bad.py:S", size="jpeg"), "-q")
    assert code == 1 and "tried to end the program" in err and "bad.py" in err and "Traceback" not in err
    assert run.scores("size").frame().value.notna().sum() == 4
    assert not run.scores("bad").frame().value.notna().any()


def test_what_it_scored_before_is_kept(tmp_path, run, cli):
    (tmp_path / "bad.py").write_text(
        "n = []\ndef f(images, prompts):\n    n.append(1)\n    if len(n) == 3: raise SystemExit(0)\n    return [1.0]\n"
    )
    code, _, _ = cli("score", "-r", recipe(tmp_path, bad=f"{tmp_path}/bad.py:f", size="jpeg"), "-q")
    assert code == 1 and len(run.scores("bad").frame()) == 2 and len(run.scores("size").frame()) == 4


@pytest.mark.parametrize("how", ["KeyboardInterrupt", "SIGTERM", "SIGINT", "swallowed"])
def test_an_interrupt_keeps_what_is_done(tmp_path, run, cli, how):
    """130 for Ctrl-C and SIGTERM alike, also where the scorer's own `except:` takes it."""
    act = "raise KeyboardInterrupt" if how == "KeyboardInterrupt" else "os.kill(os.getpid(), signal.SIGTERM)"
    act = act.replace("SIGTERM", "SIGINT") if how == "SIGINT" else act
    if how == "swallowed":
        act = "\n        try:\n            os.kill(os.getpid(), signal.SIGTERM); [None for _ in range(99)]\n        except: pass"
    (tmp_path / "slow.py").write_text(
        f"import os, signal\nn = []\ndef f(images, prompts):\n    n.append(1)\n    if len(n) == 3: {act}\n    return [1.0]\n"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        code, _, err = cli("score", "-r", recipe(tmp_path, slow=f"{tmp_path}/slow.py:f"), "-q")
        assert code == 130 and "Interrupted" in err
        assert len(run.scores("slow").frame()) == (3 if how == "swallowed" else 2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


PRINTS = """
import sys
def loud(images, prompts):
    print("x" * 100_000)
    sys.stdout.write("and more")
    return [1.0 for _ in images]
def unspeakable(images, prompts):
    raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})()
def halves(images, prompts):
    raise ValueError("half \\ud800")
"""


def test_what_a_scorer_prints_is_no_part_of_the_result(tmp_path, cli):
    (tmp_path / "s.py").write_text(PRINTS)
    run = made_by_function(tmp_path, cli)
    code, out, err = cli("score", run, "--use", f"{tmp_path}/s.py:loud", "--json")
    assert code == 0 and json.loads(out)["loud"]["scored"] == 4 and "xxx" in err


@pytest.mark.parametrize(("name", "said"), [("unspeakable", "Odd: (its message"), ("halves", "ValueError: half ?")])
def test_errors_that_cannot_be_written_are_reasons_like_others(tmp_path, cli, name, said):
    (tmp_path / "s.py").write_text(PRINTS)
    run = made_by_function(tmp_path, cli)
    code, _, err = cli("score", run, "--use", f"{tmp_path}/s.py:{name}")
    assert code == 1 and f"every candidate failed, the first with: {said}" in err


def test_a_score_with_an_error_has_no_value():
    score = checked(Score(1.0, {"a": 2.0}, "seen", "not sure"))
    assert (score.value, score.aspects, score.text, score.error) == (None, {"a": 2.0}, "seen", "not sure")


def made_by_function(tmp_path, cli):
    (tmp_path / "g.py").write_text(
        "from PIL import Image\ndef draw(p, seeds): return [Image.new('RGB', (8, 8), (s % 256, 0, 0)) for s in seeds]\n"
    )
    (tmp_path / "p.txt").write_text("a\nb\n")
    flags = ["--requests.source", tmp_path / "p.txt", "--requests.test_share", 0, "--n", 2]
    assert cli("generate", tmp_path / "run", "--generate.own.use", f"{tmp_path}/g.py:draw", *flags)[0] == 0
    return tmp_path / "run"


def test_a_class_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "s.py").write_text(CLASS.replace("(self, options): pass", "(self, options): self.net = options['net']"))
    with pytest.raises(PluginError, match="could not be created: TypeError.*s.py"):
        make_scorer(f"{tmp_path}/s.py:S", {})
