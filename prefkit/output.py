"""What goes where: data on stdout; progress, warnings and hints on stderr. No bars outside a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

LINE_EVERY = 30.0  # seconds between progress lines where stderr is no terminal

quiet = False  # set once by the command line (-q): no notes, hints or progress; warnings and errors stay


def as_utf8() -> None:
    """Start this command line again in Python's UTF-8 mode where file names are in another encoding.

    Recipes are UTF-8, and what they name could not be opened otherwise. Before anything is imported that takes long.
    """
    if sys.getfilesystemencoding().replace("-", "").lower() != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "prefkit", *sys.argv[1:]])


def never_refuse() -> None:
    """Under an ASCII locale, write characters that stdout and stderr do not know as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def hint(text: str) -> None:
    note(f"Hint: {text}")


def warn(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr, flush=True)


def emit(value: Any, as_json: bool, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """The result on stdout: JSON, or a table of `rows` (default: the value itself as two columns)."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False, indent=1, default=str))
    else:
        print(table(rows if rows is not None else [{"": k, " ": v} for k, v in value.items()]))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text, numbers to the right. Columns are those of all rows, in order of appearance."""
    if not rows:
        return "(nothing)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    numeric = [all(isinstance(row.get(c), (int, float)) or row.get(c) is None for row in rows) for c in columns]

    def line(values: Sequence[str]) -> str:
        return "  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric)).rstrip()

    return "\n".join([line(columns), *map(line, cells)] if any(c.strip() for c in columns) else list(map(line, cells)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


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
        self.live = sys.stderr.isatty() and not quiet

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live and self.done:
            print(file=sys.stderr)

    def update(self, n: int = 1, **shown: Any) -> None:
        self.done += n
        now = time.monotonic()
        if quiet or now - self.shown < (0.1 if self.live else LINE_EVERY):
            return
        self.shown = now
        left = (now - self.start) / self.done * (self.total - self.done)
        extra = "".join(f"  {k} {_cell(v)}" for k, v in shown.items())
        text = f"{self.label}  {self.done}/{self.total}  {duration(left)} left{extra}"
        print(f"\r\x1b[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)
