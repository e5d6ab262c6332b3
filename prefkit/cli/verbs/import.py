"""import: existing pairs, votes, ratings and images -> a run."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.config.reader import use_background
from prefkit.errors import TooManyFailures, UsageError

POSITIONAL = ("SOURCE", "file, folder, or Hub dataset (which needs --as)")


def arguments(parser: argparse.ArgumentParser) -> None:
    from prefkit.cli.help import describe_layouts

    add = parser.add_argument
    add("into", nargs="?", metavar="RUN", help="run folder, created if missing")
    text = "layout of SOURCE (default: detected); the layout `votes` means files saved by a voting page"
    add("--as", dest="layout", metavar="LAYOUT", help=text)
    add("--name", metavar="NAME", help="write candidates/NAME, comparisons/NAME, scores/NAME.rating (default: LAYOUT)")
    text = "if NAME holds an import with other settings or rows, move it and what was made from it to RUN/.old first"
    add("--redo", action="store_true", help=text)
    add("--copy", action="store_true", help="copy images into the run; by default, the run only stores their paths")
    add("--pairs", action="store_true", help="also write the verdicts as pairs/NAME, so that train can start at once")
    text = "fraction of requests to hold out if SOURCE has no splits (0.1)"
    add("--test-share", type=fraction, default=0.1, help=text)
    add("--max-failed", type=fraction, default=0.001, help="fraction of unusable rows to accept (0.001)")
    describe_layouts(parser, "importer", "prefkit import pickapic_v2/ runs/x --pairs")


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number between 0 and 1")
    return value


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.cli.next_step import after
    from prefkit.config.resolve import resolve
    from prefkit.hub.importing.replace import replacing
    from prefkit.hub.importing.run import run_import, sniff
    from prefkit.human.votes import import_votes, vote_files
    from prefkit.store import Store
    from prefkit.store.summary import candidate_index

    if not known.run_folder or not known.into or known.recipe:
        raise UsageError(
            "import needs a source and a run: prefkit import SOURCE RUN [--as LAYOUT]. See prefkit import --help."
        )
    use_background(Path(known.into))
    folder = output.shell_quoted(known.into)
    if known.layout == "votes" or (known.layout is None and vote_files(known.run_folder)):
        store, name = Store(known.into), known.name or "votes"
        _emit(import_votes(store, known.run_folder, name), known.json)
        output.hint(f"next (how far people and scorers agree): prefkit report {folder}")
        if set(store.comparisons(name).frame(["id_a"]).id_a) & set(candidate_index(store).id):
            output.hint(f"next (votes become pairs): prefkit pair {folder} --use comparisons")
        return 0
    store, layout = Store(known.into), known.layout or sniff(known.run_folder)
    try:
        act = partial(
            run_import,
            store,
            known.run_folder,
            layout=layout,
            name=known.name,
            flags=dict(flags),
            keep=not known.copy,
            pairs=known.pairs,
            test_share=known.test_share,
            max_failed=known.max_failed,
        )
        counts = replacing(store, known.name or layout, act, known.redo)
    except TooManyFailures as error:
        _emit(error.counts, known.json)
        raise
    _emit(counts, known.json)
    recipe = resolve(known.into, None, "import")
    verb = "pair" if known.pairs else "compare" if counts["comparisons"] else "generate"
    output.hint(after(verb, store, recipe))
    return 0


def _emit(counts: dict[str, Any], as_json: bool) -> None:
    output.emit(counts, as_json, [{key: value for key, value in counts.items() if not isinstance(value, dict)}])
