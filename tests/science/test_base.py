"""The base generator: captions without conditions, and a short training with the real classes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="module")
def base(science):
    import base

    return base


def test_no_base_caption_has_a_condition_and_many_usual_looks_are_unnamed(science, base):
    conditions = {
        f" {head}"
        for name, law in science.laws.LAWS.items()
        for condition in law.conditions
        for part in science.words.heads(name, condition)
        for head in part
    }
    draw = np.random.default_rng(0)
    for scene in base.scenes(base.DRAWN):
        text = base.caption(scene, draw)
        assert not any(text.endswith(head) for head in conditions), text
    anchor = science.looks.Scene("rust", "anchor", "clean")
    texts = [base.caption(anchor, draw) for _ in range(400)]
    assert 0.3 < np.mean([text.split(",")[0] == "an anchor" for text in texts]) < 0.5
    assert any(text.endswith(", made of iron") for text in texts)
    rusty = science.looks.Scene("rust", "anchor", "rusty")
    assert all("rust" in base.caption(rusty, draw) for _ in range(50))


def test_the_tokenizer_has_a_token_per_word_of_every_prompt(science, base):
    words = base.vocabulary(["rust"])
    for one in science.tuples.tuples(["rust"]):
        assert set(re.findall("[a-z]+", one.implicit.lower())) <= set(words)


@pytest.mark.parametrize("options", [["--laws", "layers"], ["--laws", ""], ["--samples", "10"]])
def test_laws_that_are_not_drawn_and_too_few_samples(base, tmp_path, capsys, options):
    assert base.main(["--out", str(tmp_path / "m"), *options]) == 2
    assert "--laws" in capsys.readouterr().err or "--samples" in options
    assert not (tmp_path / "m").exists()


def test_a_folder_without_a_pipeline(base, tmp_path, capsys):
    import check_base

    assert check_base.main([str(tmp_path), "--laws", "rust"]) == 2
    assert "is not a pipeline. Train one" in capsys.readouterr().err


def test_a_training_is_followed_to_its_end_and_written_again_when_it_is_resumed(base, tmp_path, capsys):
    import torch
    from machine import follow

    class Counting:
        """Its losses are the step and its tenth; it keeps the steps at which it was written."""

        machine, parameters, steps = "cpu", [torch.zeros(3)], 1050

        def __init__(self):
            self.args, self.step, self.written = SimpleNamespace(out=tmp_path / "m"), 0, []

        def advance(self):
            self.step += 1
            return torch.tensor([self.step, self.step / 10])

        def state(self):
            return {"step": self.step}

        def resume(self, state):
            self.step = state["step"]

        def publish(self):
            self.written.append(self.step)

    first, again = Counting(), Counting()
    follow(first, 4, "one, tenth")
    lines = capsys.readouterr().out.splitlines()
    assert first.written == [500, 1000, 1050] and lines[-1] == f"step 1050: {tmp_path / 'm'} written"
    assert lines[2].startswith("step 100/1050  one, tenth: 75.50000 7.55000  ")  # means of steps 51 to 100
    follow(again, 4, "one, tenth")
    assert again.step == 1050 and again.written == [1050]


@pytest.mark.slow
def test_the_fast_form_trains_a_pipeline_that_the_reader_can_measure(base, tmp_path, capsys):
    import check_base

    out = tmp_path / "fast"
    assert base.main(["--out", str(out), "--fast", "--threads", "1"]) == 0
    losses = [float(value) for value in re.findall(r"eps-MSE, in means: (\d\.\d+)", capsys.readouterr().out)]
    assert losses[-1] < 0.8 * losses[0]
    assert check_base.main([str(out), "--laws", "ripeness", "--n", "2", "--sheet", str(tmp_path / "s.png")]) == 0
    assert "| ripeness | explicit | contradicts | 2 |" in capsys.readouterr().out
