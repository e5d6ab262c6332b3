"""The order of import, what importing loads, and the size of files and functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2] / "prefkit"
LEVELS = [
    {"errors", "types", "images", "icc", "paths", "guest", "interrupts"},
    {"registry", "recipe", "config", "store", "output", "distributed", "heartbeat", "helptext", "tables", "tiny"},
    {"models"},
    {"generate", "score", "pair", "hub"},
    {"train", "fit", "evaluate", "report"},
    {"resolve", "shipped", "plan", "api", "cli", "verbs", "testing", "__main__", "__init__"},
]
# evaluate drives generate and score, which stand to its left; nobody imports a sibling of the stages
SIBLINGS = {"generate", "score", "pair", "hub", "train", "fit", "evaluate", "report"}


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "prefkit":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_import_order():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports(path) - {room, "Run", "__version__"}:
            assert level(other) <= level(room), f"{path} imports prefkit.{other}, which stands to its right"
            both = {room, other} <= SIBLINGS and level(room) == level(other)
            assert not both, f"{path} imports its sibling prefkit.{other}"


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom prefkit.cli.main import run\nrun(['--help'])\nprint(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "pandas", "datasets", "diffusers", "transformers", "pyarrow", "open_clip", "numpy"):
        assert f"'{heavy}'" not in out


def test_plugins_lists_without_importing_any():
    code = "import sys\nfrom prefkit.cli.main import run\nrun(['plugins'])\nprint([m for m in sys.modules if m.startswith('prefkit.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "jpeg" in out and "prefkit.score" not in out


def test_files_and_functions_stay_small():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 80, f"{path}:{node.lineno} {node.name}"
