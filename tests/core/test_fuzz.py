"""2,000 wrong commands, drawn over all keys and flags: each ends with a sentence, soon, with a code that the help lists;
and what a dry run passes, the run does not refuse."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import drawing, forks
from tests.core.fuzz import draws

CODES = {0, 1, 2, 3, 130}
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONGEST = 1000
WALL_SECONDS = 300
#: a hang and a bomb are outcomes and not the end of the test
LIMITED = """
import resource, sys
from pathlib import Path
from prefkit.cli.main import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
memory = pages * resource.getpagesize() + (4 << 30)
for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, 60), (resource.RLIMIT_FSIZE, 1 << 30)):
    resource.setrlimit(kind, (most, most))
main(sys.argv[1:])
"""
DRAWS = 2000
FEW = range(0, DRAWS, 40)
TASTE = "def muted(images, prompts):\n    return [float(sum(i.resize((1, 1)).getpixel((0, 0)))) for i in images]\n"


class Bench:
    """A small finished run, and commands on copies of it."""

    def __init__(self, folder: Path, forks: Any) -> None:
        self.folder, self.home, self.forks = folder, folder / "home", forks
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
        for verb, *more in (["generate", "--name", "own"], ["score"], ["pair"], ["train"]):
            found = self.play([verb, "-r", "r.yaml", *more], self.home)
            assert found["code"] == 0, found["err"]

    def play(self, argv: list[str], where: Path) -> dict:
        child = self.forks.start(*argv, cwd=where, code=LIMITED, env=os.environ | {"PREFKIT_DEBUG": "0"})
        out, err = child.communicate(WALL_SECONDS)
        return {"code": child.returncode, "out": out, "err": err}

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
def bench(tmp_path_factory, forks):
    return Bench(tmp_path_factory.mktemp("fuzz"), forks)


def said(number: int, faults: list[str]) -> str:
    drawn = draws.draw(number)
    return f"draw {number}: {[text[:200] for text in drawn.argv]}: {'; '.join(faults)}"


def test_wrong_commands(bench):
    found = {number: bench.faults(number) for number in FEW}
    assert not any(found.values()), "\n".join(said(n, faults) for n, faults in found.items() if faults)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, DRAWS, 100))
def test_two_thousand_wrong_commands(bench, start):
    found = {number: bench.faults(number) for number in range(start, start + 100)}
    assert not any(found.values()), "\n".join(said(n, faults) for n, faults in found.items() if faults)


def test_the_same_number_is_the_same_command():
    found = [str(draws.draw(n)) for n in FEW]
    assert found == [str(draws.draw(n)) for n in FEW] and len(set(found)) == len(FEW)


def main() -> None:
    """python tests/core/test_fuzz.py FOLDER START STOP STEP: the draws one by one, faults as they are found."""
    folder, *bounds = sys.argv[1:]
    template = forks.Forks()
    made, count = Bench(Path(folder), template), 0
    for number in range(*map(int, bounds)):
        faults = made.faults(number)
        count += bool(faults)
        if faults:
            print(said(number, faults), flush=True)
        if not number % 100:
            print(f"draw {number}: {count} with faults so far", flush=True)
    print(f"{len(range(*map(int, bounds)))} draws, {count} with faults", flush=True)
    template.close()


if __name__ == "__main__":
    main()
