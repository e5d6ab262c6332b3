"""The order of imports, the packages that importing loads, and the size of files, functions and folders."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from prefkit.registry import PLUGIN_PACKAGES

ROOT = Path(__file__).parents[2] / "prefkit"
#: a room imports from lower levels alone; rooms of one set may import each other, files never in a circle
LEVELS = [
    {
        "errors",
        "paths",
        "interrupts",
        "icc",
        "images",
        "types",
        "heartbeat",
        "output",
        "passed",
        "plugin_guard",
        "verified",
    },
    {"registry"},
    {"store", "tables"},
    {"tiny"},
    {"config"},
    {"distributed"},
    {"engines"},
    {"models", "mesh"},
    {"hub"},
    {"pair"},
    {"human", "report"},
    {"generate"},
    {"score"},
    {"fit"},
    {"train"},
    {"evaluate"},
    {"api", "testing", "__init__"},
    {"cli", "__main__"},
]


def level(module: str) -> int:
    room = module.split(".")[1] if "." in module else "__init__"
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def imports() -> dict[str, set[str]]:
    """Module -> the modules of prefkit that it imports, inside functions too; what only type checkers import is left out."""
    paths = {
        ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in ROOT.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        tree = ast.parse(path.read_text())
        checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        skipped = {id(n) for block in checked for n in ast.walk(block)}
        found[module] = {
            full if (full := f"{node.module}.{alias.name}") in paths else str(node.module)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and str(node.module).split(".")[0] == "prefkit"
            and id(node) not in skipped
            for alias in node.names
        } - {module}
    return found


def test_import_order():
    for module, others in imports().items():
        for other in others - {"prefkit"}:
            assert level(other) <= level(module), f"{module} imports {other}, which stands above it"


def test_no_circle_of_imports():
    left = imports()
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other, or depend on modules that do: {sorted(left)}"


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
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_folders_stay_small():
    """At most 16 modules in a folder, and 12 in train; folders of plug-ins may have any number."""
    plugins = {ROOT.parent.joinpath(*package.split(".")) for package in PLUGIN_PACKAGES.values()}
    for folder in {path.parent for path in ROOT.rglob("*.py")} - plugins:
        modules = sorted(path.name for path in folder.glob("*.py"))
        assert len(modules) <= (12 if folder == ROOT / "train" else 16), f"{folder}: {len(modules)} modules"
