"""Text is UTF-8 whatever the locale says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: open() of other things than files: images, archives, repositories, progress
OTHERS = {"self.zip", "os", "Image", "tarfile", "archive", "remote", "Progress", "cls", "self.data", "webbrowser"}


def unencoded(text: str) -> list[int]:
    """Lines that open a text file, or read or write one, without an encoding."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or any(k.arg in ("encoding", None) for k in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if method else ""
        if name in ("read_text", "write_text") and method:
            found.append(node.lineno)
        elif name == "open" and owner not in OTHERS:
            places = node.args[0:1] if method and owner not in ("io", "gzip") else node.args[1:2]
            modes = [*places, *(k.value for k in node.keywords if k.arg == "mode")]
            if not any("b" in ast.literal_eval(mode) for mode in modes if isinstance(mode, ast.Constant)):
                found.append(node.lineno)
        elif any(k.arg in ("text", "universal_newlines") for k in node.keywords) and owner == "subprocess":
            found.append(node.lineno)
    return found


def test_every_text_file_is_opened_with_an_encoding():
    paths = [path for room in ("prefkit", "pipelines", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    assert len(paths) > 200
    wrong = {str(path): lines for path in paths if (lines := unencoded(path.read_text(encoding="utf-8")))}
    assert not wrong


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, mode='a')", True),
        ("p.open()", True),
        ("p.read_text()", True),
        ("p.write_text(x)", True),
        ("subprocess.run(x, text=True)", True),
        ("open(p, 'rb')", False),
        ("p.open('wb')", False),
        ("p.open('w', encoding='utf-8')", False),
        ("Image.open(p)", False),
    ],
)
def test_the_check_sees_every_way_to_open_a_file(line, wrong):
    assert bool(unencoded(line)) == wrong


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
DRAW = """
import random
from PIL import Image
def draw(prompts, seeds):
    return [Image.frombytes("L", (32, 32), random.Random(s).randbytes(32 * (s % 30)).ljust(1024, b"a")) for s in seeds]
"""
VERBS = """
import sys
from prefkit.cli import main as cli
from prefkit import output
output.never_refuse()
for line in sys.argv[2:]:
    print("CODE", cli.run([*line.split(), "-r", sys.argv[1]]), flush=True)
"""


def test_verbs_under_an_ascii_locale(tmp_path):
    (tmp_path / "p.txt").write_text("größer\n漢字\n", encoding="utf-8")
    (tmp_path / "draw.py").write_text(DRAW, encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "run: x\nrequests: {source: p.txt, test_share: 0}\ngenerate: {own: {use: 'draw.py:draw', n: 3}}\n"
        "score: {size: {use: jpeg}}\npair: {main: {use: topk_bottomk, k: 1, weights: {size: 1.0}}}\n",
        encoding="utf-8",
    )
    lines = ["generate", "score", "pair", "report --vote", "report --json", "plugins"]
    environment = os.environ | ASCII
    done = subprocess.run(
        [sys.executable, "-c", VERBS, "r.yaml", *lines], cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    assert b"Unicode" not in done.stderr, done.stderr.decode(errors="replace")
    codes = re.findall(r"^CODE (\d+)$", done.stdout.decode(), re.MULTILINE)
    assert codes == ["0"] * 5 + ["2"], (done.stdout, done.stderr)


def test_a_name_in_a_recipe_under_an_ascii_locale(tmp_path):
    (tmp_path / "wünsche.txt").write_text("größer\n漢字\n", encoding="utf-8")
    text = "run: rün/x\nrequests: {source: wünsche.txt}\ngenerate: {own: {use: 'draw.py:draw'}}\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "draw.py").write_text(DRAW, encoding="utf-8")
    command = [sys.executable, "-m", "prefkit", "generate", "-r", "r.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ASCII, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "rün" / "x" / "candidates" / "own").glob("part-*"))
