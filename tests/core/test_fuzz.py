"""2,000 wrong commands, drawn over all keys and flags: each ends with a sentence, soon, with a code that the help lists;
and what a dry run passes, the run does not refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import drawing
from tests.core.fuzz import draws

HERE = Path(__file__).parent / "fuzz"
CODES = {0, 1, 2, 3, 130}
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONGEST = 1000
DRAWS = 2000
FEW = range(0, DRAWS, 20)
TASTE = "def muted(images, prompts):\n    return [float(sum(i.resize((1, 1)).getpixel((0, 0)))) for i in images]\n"


class Bench:
    """A small finished run, and a server that plays commands on copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        (self.home / "p.txt").write_text(
            "\n".join(f"a {c} {i}" for c in ("red", "blue") for i in ("hat", "boot", "coat"))
        )
        shutil.copy(drawing.__file__, self.home / "draw.py")
        (self.home / "taste.py").write_text(TASTE)
        (self.home / "r.yaml").write_text(draws.RECIPE)
        for name in ("folder/inner", "empty"):
            (self.home / name).mkdir(parents=True)
        os.mkfifo(self.home / "fifo")
        given = os.environ | {"PREFKIT_DEBUG": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "server.py"), str(folder)]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given)
        assert self.server.stdout and self.server.stdout.readline() == "{}\n"
        for verb, *more in (["generate", "--name", "own"], ["score"], ["pair"], ["train"]):
            found = self.play([verb, "-r", "r.yaml", *more], self.home)
            assert found["code"] == 0, found["err"]

    def play(self, argv: list[str], where: Path) -> dict:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps({"argv": argv, "cwd": str(where)}) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(60)

    def faults(self, number: int) -> list[str]:
        """What is wrong with draw `number`, as sentences."""
        drawn = draws.draw(number)
        where = self.folder / "copy"
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(self.home, where, copy_function=copied, symlinks=True)
        (where / "r.yaml").write_bytes(drawn.recipe.encode("utf-8", "surrogateescape"))
        found: list[str] = []
        planned = None
        if drawn.dry is not None:
            before = names(where)
            planned = self.play(drawn.dry, where)
            found += [f"--dry-run: {text}" for text in wrong(planned)]
            if names(where) != before:
                found.append(f"--dry-run wrote {sorted(names(where) ^ before)[:4]}")
        done = self.play(drawn.argv, where)
        found += wrong(done)
        if planned is not None and 2 in (planned["code"], done["code"]) and planned["code"] != done["code"]:
            said = f"{last(planned)} / {last(done)}"
            found.append(f"--dry-run ends with {planned['code']}, the run with {done['code']}: {said}")
        return found


def copied(source: str, target: str) -> None:
    """A file or a FIFO."""
    os.mkfifo(target) if not os.path.isfile(source) else shutil.copy2(source, target)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def last(outcome: dict) -> str:
    return (outcome["err"].strip().splitlines() or [""])[-1][:300]


def wrong(outcome: dict) -> list[str]:
    found = []
    if outcome["code"] not in CODES:
        found.append(f"code {outcome['code']}: {last(outcome)}")
    for text in ("PREFKIT_DEBUG", "Traceback", "Exception ignored"):
        if text in outcome["err"] + outcome["out"]:
            found.append(f"{text}: {last(outcome)}")
    if RAW.search(outcome["err"]) or RAW.search(outcome["out"]):
        found.append(f"a control character is printed: {last(outcome)!r}")
    if outcome["code"] in (1, 2) and not re.search("(Error|Warning): .", outcome["err"] + outcome["out"]):
        found.append("no reason is given")
    if any(len(line) > LONGEST for line in outcome["err"].splitlines()):
        found.append(f"a message of more than {LONGEST} characters")
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def said(number: int, faults: list[str]) -> str:
    drawn = draws.draw(number)
    return f"draw {number}: {[text[:200] for text in drawn.argv]}: {'; '.join(faults)}"


@pytest.mark.parametrize("start", range(0, len(FEW), 25))
def test_a_hundred_wrong_commands(bench, start):
    found = {number: bench.faults(number) for number in FEW[start : start + 25]}
    assert not any(found.values()), "\n".join(said(n, faults) for n, faults in found.items() if faults)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, DRAWS, 100))
def test_two_thousand_wrong_commands(bench, start):
    found = {number: bench.faults(number) for number in range(start, start + 100)}
    assert not any(found.values()), "\n".join(said(n, faults) for n, faults in found.items() if faults)


def test_the_same_number_is_the_same_command():
    assert [draws.draw(n) for n in range(50)] == [draws.draw(n) for n in range(50)]
    assert len({str(draws.draw(n)) for n in range(500)}) > 450


def main() -> None:
    """python tests/core/test_fuzz.py FOLDER START STOP STEP: the draws one by one, faults as they are found."""
    folder, *bounds = sys.argv[1:]
    made, count = Bench(Path(folder)), 0
    for number in range(*map(int, bounds)):
        faults = made.faults(number)
        count += bool(faults)
        if faults:
            print(said(number, faults), flush=True)
        if not number % 100:
            print(f"draw {number}: {count} with faults so far", flush=True)
    print(f"{len(range(*map(int, bounds)))} draws, {count} with faults", flush=True)
    made.close()


if __name__ == "__main__":
    main()
