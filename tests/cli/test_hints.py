"""Every command that a hint proposes works as printed; only sizes and the model are replaced."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from prefkit.cli.next_step import EXAMPLE
from prefkit.human.votes import checksum

HINT = re.compile(r"^Hint: (?:next(?: \([^()]*\))?: (prefkit .*)|.*`(prefkit [^`]*)`.*)$", re.M)
#: verb -> flags that make it fast
SIZES = {"train": ["--steps", "2"], "eval": ["--seeds", "1", "--bootstrap", "200"]}
#: text of a hint -> text that makes it fast
FAST = {"--generate.own.steps 30": "--generate.own.steps 1"}
IMAGES = ["--steps", "2", "--height", "64", "--width", "64"]


@pytest.fixture
def follow(cli, sd, tmp_path, monkeypatch):
    """follow(verb, ...) runs a command, then each command that it hints at, and so on; returns the verbs in order."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(f"a {colour} hat" for colour in ("red", "blue", "green", "white")))

    def run(*words: str) -> list[str]:
        waiting, verbs, seen = [list(words)], [], set()
        while waiting:
            command = waiting.pop(0)
            sized = [*command, *(SIZES.get(command[0], []) if verbs else [])]
            code, out, err = cli(*sized)
            assert code == 0, f"after {verbs}: prefkit {shlex.join(sized)}\n{out}\n{err}"
            verbs.append(command[0])
            for found in HINT.findall(err):
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


def vote_file(run: Path, out: Path) -> None:
    """Write the answers of an annotator who always prefers the left image to `out`."""
    page = next(run.glob("votes/*.json"))
    votes = [
        {"pair": pair["pair"], "order": "ba" if "again" in pair else "ab", "choice": "left", "time": 1_700_000_000_123}
        for pair in json.loads(page.read_text())["pairs"]
    ]
    who = "person-0123456789ab"
    body = {"prefkit_votes": 1, "page": page.stem, "annotator": who, "votes": votes}
    out.write_text(json.dumps(body | {"check": checksum(page.stem, who, votes)}))


def test_flags_alone_lead_from_prompts_to_a_report(follow, cli, sd):
    assert follow(*generate(sd)) == ["generate", "score", "pair", "train", "eval", "report"]
    assert Path("R/eval/held_out/result.json").exists()
    for words in (["export", "R", "out", "--as", "folders"], ["clean", "R"], ["push", "R", "--to", "a/b", "--dry-run"]):
        follow(*words)
    assert follow("compare", "R", "--use", "mllm", "--model", "tiny", "--most", "1")[:3] == ["compare", "pair", "train"]
    Path("d.csv").write_text(f"id,verdict,reason,by\n{candidate('R')},keep,,me\n")
    assert follow("report", "R", "--decisions", "d.csv")[:2] == ["report", "pair"]

    assert follow("report", "R", "--vote", "--n", "2") == ["report"]
    vote_file(Path("R"), Path("answers.json"))
    assert follow("import", "answers.json", "R")[:3] == ["import", "report", "pair"]


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


def test_votes_on_an_evaluation_lead_to_the_report_only(follow, sd):
    follow(*generate(sd))
    follow("report", "R", "--vote", "--models", "base,default", "--n", "2")
    vote_file(Path("R"), Path("answers.json"))
    assert follow("import", "answers.json", "R") == ["import", "report"]
    assert "People chose" in Path("R/report.html").read_text()
