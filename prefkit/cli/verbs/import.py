"""import: other people's pairs, votes, ratings and images -> a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.config.reader import use_background
from prefkit.errors import TooManyFailures, UsageError

POSITIONAL = ("SOURCE", "file or folder, or a datasets id (then with --as)")


def arguments(parser: argparse.ArgumentParser) -> None:
    from prefkit.cli.verbs.layouts import describe

    parser.add_argument("into", nargs="?", metavar="RUN", help="folder of the run; made where it is not there")
    parser.add_argument(
        "--as",
        dest="layout",
        metavar="LAYOUT",
        help="what SOURCE is (votes: files that voting pages saved); told by looking where that is plain",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="candidates/NAME, comparisons/NAME, scores/NAME.rating (the layout's)"
    )
    parser.add_argument("--copy", action="store_true", help="copy images into the run; else files stay where they are")
    parser.add_argument(
        "--pairs", action="store_true", help="also pairs/NAME from the verdicts, so that train can start"
    )
    parser.add_argument("--test-share", type=share, default=0.1, help="held-out share where SOURCE has no splits (0.1)")
    parser.add_argument("--max-failed", type=share, default=0.001, help="share of unusable rows to bear (0.001)")
    describe(parser, "importer", "prefkit import pickapic_v2/ runs/x --pairs")


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number between 0 and 1")
    return value


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.hub.importing.run import run_import
    from prefkit.human.votes import import_votes, vote_files
    from prefkit.store import Store

    if not known.run_folder or not known.into or known.recipe:
        raise UsageError(
            "import wants a source and a run: prefkit import SOURCE RUN [--as LAYOUT]. See prefkit import --help."
        )
    use_background(Path(known.into))
    if known.layout == "votes" or (known.layout is None and vote_files(known.run_folder)):
        counts = import_votes(Store(known.into), known.run_folder, known.name or "votes")
        output.emit(counts, known.json, [counts])
        output.hint(
            f"next: prefkit report {output.shell_quoted(known.into)} (agreement), or prefkit pair {output.shell_quoted(known.into)} --use comparisons"
        )
        return 0
    try:
        found = run_import(
            Store(known.into),
            known.run_folder,
            layout=known.layout,
            name=known.name,
            flags=dict(flags),
            keep=not known.copy,
            pairs=known.pairs,
            test_share=known.test_share,
            max_failed=known.max_failed,
        )
    except TooManyFailures as error:
        _emit(error.counts, known.json)
        raise
    _emit(found, known.json)
    train = (
        f"prefkit train {output.shell_quoted(known.into)}"
        if known.pairs
        else f"prefkit pair {output.shell_quoted(known.into)} --use comparisons"
    )
    output.hint(f"next: {train}")
    return 0


def _emit(found: dict[str, Any], as_json: bool) -> None:
    output.emit(found, as_json, [{k: v for k, v in found.items() if not isinstance(v, dict)}])
