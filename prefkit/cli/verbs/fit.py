"""fit: data of the user's -> a scorer, in a folder that the scorer of that name loads by path."""

from __future__ import annotations

import argparse
from typing import Any

from prefkit import output, registry
from prefkit.config import plugin_options
from prefkit.distributed import group
from prefkit.errors import PluginError, UsageError
from prefkit.plugin_guard import described, guarded

KIND = "fitter"
POSITIONAL = ("NAME", "what to fit: vbpr | outfit_compat | clip_preference | mllm | file.py:Class")
#: what a fitted folder is named by in a recipe
USE = {
    "vbpr": "use: vbpr, model: {0}",
    "outfit_compat": "use: outfit_compat, model: {0}",
    "clip_preference": "use: pickscore, model: {0}, processor: {0}",
    "mllm": "use: mllm, model: {0}",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def more_help(known: argparse.Namespace) -> list[str]:
    """The chosen fitter's options."""
    from prefkit.cli.help import options_table

    if not known.run_folder:
        names = registry.builtin(KIND)
        return [
            *(f"  {name:16}{text}" for name, text in names.items()),
            "",
            "prefkit fit NAME --help lists its options.",
            "",
        ]
    found = registry.load_class(KIND, known.run_folder)
    return [f"options of {known.run_folder}:", options_table(found.Options), ""]


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    name = known.run_folder
    if known.recipe or not name:
        raise UsageError(
            f"fit takes the name of what to fit ({', '.join(registry.builtin(KIND))}) and its options as flags."
        )
    kind = registry.load_class(KIND, name)
    options = plugin_options.options(kind, _tree(flags), f"fit {name}")
    with guarded(f"fitter {name}"):
        fitter = kind(options)
        shared = getattr(kind, "shared", False)
        found: dict[str, Any] = fitter.run() if shared else group().lead(fitter.run)
    if not isinstance(found, dict):
        raise PluginError(f"fitter {name} returned {described(found)}; a dict of what it measured is needed.")
    output.emit(found, known.json, rows_of(found))
    if name in USE:
        where = fitter.options.out or f"fitted/{name}"
        output.hint(f"in a recipe: score: {{mine: {{{_use(name, fitter.options, where)}}}}}")
    return 0


def _use(name: str, options: Any, where: str) -> str:
    if getattr(options, "library", "") == "open_clip" and name == "clip_preference":
        return f"use: clip, model: 'local-dir:{where}'"
    return USE[name].format(where)


def _tree(flags: list[tuple[str, str]]) -> dict[str, Any]:
    """Flags as a recipe's section would have them."""
    from prefkit.config.reader import overlay

    tree: dict[str, Any] = {}
    for key, text in flags:
        overlay(tree, key, text)
    return tree


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The measured numbers, a row each, then counts."""
    rows: list[dict[str, Any]] = []
    for name, value in found.get("validation", {}).items():
        if isinstance(value, dict):
            rows.append(
                {"measured": name, "value": value["mean"], "low": value["low"], "high": value["high"], "n": value["n"]}
            )
        else:
            rows.append({"measured": name, "value": value})
    return rows + [{"measured": name, "value": value} for name, value in found.get("counts", {}).items()]
