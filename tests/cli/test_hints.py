"""Every command that a hint proposes works as printed; only sizes and the model are replaced."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import answers
import pytest

from prefkit.cli.next_step import EXAMPLE

HINT = re.compile(r"^Hint: (?:next(?: \([^()]*\))?: (prefkit .*)|.*`(prefkit [^`]*)`.*)$", re.M)
#: verb -> flags that make it fast
SIZES = {"train": ["--steps", "2"], "eval": ["--seeds", "1", "--bootstrap", "200"]}
#: text of a hint -> text that makes it fast
FAST = {"--generate.own.steps 30": "--generate.own.steps 1 --generate.own.height 64 --generate.own.width 64"}
IMAGES = ["--steps", "2", "--height", "64", "--width", "64"]


@pytest.fixture
def follow(cli, sd, tmp_path, monkeypatch):
    """follow(verb, ...) runs a command, then each command that it hints at and, if deep, so on; returns the verbs."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(f"a {colour} hat" for colour in ("red", "blue", "green", "white")))

    def run(*words: str, deep: bool = True) -> list[str]:
        waiting, verbs, seen = [list(words)], [], set()
        while waiting:
            command = waiting.pop(0)
            sized = [*command, *(SIZES.get(command[0], []) if verbs else [])]
            code, out, err = cli(*sized)
            assert code == 0, f"after {verbs}: prefkit {shlex.join(sized)}\n{out}\n{err}"
            verbs.append(command[0])
            for found in HINT.findall(err) if deep or len(verbs) == 1 else ():
                text = "".join(found).replace(EXAMPLE, str(sd))
                for shown, fast in FAST.items():
                    text = text.replace(shown, fast)
                if text not in seen and "FILE" not in text:
                    seen.add(text)
                    waiting.append(shlex.split(text)[1:])
        return verbs

    return run


def generate(sd) -> list[str]:
    requests = ["--requests.source", "prompts.txt", "--requests.test_share", "0.25"]
    return ["generate", "R", "--model.base", str(sd), *requests, "--n", "3", *IMAGES]


def images(*folders: str) -> None:
    """Write two images with captions to each folder."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder in map(Path, folders):
        folder.mkdir(parents=True)
        for name in ("boot", "hat"):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"a {name}")


def test_flags_alone_lead_from_prompts_to_a_report(follow, cli, sd):
    assert follow(*generate(sd)) == ["generate", "score", "pair", "train", "eval", "report"]
    assert Path("R/eval/held_out/result.json").exists()
    follow("report", "R", "--vote", "--models", "base,dpo", "--n", "2")
    answers.write(Path("R"), Path("on evaluation"))
    assert follow("import", "on evaluation", "R") == ["import", "report"]
    assert "People chose" in Path("R/report.html").read_text()

    for words in (["export", "R", "out", "--as", "folders"], ["clean", "R"], ["push", "R", "--to", "a/b", "--dry-run"]):
        follow(*words)
    judged = follow("compare", "R", "--use", "mllm", "--model", "tiny", "--most", "1", deep=False)
    assert judged == ["compare", "pair"]
    Path("d.csv").write_text(f"id,verdict,reason,by\n{candidate('R')},keep,,me\n")
    assert follow("report", "R", "--decisions", "d.csv", deep=False) == ["report", "pair"]

    assert follow("report", "R", "--vote", "--n", "2") == ["report"]
    answers.write(Path("R"), Path("answers"))
    assert follow("import", "answers", "R", deep=False) == ["import", "report", "pair"]


def candidate(run: str) -> str:
    from prefkit.store import Store
    from prefkit.store.summary import candidate_index

    return str(candidate_index(Store(run)).id[0])


def test_imported_pairs_can_be_trained_on_and_evaluated(follow):
    images("src/w", "src/l")
    assert follow("import", "src", "R", "--pairs", "--test-share", "0.5") == ["import", "train", "eval", "report"]
    assert follow("import", "src", "Q", "--test-share", "0.5") == ["import", "pair", "train", "eval", "report"]


def test_imported_images_are_scored(follow):
    images("src")
    assert follow("import", "src", "R", "--test-share", "0") == ["import", "score", "report"]


def test_a_recipe_leads_to_a_contact_sheet(follow, drawn):
    text = drawn.read_text()
    drawn.write_text(text[: text.index("train:")])
    assert follow("run", "-r", str(drawn)) == ["run", "report"]
    assert (drawn.parent / "run" / "contact.html").exists()


def test_an_online_training_leads_to_its_evaluation(follow, sd):
    scorers = ["--score.size.use", "jpeg", "--online.rewards", "{size: 1}", "--online.statistics", "grouped"]
    small = ["--online.rounds", "1", "--online.requests", "2", "--online.samples", "2", "--warmup", "0"]
    sampler = [word.replace("--", "--generate.own.") for word in IMAGES]
    requests = ["--requests.source", "prompts.txt", "--requests.test_share", "0.25"]
    start = ["train", "R", "--model.base", str(sd), "--objective.use", "ddpo"]
    assert follow(*start, *requests, *sampler, *scorers, *small) == ["train", "eval", "report"]
