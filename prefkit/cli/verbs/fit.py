"""fit: train a scorer on your data and save it in a folder. A recipe names this folder as the scorer's `model`."""

from __future__ import annotations

import argparse

from prefkit import output, registry
from prefkit.config import reader
from prefkit.errors import UsageError
from prefkit.output import shell_quoted

KIND = "fitter"
POSITIONAL = ("NAME", "what to fit: vbpr | outfit_compat | clip_preference | mllm | mesh | file.py:Class")


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
    import yaml

    from prefkit.fit.run import run_fit
    from prefkit.hub.cards.measures import measured_rows
    from prefkit.hub.cards.scorer_card import SCORERS, entry

    name = known.run_folder
    if known.recipe or not name:
        known_names = ", ".join(registry.builtin(KIND))
        raise UsageError(f"fit: name a fitter ({known_names}) and give its options as flags; fit takes no recipe.")
    result = run_fit(name, reader.tree_of_flags(flags), known.redo)
    output.emit(result, known.json, measured_rows(result))
    if name in SCORERS:
        folder = shell_quoted(result["out"])
        use = yaml.safe_dump(
            {"mine": entry(result, result["out"])}, default_flow_style=True, sort_keys=False, width=1000
        )
        output.hint(f"to use it in a recipe: score: {use.strip()}\nto push it: prefkit push {folder} --to you/NAME")
    return 0
