"""fit: train a scorer on your data and save it in a folder. A recipe names this folder as the scorer's `model`."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output, registry
from prefkit.config import reader
from prefkit.errors import UsageError

KIND = "fitter"
POSITIONAL = ("NAME", "what to fit: vbpr | outfit_compat | clip_preference | mllm | mesh | file.py:Class")
#: fitter -> the recipe entry that uses the fitted folder {0}
USE = {
    "vbpr": "use: vbpr, model: {0}",
    "outfit_compat": "use: outfit_compat, model: {0}",
    "clip_preference": "use: pickscore, model: {0}, processor: {0}",
    "mllm": "use: mllm, model: {0}",
    "mesh": "use: mesh, model: {0}",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "if the folder holds a fit with other settings or data, move it to the folder .old beside it and fit again"
    parser.add_argument("--redo", action="store_true", help=text)


def more_help(known: argparse.Namespace) -> list[str]:
    """Return help lines: the options of the chosen fitter, or the list of fitters if none is chosen."""
    from prefkit.cli.help import options_table

    if known.run_folder:
        kind = registry.load_class(KIND, known.run_folder)
        return [f"options of {known.run_folder}:", options_table(kind.Options), ""]
    fitters = [f"  {name:16}{text}" for name, text in registry.builtin(KIND).items()]
    return [*fitters, "", "prefkit fit NAME --help lists its options.", ""]


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.fit.run import run_fit

    name = known.run_folder
    if known.recipe or not name:
        known_names = ", ".join(registry.builtin(KIND))
        raise UsageError(f"fit: name a fitter ({known_names}) and give its options as flags; fit takes no recipe.")
    result = run_fit(name, reader.tree_of_flags(flags), known.redo)
    output.emit(result, known.json, _rows(result))
    if name in USE:
        use = USE[name].format(result["out"])
        if name == "clip_preference" and dict(flags).get("library") == "open_clip":
            use = f"use: clip, model: 'local-dir:{result['out']}'"
        output.hint(f"to use it in a recipe: score: {{mine: {{{use}}}}}")
    return 0


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one table row per measured number and control, in all and by group, then one per count."""
    rows: list[dict[str, Any]] = []
    parts = [("", result.get("validation", {}) | result.get("controls", {}))]
    for column, groups in result.get("by", {}).items():
        parts += [(f"{column} {group}: ", measured) for group, measured in groups.items()]
    for prefix, measured in parts:
        for name, value in measured.items():
            values = value if isinstance(value, dict) else {"mean": value}
            columns = {"value": "mean", "low": "low", "high": "high", "n": "n", "reason": "reason"}
            rows.append({"measured": prefix + name} | {c: values[key] for c, key in columns.items() if key in values})
    return rows + [{"measured": name, "value": value} for name, value in result.get("counts", {}).items()]
