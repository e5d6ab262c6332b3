"""What goes where: data on stdout; progress, warnings and hints on stderr. No bars outside a terminal."""

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

LINE_EVERY = 30.0  # seconds between progress lines where stderr is no terminal

quiet = False  # set once by the command line (-q): no notes, hints or progress; warnings and errors stay
# set by prefkit.distributed: results, notes and progress are those of the first process of a launch, and a warning that
# several processes have is printed once
main = True


#: the real standard output of the commands under way, the innermost last
_results: list[Any] = []
#: warnings of the command under way
_warned: list[set[str]] = []


@contextmanager
def one_command() -> Iterator[None]:
    """Standard output is for the result alone: what plug-ins and libraries print goes to standard error meanwhile, so that
    `--json` stays JSON. A warning is printed once."""
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
    """A path as a shell takes it, for commands in messages: quoted where it has spaces or other signs."""
    return shlex.quote(str(path))


def results() -> Any:
    """The stream that results are written to; None where it was closed by whoever started the command."""
    return _results[-1] if _results else sys.stdout


def _always(text: str) -> bool:
    return True


first_to_say: Callable[[str], bool] = _always


#: what turns the direction of the text around it
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
UNSAFE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, line and paragraph separators
LONGEST = 1000  # characters of a message


def safe(text: str, keep: str = "\n\t") -> str:
    """The text with everything escaped that a terminal would act on instead of showing it: ANSI and OSC sequences, carriage
    returns, bells, changes of direction. Whatever prefkit prints for people comes through here."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE or character in BIDI


def message(text: str, most: int = LONGEST) -> str:
    """One safe paragraph of at most `most` characters: the start says what happened, the end what to do, so a long value
    between them is cut."""
    line = " ".join(safe(text).split())
    if len(line) <= most:
        return line
    half = (most - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def as_utf8() -> None:
    """Start this command line again in Python's UTF-8 mode where file names are in another encoding.

    Recipes are UTF-8, and what they name could not be opened otherwise. Before anything is imported that takes long.
    """
    if sys.getfilesystemencoding().replace("-", "").lower() != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "prefkit", *sys.argv[1:]])


def never_refuse() -> None:
    """Write what stdout and stderr cannot show (an ASCII locale) as escapes, and what goes to a closed stderr nowhere.

    Libraries and plug-ins write there too, and would stop the work.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the program runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """A line, or several (a table), on stderr."""
    if main and not quiet:
        _tell("\n".join(line if len(line) <= LONGEST else message(line) for line in safe(text).split("\n")))


def hint(text: str) -> None:
    note(f"Hint: {text}")


def warn(text: str) -> None:
    if _warned and text in _warned[-1]:
        return
    if _warned:
        _warned[-1].add(text)
    if first_to_say(text):
        _tell(message(f"Warning: {text}"))


def error(text: str) -> None:
    if first_to_say(text):
        _tell(message(f"Error: {text}"))


def _tell(text: str, end: str = "\n") -> None:
    with suppress(OSError, ValueError):  # nobody reads stderr any more: that is no reason to stop the work
        print(text, end=end, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """On stdout. Raises BrokenPipeError where the reader is gone, StoreError where stdout cannot be written."""
    stream = results()
    if stream is None:
        return
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as failure:
        raise StoreError(f"the result could not be written to standard output: {failure.strerror}.") from failure


def emit(value: Any, as_json: bool, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """The result on stdout: JSON, or a table of `rows` (default: the value itself as two columns)."""
    if not main:
        return
    if as_json:
        say(json.dumps(_exact(value), ensure_ascii=False, indent=1, default=str))
    else:
        say(table(rows if rows is not None else [{"": k, " ": v} for k, v in value.items()]))


def _exact(value: Any) -> Any:
    """What JSON can hold: NaN and the infinities are null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _exact(inner) for key, inner in value.items()}
    return [_exact(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text, numbers to the right. Columns are those of all rows, in order of appearance."""
    if not rows:
        return "(nothing)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(c)) for c in columns] for row in rows]
    heads = [safe(c, keep="") for c in columns]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(heads)]
    numeric = [all(isinstance(row.get(c), (int, float)) or row.get(c) is None for row in rows) for c in columns]

    def line(values: Sequence[str]) -> str:
        return "  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric)).rstrip()

    return "\n".join([line(heads), *map(line, cells)] if any(c.strip() for c in columns) else list(map(line, cells)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(safe(str(value)).split())
    return message(text) if len(text) > LONGEST else text


def duration(seconds: float) -> str:
    """90 -> '1m30s'."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


class Progress:
    """Counts items on stderr: one moving line on a terminal, else a line every 30 s."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.start = self.shown = time.monotonic()
        self.live = sys.stderr.isatty() and main and not quiet

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live and self.done:
            _tell("")

    def update(self, n: int = 1, **shown: Any) -> None:
        """Raises KeyboardInterrupt where the work was asked to end, and a plug-in has swallowed that."""
        self.done += n
        interrupts.check()
        now = time.monotonic()
        if quiet or not main or now - self.shown < (0.1 if self.live else LINE_EVERY):
            return
        self.shown = now
        left = (now - self.start) / self.done * (self.total - self.done)
        extra = "".join(f"  {k} {_cell(v)}" for k, v in shown.items())
        text = safe(f"{self.label}  {self.done}/{self.total}  {duration(left)} left{extra}", keep="")
        _tell(f"\r\x1b[K{text}" if self.live else text, end="" if self.live else "\n")
