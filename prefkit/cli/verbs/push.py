"""push: upload pairs, a trained model or a fitted scorer to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.cli.main import open_run
from prefkit.config.reader import use_background
from prefkit.errors import UsageError
from prefkit.store import Store

POSITIONAL = ("FOLDER", "run folder, or the folder of a scorer that `prefkit fit` wrote")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="OWNER/NAME", help="Hub repository; created as private if missing")
    parser.add_argument("--pairs", metavar="NAME", help="push pairs/NAME as a dataset (default: the run's only pairs)")
    parser.add_argument("--train", metavar="NAME", help="push the result of training NAME as a model")
    parser.add_argument("--public", action="store_true", help="make the repository public")
    parser.add_argument("--dry-run", action="store_true", help="write the files locally and list them; send nothing")
    parser.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="IDS",
        help="remove the candidates with these comma-separated ids (may be repeated)",
    )
    parser.add_argument(
        "--squash",
        action="store_true",
        help="squash the history into one commit and delete tags of earlier pushes; this cannot be undone",
    )
    parser.add_argument("--license", metavar="ID", help="licence for the card, as a Hub licence id")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.hub.push import is_fit, push, push_fit

    if not known.to:
        raise UsageError("push: --to is missing. Give the repository as owner/name, for example --to you/wardrobe.")
    sending: dict[str, Any] = {"public": known.public, "dry_run": known.dry_run, "squash": known.squash}
    sending |= {"licence": known.license}
    if known.run_folder and is_fit(folder := Path(known.run_folder)):
        _check_fit(known, flags)
        return _show(push_fit(folder, known.to, **sending), known)
    # without a recipe or flags, an existing run is pushed without loading the plug-ins of its recipe
    store = Store(known.run_folder) if known.run_folder and not (known.recipe or flags) else None
    if store is None or not store.exists():
        store = open_run("push", known, flags).store
    use_background(store.folder)
    result: dict[str, Any] = push(
        store,
        known.to,
        pairs=known.pairs,
        train=known.train,
        remove=[name.strip() for text in known.remove for name in text.split(",") if name.strip()],
        **sending,
    )
    return _show(result, known)


def _check_fit(known: argparse.Namespace, flags: list[tuple[str, str]]) -> None:
    """Raise UsageError for flags that do not apply to a fitted scorer."""
    given = {"--pairs": known.pairs, "--train": known.train, "--remove": known.remove, "-r": known.recipe}
    wrong = [flag for flag, value in given.items() if value] + [f"--{name}" for name, _ in flags]
    if wrong:
        raise UsageError(
            f"push: {known.run_folder} is a fitted scorer, to which {wrong[0]} does not apply. Leave it out."
        )


def _show(result: dict[str, Any], known: argparse.Namespace) -> int:
    """Print the pushed files, or those that would be pushed. Returns the exit code."""
    rows = [{"file": path, "bytes": size} for path, size in result["files"].items()]
    rows.append({"file": result["repository"], "bytes": result["bytes"]})
    output.emit(result, known.json, rows)
    if known.dry_run:
        output.hint(f"nothing was sent. Read {result['folder']}/README.md, then push without --dry-run.")
    else:
        state = "pushed" if result["changed"] else "unchanged, no commit made"
        output.note(f"{result['url']}: {state}; tag {result['tag']}; {'private' if result['private'] else 'public'}")
    return 0
