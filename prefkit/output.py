"""Print results on stdout; progress, warnings and hints on stderr. Progress bars appear only on a terminal."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from prefkit import interrupts
from prefkit.errors import StoreError

LINE_EVERY = 30.0  # seconds between progress lines if stderr is not a terminal

quiet = False  # set by -q: prints no notes, hints or progress, only warnings and errors
#: prefkit.distributed sets the next two values
main = True  # False in all processes but rank 0, which prints results, notes and progress
first_to_say: Callable[[str], bool] = bool  # asked before a warning, so that only one process prints it

#: the real standard output of each running command, the innermost command last
_results: list[Any] = []
#: the warnings that each running command has printed
_warned: list[set[str]] = []

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the text's direction
UNSAFE = ("Cc", "Cs", "Zl", "Zp")  # categories: control characters, surrogates, line and paragraph separators
LONGEST = 1000  # maximum characters in a message


@contextmanager
def one_command() -> Iterator[None]:
    """Reserve standard output for the command's result: anything that plug-ins and libraries print goes to standard
    error, so that `--json` prints valid JSON. Each warning is printed once."""
    real = sys.stdout
    _results.append(real)
    _warned.append(set())
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = real
        _results.pop()
        _warned.pop()


def shell_quoted(path: Any) -> str:
    """Return a path as a shell command needs it: quoted if necessary."""
    return shlex.quote(str(path))


def results() -> Any:
    """Return the stream for results, or None if the calling program closed it."""
    return _results[-1] if _results else sys.stdout


def safe(text: str, keep: str = "\n\t") -> str:
    """Escape everything that a terminal would interpret: ANSI and OSC sequences, carriage returns, bells, changes of
    text direction. All text that prefkit prints for people passes through this function."""
    if text.isascii() and text.isprintable():
        return text
    unsafe = {c for c in text if (unicodedata.category(c) in UNSAFE or c in BIDI) and c not in keep}
    return "".join(c.encode("unicode_escape").decode() if c in unsafe else c for c in text)


def message(text: str, most: int = LONGEST) -> str:
    """Return safe text on one line of at most `most` characters. A longer text is cut in the middle, because its start
    says what happened and its end how to fix it."""
    line = " ".join(safe(text).split())
    if len(line) <= most:
        return line
    half = (most - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def as_utf8() -> None:
    """Restart this command in Python's UTF-8 mode unless Python already uses UTF-8 for file names, as recipes do."""
    if sys.getfilesystemencoding().replace("-", "").lower() != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "prefkit", *sys.argv[1:]])


def never_refuse() -> None:
    """Escape characters that stdout and stderr cannot encode; discard what is written to a closed stderr.

    Otherwise a print in a library or a plug-in could stop the work.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the program ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """Print one or more lines (such as a table) on stderr."""
    if main and not quiet:
        _print("\n".join(line if len(line) <= LONGEST else message(line) for line in safe(text).split("\n")))


def hint(text: str) -> None:
    note(f"Hint: {text}")


def warn(text: str) -> None:
    if _warned and text in _warned[-1]:
        return
    if _warned:
        _warned[-1].add(text)
    if first_to_say(text):
        _print(message(f"Warning: {text}"))


def error(text: str) -> None:
    if first_to_say(text):
        _print(message(f"Error: {text}"))


def _print(text: str, end: str = "\n") -> None:
    with suppress(OSError, ValueError):  # a closed stderr does not stop the work
        print(text, end=end, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print on stdout. Raises BrokenPipeError if the reader is gone, StoreError if stdout cannot be written."""
    if results() is None:
        return
    try:
        print(text, file=results(), flush=True)
    except BrokenPipeError:
        raise
    except OSError as failure:
        raise StoreError(f"the result could not be written to standard output: {failure.strerror}.") from failure


def emit(value: Any, as_json: bool, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Print the result on stdout, as JSON or as a table of `rows` (default: the keys and values of `value`)."""
    if not main:
        return
    if as_json:
        say(json.dumps(_finite(value), ensure_ascii=False, indent=1, default=str))
    else:
        say(table(rows if rows is not None else [{"": k, " ": v} for k, v in value.items()]))


def _finite(value: Any) -> Any:
    """Return the value with None instead of NaN and infinities, which JSON cannot represent."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as aligned text, with numbers right-aligned. The columns are all keys, in order of appearance."""
    if not rows:
        return "(nothing)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell(row.get(c)) for c in columns] for row in rows]
    heads = [safe(c, keep="") for c in columns]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(heads)]
    numeric = [all(isinstance(row.get(c), (int, float)) or row.get(c) is None for row in rows) for c in columns]

    def line(values: Sequence[str]) -> str:
        return "  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric)).rstrip()

    return "\n".join([line(heads), *map(line, cells)] if any(c.strip() for c in columns) else list(map(line, cells)))


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(safe(str(value)).split())
    return message(text) if len(text) > LONGEST else text


def duration(seconds: float) -> str:
    """Format seconds: 90 -> '1m30s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


class Progress:
    """Progress on rank 0's stderr: tqdm's bar on a terminal, else at most one line every `LINE_EVERY` seconds."""

    def __init__(self, label: str, total: int) -> None:
        from tqdm import tqdm

        live = sys.stderr.isatty()
        every, file = (0.1, sys.stderr) if live else (LINE_EVERY, _Lines())
        timing: Any = {"miniters": 1, "mininterval": every, "delay": every}
        self._bar = tqdm(desc=safe(label, keep=""), total=total, file=file, disable=quiet or not main, **timing)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def update(self, n: int = 1, **values: Any) -> None:
        """Count `n` more items and show `values`. Raises KeyboardInterrupt again if a plug-in has swallowed it."""
        interrupts.check()
        self._bar.set_postfix_str(" ".join(safe(f"{k}={cell(v)}", keep="") for k, v in values.items()), refresh=False)
        self._bar.update(n)


class _Lines:
    """The file that tqdm writes to if stderr is not a terminal: prints every state of the bar as a line."""

    def write(self, text: str) -> None:
        if line := text.strip():
            _print(line)


_last_sign = 0.0


def still_working(text: str, since: float) -> None:
    """Show that work still runs: print `text` at most every 30 s, first 30 s after `since` (a time.monotonic value).

    On a terminal, the text appears at most once a second and replaces the progress bar until the bar's next update.
    """
    global _last_sign
    now, live = time.monotonic(), sys.stderr.isatty()
    if quiet or not main or now - max(since, _last_sign) < (1.0 if live else LINE_EVERY):
        return
    _last_sign = now
    _print(f"\r\x1b[K{message(text)}\r" if live else message(text), end="" if live else "\n")
