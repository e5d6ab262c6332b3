"""Verbs to stages. The only file that knows the command-line library (argparse)."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from prefkit import distributed, interrupts, output
from prefkit.errors import PrefkitError, TooManyFailures, UsageError

VERBS = {
    "generate": "requests -> candidates",
    "score": "candidates -> one score table per alias",
    "compare": "candidates -> pairwise verdicts of a judge, each in both orders",
    "pair": "scores -> (win, lose) pairs, a Hugging Face dataset",
    "train": "pairs -> an adapter or weights",
    "eval": "base against tuned, on held-out requests",
    "fit": "your data -> a scorer of your own: vbpr, outfit_compat, clip_preference, mllm",
    "report": "state and counts, and report.html",
    "push": "pairs or a trained model to the Hub, with a card",
    "run": "a whole recipe: every stage, each continuing where it stopped",
    "import": "other people's pairs, votes, ratings and images -> a run",
    "export": "pairs -> the layout that another trainer reads",
    "plugins": "scorers, strategies, objectives and families by name",
}
SHARED = (
    "generate",
    "score",
    "pair",
    "train",
    "eval",
    "fit",
    "run",
)  # other verbs are the first process's under a launcher
NEXT = {"generate": "score", "score": "pair", "pair": "train", "train": "eval", "eval": "report"}
EPILOG = """examples:
  prefkit run -r recipe.yaml                          everything, continuing where it stopped
  prefkit generate runs/x --model.base stabilityai/sdxl-turbo --requests.source prompts.txt --n 8
  prefkit score runs/x --use "taste.py:muted"         a function of your own, as the score `muted`
  prefkit pair runs/x --k 2
  prefkit train runs/x --controls --steps 500

Every key of the recipe is a flag: --section.name.key VALUE, or --key VALUE where only one entry can be meant.
exit codes: 0 done, 1 failed, 2 usage or recipe, 3 done with too many failed items, 130 interrupted by Ctrl-C or SIGTERM (state kept)"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Exits with the code that the epilog lists."""
    if argv is None:
        output.as_utf8()
    output.never_refuse()
    code = run(sys.argv[1:] if argv is None else list(argv))
    distributed.end(code)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_stdout()
        code = code or 1
    sys.exit(code)


def run(argv: list[str]) -> int:
    """One command, in this process. Returns its exit code; every error has been said on stderr."""
    with interrupts.handled(at_once=True), output.one_command():
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        _check_texts(argv)
        if not argv or argv[0] in ("-h", "--help"):
            output.say(overview())
            return 0
        if argv[0] == "--version":
            import prefkit

            output.say(prefkit.__version__)
            return 0
        return verb(argv[0], argv[1:])
    except KeyboardInterrupt:
        print("Interrupted. What was done is kept; the same command continues.", file=sys.stderr)
        return interrupts.CODE
    except PrefkitError as error:
        if os.environ.get("PREFKIT_DEBUG") == "1":
            raise
        if not error.elsewhere:
            output.error(str(error))
        return error.exit_code
    except BrokenPipeError:
        _drop_stdout()  # the reader is gone; nothing more can be said there
        return 1
    except Exception as error:
        if os.environ.get("PREFKIT_DEBUG") == "1":
            raise
        cause = distributed.group().failure()  # collectives fail where another process does
        if cause is not None and cause.elsewhere:
            return cause.exit_code
        text, code = explained(error)
        output.error(text)
        return code
    except BaseException as error:  # sys.exit in code that is not prefkit's, wherever it was called
        from prefkit.plugin_guard import error_with_line

        if os.environ.get("PREFKIT_DEBUG") == "1":
            raise
        output.error(f"the program was ended before its work was done, by {error_with_line(error)}.")
        return 1


def explained(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code of an error. What names PREFKIT_DEBUG is an error that nobody planned for."""
    if isinstance(error, PrefkitError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        named = error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
        return f"{error.filename or 'a file'} could not be read or written: {error.strerror}.", 2 if named else 1
    if isinstance(error, MemoryError):
        return "out of memory. Lower batch_size, n or the size of the images, or free some memory.", 1
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "a path begins with ~ and a name, and there is no such user here. Write the path out.", 2
    if isinstance(error, RecursionError):
        return "a value is nested too deeply to be read. Flatten it.", 1
    from prefkit.plugin_guard import error_summary

    return f"{' '.join(error_summary(error).split())[:500]} (PREFKIT_DEBUG=1 shows where)", 1


def _check_texts(argv: Sequence[str]) -> None:
    from prefkit.config.tree import unusable

    for text in argv:
        if bad := unusable(text):
            raise UsageError(f"the argument {text[:60]!r} contains {bad}. Names and paths are UTF-8 text.")


def _drop_stdout() -> None:
    """Nothing can be written there any more, neither now nor when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.results().fileno())


def overview() -> str:
    verbs = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
    return f"usage: prefkit VERB (RUN | -r recipe.yaml) [flags]     prefkit VERB --help\n\n{verbs}\n\n{EPILOG}"


def verb(name: str, argv: list[str]) -> int:
    if name not in VERBS:
        from prefkit.registry import nearest

        raise UsageError(f"no verb is called {name!r}.{nearest(name, list(VERBS))} There are: {', '.join(VERBS)}.")
    known, flags = parse(name, argv)
    output.quiet = known.quiet
    processes = distributed.group()
    if known.help:
        processes.lead(lambda: output.say(help_of(name, known, flags)))
        return 0
    if getattr(known, "check", None):
        act = importlib.import_module("prefkit.cli.verbs.score_check").act
    else:
        act = partial(stage, name) if name in NEXT else room(name).act
    if name in SHARED and not getattr(known, "dry_run", False) and not getattr(known, "check", None):
        code: int = act(known, flags)
        return code
    return processes.lead(lambda: act(known, flags))


def room(name: str) -> Any:
    """The module of a verb that is no stage, `prefkit/cli/verbs/NAME.py`: `arguments(parser)`, `act(known, flags)` and,
    where the first positional is not a run, `POSITIONAL` (metavar, help; read as known.run_folder)."""
    return importlib.import_module(f"prefkit.cli.verbs.{name}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message}. See {self.prog} --help.")


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"prefkit {name}", add_help=False, allow_abbrev=False)
    metavar, text = ("RUN", "folder of a run, or a recipe that comes along (demo)")
    if name not in NEXT:
        metavar, text = getattr(room(name), "POSITIONAL", (metavar, text))
    parser.add_argument("run_folder", nargs="?", metavar=metavar, help=text)
    parser.add_argument("-r", "--recipe", help="recipe (YAML)")
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no notes, hints or progress on stderr")
    if name in (*NEXT, "run"):
        parser.add_argument("--dry-run", action="store_true", help="say what would be done; load no weights")
        parser.add_argument(
            "--limit", type=positive, help="for trying out: at most so many requests (score: candidates, train: steps)"
        )
    if name not in NEXT:
        room(name).arguments(parser)
    else:
        parser.add_argument(
            "--name", action="append", default=[], help="only this entry of the recipe's section (may repeat)"
        )
    if name == "score":
        parser.add_argument(
            "--check",
            metavar="NAME",
            help="test whether a scorer keeps its contract (its options as flags; --extra JSON: what requests have beside a "
            "prompt; on made-up images, or on candidates of RUN)",
        )
    if name in ("train", "run"):
        parser.add_argument(
            "--controls", action="store_true", help="also SFT on the winners and DPO on randomly flipped pairs"
        )
    return parser


def positive(text: str) -> int:
    if not whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number above 0")
    return int(text)


def whole(text: str) -> bool:
    """Whether the text is a whole number, not negative, of at most nine digits."""
    return re.fullmatch("[0-9]{1,9}", text) is not None


def parse(name: str, argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Known flags, and (key, value) of those that name recipe keys: --a.b value, --a.b=value, dashes as underscores."""
    parser = parser_of(name)
    own = {flag for action in parser._actions for flag in action.option_strings}
    kept, flags, i = [], [], 0
    while i < len(argv):
        text = argv[i]
        flag, equals, value = text.partition("=")
        if text.startswith("--") and flag not in own:
            if not re.fullmatch(r"--\w[\w.-]*", flag):
                raise UsageError(f"{text!r} is no flag. See prefkit {name} --help.")
            if not equals:
                i += 1
                if i == len(argv):
                    raise UsageError(f"{flag} needs a value. See prefkit {name} --help.")
                value = argv[i]
            flags.append((flag[2:].replace("-", "_"), value))
        else:
            kept.append(text)
            takes = next((a for a in parser._actions if text in a.option_strings and a.nargs is None), None)
            if takes is not None and i + 1 < len(argv):
                i += 1
                kept.append(argv[i])
        i += 1
    return parser.parse_intermixed_args(kept), flags


def help_of(name: str, known: argparse.Namespace, flags: list[tuple[str, str]]) -> str:
    from prefkit import config, registry
    from prefkit.cli.help import options_table
    from prefkit.config import plugin_options, resolve

    texts = [f"prefkit {name}: {VERBS[name]}", "", parser_of(name).format_help().strip(), ""]
    if name not in (*NEXT, "compare"):
        own = getattr(room(name), "more_help", None)
        return "\n".join([*texts, *(own(known) if own else []), EPILOG])
    kind = getattr(config, name.capitalize())
    entries: dict[str, Any] = {"": kind()}
    recipe = None
    if known.recipe or known.run_folder:
        try:
            recipe = resolve.resolve(known.run_folder, known.recipe, name, flags, known.name)
            entries = getattr(recipe, name)
        except UsageError as error:  # help is what one wants then
            output.warn(f"{error} Defaults are shown.")
    for entry, values in entries.items():
        prefix = f"{entry}." if len(entries) > 1 else ""
        texts += [f"{name} {entry}".strip() + ":", options_table(kind, values, prefix), ""]
        plugins = {"score": "scorer", "compare": "scorer", "pair": "strategy"}
        if name in plugins and values.use:
            plugin = registry.load(plugins[name], values.use)
            if hasattr(plugin, "Options"):
                shown = plugin_options.options(plugin, values.options)
                texts += [f"options of {values.use}:", options_table(plugin.Options, shown, prefix), ""]
    for section in ("model", "requests") if name == "generate" else ():
        shown = getattr(recipe, section) if recipe else None
        texts += [f"{section}:", options_table(getattr(config, section.capitalize()), shown, f"{section}."), ""]
    texts += ["the whole recipe:", options_table(config.Recipe, recipe, only=["background"]), ""]
    return "\n".join(texts)


def open_run(name: str, known: argparse.Namespace, flags: list[tuple[str, str]]) -> Any:
    from prefkit.api import Run
    from prefkit.config import resolve

    names, fast = getattr(known, "name", None) or [], getattr(known, "fast", False)
    recipe = resolve.resolve(known.run_folder, known.recipe, name, flags, names, fast)
    if name in resolve.NAMED:
        known.name = resolve.about(recipe, name, flags, names)
    return Run(recipe=recipe)


def stage(name: str, known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    run = open_run(name, known, flags)
    if known.dry_run:
        from prefkit.cli.dry_run import plan

        return print_plan(
            plan(run.store, run.recipe, {name: known.limit}, known.name, getattr(known, "controls", False)), known.json
        )
    distributed.group().wait()  # all have read the recipe before a stage writes it
    options = {"controls": known.controls} if name == "train" else {}
    try:
        found = run.stage(name, known.name, limit=known.limit, **options)
    except TooManyFailures as error:
        output.emit(error.found, known.json, rows_of(name, error.found))
        raise
    output.emit(found, known.json, rows_of(name, found))
    output.hint(f"next: prefkit {NEXT[name]} {output.shell_quoted(run.folder)}")
    return 0


def print_plan(planned: Any, as_json: bool) -> int:
    """Print what a plan found, then end as the command would: with the first error."""
    rows, error = planned
    output.emit(rows, as_json, rows)
    if error is not None:
        raise error
    return 0


def rows_of(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The result as rows of a table: those that eval made, else the plain values of each entry."""
    if name == "eval":
        from prefkit.evaluate.run import flat_rows

        return [row for result in found.values() for row in flat_rows(result)]
    return [
        {name: entry, **{k: v for k, v in counts.items() if not isinstance(v, (dict, list))}}
        for entry, counts in found.items()
    ]
