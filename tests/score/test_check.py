"""prefkit score --check: scorers that break one rule each, and those that keep all."""

from __future__ import annotations

import json

import pytest

from prefkit.score.core import make_scorer
from prefkit.testing import check_scorer
from prefkit.types import Score, ScorerSpec


class Scorer:
    requires, scope = frozenset({"image", "prompt"}), "absolute"
    low_high = (None, None)

    def spec(self):
        return ScorerSpec("mine", "1", range=self.low_high)

    def load(self, device, dtype):
        pass

    def score(self, batch):
        return [Score(self.one(c)) for c in batch]

    def one(self, c):
        import numpy as np

        return float(np.asarray(c.pil()).mean())


class Order(Scorer):
    def score(self, batch):
        return [Score(self.one(c) + i) for i, c in enumerate(batch)]


class Batch(Scorer):
    def score(self, batch):
        most = max(self.one(c) for c in batch)
        return [Score(self.one(c) / most) for c in batch]


class Short(Scorer):
    def score(self, batch):
        return super().score(batch)[:1]


class NotANumber(Scorer):
    def one(self, c):
        return float("nan")


class Zero(Scorer):
    def one(self, c):
        try:
            return super().one(c)
        except OSError:
            return 0.0


class OwnReader(Scorer):
    """Reads the stored file itself, and so sees alpha and palettes."""

    def one(self, c):
        import io

        import numpy as np
        from PIL import Image

        return float(np.asarray(Image.open(io.BytesIO(c.image))).mean())


class Dice(Scorer):
    def __init__(self):
        self.thrown = 0

    def one(self, c):
        self.thrown += 1
        return super().one(c) + self.thrown


class Outside(Scorer):
    low_high = (0.0, 1.0)


def failed(scorer, **how):
    return {check.name for check in check_scorer(scorer, **how) if check.ok is False}


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Scorer, set()),
        (Order, {"order invariance", "batch invariance"}),
        (Batch, {"batch invariance"}),
        (Zero, {"null on failure"}),
        (OwnReader, {"image modes"}),
        (Outside, {"spec"}),
    ],
)
def test_each_broken_rule_is_found_and_no_other(kind, broken):
    assert failed(kind()) == broken


@pytest.mark.parametrize(("kind", "broken"), [(Short, "length"), (NotANumber, "length"), (Dice, "determinism")])
def test_a_rule_that_breaks_others_with_it(kind, broken):
    assert broken in failed(kind())


@pytest.mark.parametrize(
    ("name", "options", "extra"),
    [("jpeg", {}, {}), ("clip", {"model": "tiny"}, {}), ("attributes", {}, {})],
)
def test_the_scorers_that_need_nothing_keep_the_contract(name, options, extra):
    scorer = make_scorer(name, options)
    scorer.load("cpu", "float32")
    assert failed(scorer, extra=extra) == set()


def test_scorers_on_networks_keep_the_contract(clip, vlm, qwen_vl):
    folder = str(clip)
    for name, options in [
        ("clip", {"model": folder, "library": "transformers"}),
        ("pickscore", {"model": folder, "processor": folder}),
        ("mllm", {"model": str(vlm), "min_mass": 0.0}),
        ("vqascore", {"model": str(qwen_vl), "min_mass": 0.0}),
    ]:
        scorer = make_scorer(name, options)
        scorer.load("cpu", "float32")
        assert failed(scorer) == set(), name


def test_remote_scorers_keep_the_contract(served):
    scorer = make_scorer(served(make_scorer("jpeg", {})), {"chunk": 2})
    assert failed(scorer) == set()


def test_from_the_command_line(cli, tmp_path, recipe):
    (tmp_path / "mine.py").write_text(
        "def good(images, prompts, user):\n    return [float(i.resize((1, 1)).getpixel((0, 0))[0]) for i in images]\n"
        "def bad(images, prompts):\n    return [float(i) for i, _ in enumerate(images)]\n"
    )
    code, out, _ = cli("score", "--check", f"{tmp_path}/mine.py:bad", "--json")
    rows = {row["check"]: row["result"] for row in json.loads(out)}
    assert code == 1 and rows["order invariance"] == "FAILED" and rows["length"] == "ok"
    code, _, err = cli("score", "--check", f"{tmp_path}/mine.py:good")
    assert code == 2 and "needs user" in err and "--extra" in err
    code, out, _ = cli("score", "--check", f"{tmp_path}/mine.py:good", "--extra", '{"user": "u1"}')
    assert code == 0 and "equal to the bit" in out
    code, out, _ = cli("score", "--check", "jpeg", "--quality", "50")
    assert code == 0
    code, _, err = cli("score", "--check", "jpeg", "--qualty", "50")
    assert code == 2 and "Did you mean 'quality'" in err
    assert cli("generate", "-r", recipe, "-q", "--limit", 2)[0] == 0
    assert cli("score", tmp_path / "run", "--check", "jpeg")[0] == 0
