"""The command line: parse the arguments of a verb and run it. Only this file creates argparse parsers."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from prefkit import distributed, engines, interrupts, output
from prefkit.cli import engine, shard
from prefkit.errors import PrefkitError, TooManyFailures, UsageError

VERBS = {
    "generate": "requests -> candidates",
    "score": "candidates -> one table per score",
    "compare": "candidates -> a judge's pairwise verdicts, each pair in both orders",
    "pair": "scores -> (win, lose) pairs as a Hugging Face dataset",
    "train": "pairs -> an adapter or weights",
    "eval": "compare the tuned model with the base model on held-out requests",
    "fit": "your data -> your own scorer: vbpr, outfit_compat, clip_preference, mllm, mesh",
    "report": "show the state of a run and write report.html",
    "serve": "contact sheet, blind voting and report in browsers, for several people at once",
    "push": "upload pairs or a trained model to the Hub, with a card",
    "sync": "copy a run's tables to and from a folder or an object store",
    "clean": "remove what --redo moved to RUN/.old",
    "run": "run all stages of a recipe; each continues where it stopped",
    "import": "existing pairs, votes, ratings and images -> a run",
    "export": "pairs -> the layout that another trainer reads",
    "plugins": "list the scorers, strategies, objectives and families",
}
#: the stages: verbs with settings in the recipe
STAGES = ("generate", "score", "compare", "pair", "train", "eval")
#: verbs whose work all processes of a launch share; only rank 0 runs the other verbs
SHARED = ("generate", "score", "pair", "train", "eval", "fit", "run")
#: verbs with --shard and, as `run`, with --engine
SHARDED = ("generate", "score", "eval")
NOTES = {
    "compare": "flip_rate: fraction of pairs whose verdict changes with the order; "
    "first_rate: fraction of answers that chose the image shown first (0.5 is fair)."
}
EPILOG = """examples:
  prefkit run -r recipe.yaml                          everything, continuing where it stopped
  prefkit generate runs/x --model.base stabilityai/sdxl-turbo --requests.source prompts.txt --n 8
  prefkit score runs/x --use "taste.py:muted"         your own function, used as the score `muted`
  prefkit pair runs/x --k 2
  prefkit train runs/x --controls --steps 500 --beta 500

Every recipe key is a flag: --section.name.key VALUE, or --key VALUE if the stage has one entry. An option of a block or a
plug-in needs no prefix if its name is unique (--beta for --objective.beta, --rank for --lora.rank).
exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 done with too many failed items,
130 interrupted by Ctrl-C or SIGTERM (finished work is kept)"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with one of the exit codes listed in EPILOG."""
    if argv is None:
        output.as_utf8()
    output.never_refuse()
    code = run(sys.argv[1:] if argv is None else list(argv))
    distributed.end(code)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard_stdout()
        code = code or 1
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command in this process and return its exit code; errors are printed on stderr."""
    # on import, bitsandbytes logs that an optional kernel is missing
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with interrupts.handled(at_once=True), output.one_command():
        try:
            return _command(argv)
        except BaseException as error:  # a plug-in may call sys.exit
            return _failed(error)
        finally:
            engines.use(None)


def _command(argv: list[str]) -> int:
    from prefkit.config.tree import unusable

    for text in argv:
        if bad := unusable(text):
            raise UsageError(f"the argument {text[:60]!r} contains {bad}. Names and paths must be UTF-8 text.")
    if not argv or argv[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
        output.say(f"usage: prefkit VERB (RUN | -r recipe.yaml) [flags]     prefkit VERB --help\n\n{verbs}\n\n{EPILOG}")
        return 0
    if argv[0] == "--version":
        import prefkit

        output.say(prefkit.__version__)
        return 0
    return verb(argv[0], argv[1:])


def _failed(error: BaseException) -> int:
    """Report the error that ended a command, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("Interrupted. Finished work is kept. Run the same command again to continue.", file=sys.stderr)
        return interrupts.CODE
    if isinstance(error, BrokenPipeError):  # the program that read stdout has ended
        _discard_stdout()
        return 1
    if os.environ.get("PREFKIT_DEBUG") == "1":
        raise error
    if not isinstance(error, Exception):
        from prefkit.plugin_guard import error_with_line

        output.error(f"the program ended before its work was done: {error_with_line(error)}.")
        return 1
    # a collective operation also fails if another process failed; then that failure is the cause
    cause = None if isinstance(error, PrefkitError) else distributed.group().failure()
    if cause is not None and cause.elsewhere:
        return cause.exit_code
    text, code = explained(error)
    if not getattr(error, "elsewhere", False):
        output.error(text)
    return code


def explained(error: BaseException) -> tuple[str, int]:
    """Return (message, exit code) for an error. If the error is unexpected, the message mentions PREFKIT_DEBUG."""
    if isinstance(error, PrefkitError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        usage = error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
        return f"{error.filename or 'a file'} could not be read or written: {error.strerror}.", 2 if usage else 1
    if isinstance(error, MemoryError):
        return "out of memory. Lower batch_size, n or the image size, or free some memory.", 1
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "a path begins with ~ and a user name, but no such user exists here. Write the full path.", 2
    if isinstance(error, RecursionError):
        return "a value is nested too deeply to be read. Flatten it.", 1
    from prefkit.plugin_guard import error_summary

    return f"{' '.join(error_summary(error).split())[:500]} (set PREFKIT_DEBUG=1 to see where)", 1


def _discard_stdout() -> None:
    """Send stdout to /dev/null, so that Python's flush at exit does not fail."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.results().fileno())


def verb(name: str, argv: list[str]) -> int:
    if name not in VERBS:
        from prefkit.registry import nearest

        raise UsageError(f"no verb is called {name!r}.{nearest(name, list(VERBS))} Verbs: {', '.join(VERBS)}.")
    known, flags = parse(name, argv)
    output.quiet = known.quiet
    distributed.use_shard(None)
    engine.use(known)
    if getattr(known, "shard", None) is not None:
        shard.use(name, known)
    processes = distributed.group()
    if known.help:
        processes.lead(lambda: output.say(help_of(name, known, flags)))
        return 0
    act: Any = partial(stage, name) if name in STAGES else verb_module(name).act
    if name == "score":
        verb_module("score_serve").check(known)
    if name == "score" and known.serve:
        act = verb_module("score_serve").act
    elif getattr(known, "check", None):
        act = verb_module("score_check").act
    elif name in SHARED and not getattr(known, "dry_run", False):
        return int(act(known, flags))
    return processes.lead(lambda: int(act(known, flags)))


def verb_module(name: str) -> Any:
    """Import `prefkit/cli/verbs/NAME.py`, for a verb that is not a stage. It defines `act(known, flags)` and optionally
    `arguments(parser)`, `more_help(known)` and `POSITIONAL`, the metavar and help of the first positional argument."""
    return importlib.import_module(f"prefkit.cli.verbs.{name}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message}. See {self.prog} --help.")


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"prefkit {name}", add_help=False, allow_abbrev=False)
    module: Any = None if name in STAGES else verb_module(name)
    metavar, text = getattr(module, "POSITIONAL", ("RUN", "run folder, or the name of a shipped recipe (demo)"))
    add = parser.add_argument
    add("run_folder", nargs="?", metavar=metavar, help=text)
    add("-r", "--recipe", help="recipe (YAML)")
    add("-h", "--help", action="store_true", help="show this text")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    add("-q", "--quiet", action="store_true", help="no notes, hints or progress on stderr")
    if name in (*STAGES, "run"):
        add("--dry-run", action="store_true", help="show what would be done and what it may cost; load no weights")
        text = (
            "make entries again whose settings have changed, and what was made from them; the old ones move to RUN/.old"
        )
        add("--redo", action="store_true", help=text)
        text = "trial run with at most N requests (score: candidates, compare: pairs, train: steps)"
        add("--limit", type=positive, metavar="N", help=text)
    if name in STAGES:
        add("--name", action="append", default=[], help="run only this entry of the recipe's section (may be repeated)")
    if name == "score":
        text = (
            "test scorer NAME on candidates of RUN, or on synthetic images without RUN; the scorer's options are "
            "flags, and --extra JSON adds keys to each request"
        )
        add("--check", metavar="NAME", help=text)
        verb_module("score_serve").arguments(parser)
    if name in SHARDED:
        add("--shard", metavar="I/N", help=shard.HELP)
    if name in (*SHARDED, "run"):
        engine.arguments(parser, positive)
    if name in ("train", "run"):
        add("--controls", action="store_true", help="train controls too: SFT on winners, DPO on randomly flipped pairs")
    if hasattr(module, "arguments"):
        module.arguments(parser)
    return parser


def positive(text: str) -> int:
    if not whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number above 0")
    return int(text)


def whole(text: str) -> bool:
    """True for a non-negative whole number of at most nine digits."""
    return re.fullmatch("[0-9]{1,9}", text) is not None


def parse(name: str, argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Return (the verb's own arguments, [(key, value)] of all other flags). Dashes in keys become underscores."""
    parser = parser_of(name)
    takes_value = {flag: action.nargs is None for action in parser._actions for flag in action.option_strings}
    known, flags, rest = [], [], iter(argv)
    for text in rest:
        flag, equals, value = text.partition("=")
        if not text.startswith("--") or flag in takes_value:
            known.append(text)
            if takes_value.get(text):
                known += [value for value in [next(rest, None)] if value is not None]
            continue
        if not re.fullmatch(r"--\w[\w.-]*", flag):
            raise UsageError(f"{text!r} is not a flag. See prefkit {name} --help.")
        following = None if equals else next(rest, None)
        if not equals and following is None:
            raise UsageError(f"{flag} needs a value. See prefkit {name} --help.")
        value = value if following is None else following
        flags.append((flag[2:].replace("-", "_"), value))
    return parser.parse_intermixed_args(known), flags


def help_of(name: str, known: argparse.Namespace, flags: list[tuple[str, str]]) -> str:
    from prefkit import config
    from prefkit.cli.help import options_table
    from prefkit.config import reader, resolve

    texts = [f"prefkit {name}: {VERBS[name]}", "", parser_of(name).format_help().strip(), ""]
    if name not in STAGES:
        more = getattr(verb_module(name), "more_help", None)
        return "\n".join([*texts, *(more(known) if more else []), EPILOG])
    kind = getattr(config, name.capitalize())
    entries: dict[str, Any] = {"": kind()}
    recipe = None
    if known.recipe or known.run_folder:
        try:
            recipe = resolve.resolve(known.run_folder, known.recipe, name, flags, known.name)
            entries = getattr(recipe, name)
        except UsageError as error:  # show the help without the recipe
            output.warn(f"{error} The help therefore shows the defaults.")
    for entry, values in entries.items():
        prefix = f"{entry}." if len(entries) > 1 else ""
        texts += [f"{name} {entry}".strip() + ":", options_table(kind, values, prefix), ""]
        blocks = resolve.blocks(kind, config.plain(values))
        names = Counter(key for block in (kind, *blocks.values()) for key in reader.field_names(block))
        for block, options in blocks.items():
            value = getattr(values, block) if block else values
            title = " ".join(filter(None, [block, getattr(value, "use", "")]))
            shown = reader.build(options, value.options, "") if hasattr(value, "options") else value
            long = [key for key in reader.field_names(options) if block and names[key] > 1]
            texts += [f"options of {title}:", options_table(options, shown, prefix, longer=(f"{block}.", long)), ""]
    for section in ("model", "requests") if name == "generate" else ():
        shown = getattr(recipe, section) if recipe else None
        texts += [f"{section}:", options_table(getattr(config, section.capitalize()), shown, f"{section}."), ""]
    texts += ["the whole recipe:", options_table(config.Recipe, recipe, only=["rounds", "background"]), ""]
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
    from prefkit.cli import next_step
    from prefkit.config.rounds import check_stage

    run = open_run(name, known, flags)
    if name == "eval" and not known.recipe and not run.store.exists():
        folder = output.shell_quoted(run.folder)
        raise UsageError(f"{folder} is not a run folder: it has no run.json. Start with `prefkit generate {folder}`.")
    if known.dry_run:
        check_stage(run.recipe, run.store, name)
        return dry_run(run, {name: known.limit}, known)
    distributed.group().wait()  # all processes must have read the recipe before a stage rewrites it
    options = {"redo": known.redo} | ({"controls": known.controls} if name == "train" else {})
    try:
        counts = run.stage(name, known.name, limit=known.limit, **options)
    except TooManyFailures as error:
        output.emit(error.counts, known.json, rows_of(name, error.counts))
        raise
    output.emit(counts, known.json, rows_of(name, counts))
    if name in NOTES:
        output.note(NOTES[name])
    if distributed.group().sharded:
        output.hint(shard.next_command(name, run.folder))
        return 0
    if name == "eval":
        note_distances(list(counts.values()))
    unjudged = name == "eval" and next((e for e, result in counts.items() if not rows_of(name, {e: result})), None)
    if unjudged:
        output.hint(next_step.voting(run.store, unjudged, counts[unjudged]))
    else:
        output.hint(next_step.after(name, run.store, run.recipe))
    return 0


def dry_run(run: Any, limits: dict[str, int | None], known: argparse.Namespace) -> int:
    """Print what the stages in `limits` would do, then raise the error, if any, that would end the real command."""
    from prefkit.cli.dry_run import plan, plan_rounds

    names, controls = getattr(known, "name", None) or [], getattr(known, "controls", False)
    several = run.recipe.rounds > 1
    if several:
        rows, error = plan_rounds(run, limits, controls, known.redo)
    else:
        rows, error = plan(run.store, run.recipe, limits, names, controls, known.redo)
    output.emit(rows, known.json, rows)
    if error is not None:
        raise error
    return 0


def note_distances(results: list[dict[str, Any]]) -> None:
    """Print the ranking of the models, scores by tier and group, and distances to real images, if they were measured."""
    from prefkit.evaluate import arena
    from prefkit.evaluate.summary import distance_rows, real_distances, tier_rows

    if rows := tier_rows(results):
        output.note(
            f"{output.table(rows)}\nRI: (tuned - base) / (explicit - base), all scored against the requests' prompts"
        )

    if rows := [row for result in results for row in arena.rows_of(result.get("arena", {}))]:
        output.note(f"{output.table(rows)}\nstrength: log odds of a win against the base (Bradley-Terry)")
    if rows := distance_rows(results):
        caveat = next(row["caveats"][0] for result in results for _, _, row in real_distances(result))
        output.note(f"{output.table(rows)}\n{caveat}")


def rows_of(name: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of a stage as table rows: for eval, one per set, model and scorer; for other stages, and for
    workers of --shard, one per recipe entry, with the entry's scalar counts. For pair, reasons that left out no candidate
    have no column."""
    if name == "eval" and not distributed.group().sharded:
        from prefkit.evaluate.summary import flat_rows

        return [row for result in results.values() for row in flat_rows(result)]
    rows = [
        {name: entry, **{key: value for key, value in counts.items() if not isinstance(value, (dict, list))}}
        for entry, counts in results.items()
    ]
    if name != "pair":
        return rows
    used = {"pairs", "ties"} | {key for row in rows for key, value in row.items() if value}
    return [{key: value for key, value in row.items() if key in used} for row in rows]
