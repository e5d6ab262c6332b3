"""What reaches a terminal: nothing that it acts on, nothing without an end, and JSON exact."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys

import pytest

from prefkit import output
from prefkit.cli.main import explained, run
from prefkit.errors import StoreError

HOSTILE = "a\x1b[31mred\x1b]0;title\x07 b\rc \x9b2J \u202edlrow\u2066 \u2028x\x00 \udc80 d"


def test_everything_that_prefkit_prints_is_escaped(capsys, monkeypatch):
    monkeypatch.setattr(output, "quiet", False)
    output.note(HOSTILE)
    output.hint(HOSTILE)
    output.warn(HOSTILE)
    output.error(HOSTILE)
    output.emit({}, False, [{HOSTILE: HOSTILE, "n": 1}])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with output.Progress(HOSTILE, 2) as progress:
        progress.update(1, extra=HOSTILE)
        progress._bar.refresh()
    out, err = capsys.readouterr()
    shown = "a\\x1b[31mred\\x1b]0;title\\x07 b"
    assert out.count(shown) == 2 and err.count(shown) == 6 and f"extra={shown}" in err
    rest = err.replace("\r", "").replace("\x1b[A", "")  # the progress bar's own
    for text in (out, rest):
        assert not [c for c in text if c not in "\n" and (not c.isprintable())] and "\u202e" not in text
    assert output.safe("日本語 👩\u200d🚀 é\n\tx") == "日本語 👩\u200d🚀 é\n\tx"


def test_progress_outside_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(output, "quiet", False)
    for seconds, lines in ((0.0, 3), (30.0, 0)):
        monkeypatch.setattr(output, "LINE_EVERY", seconds)
        with output.Progress("train dpo", 3) as progress:
            for _ in range(3):
                progress.update(loss=0.25)
        err = capsys.readouterr().err
        assert err.count("\n") >= lines and "\r" not in err and ("loss=0.25" in err) == bool(lines)
        assert lines or not err


@pytest.mark.parametrize(("terminal", "seconds"), [(False, (30, 60, 90)), (True, range(1, 100))])
def test_long_work_is_reported_every_30_seconds_and_on_a_terminal_every_second(monkeypatch, capsys, terminal, seconds):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(output, "_last_sign", 0.0)
    for tenth in range(1000):
        monkeypatch.setattr(output.time, "monotonic", lambda tenth=tenth: 5000 + tenth / 10)
        output.still_working(f"step {tenth}", 5000.0)
    line = "\r\x1b[Kstep {}\r" if terminal else "step {}\n"
    assert capsys.readouterr().err == "".join(line.format(second * 10) for second in seconds)
    for name, value in (("quiet", True), ("main", False)):
        with monkeypatch.context() as silent:
            silent.setattr(output, name, value)
            output.still_working("step", 0.0)
    assert not capsys.readouterr().err


def test_json_is_exact(capsys):
    output.emit({"a": HOSTILE.replace("\udc80", ""), "b": [float("nan"), float("inf"), 1.5]}, True)
    assert json.loads(capsys.readouterr().out) == {"a": HOSTILE.replace("\udc80", ""), "b": [None, None, 1.5]}


def test_a_message_has_an_end_and_keeps_its_own(capsys):
    output.error("wrong: " + "x" * 50_000 + ". Fix it so.")
    err = capsys.readouterr().err
    assert len(err) <= output.LONGEST + 1 and err.startswith("Error: wrong: xxx") and err.endswith("Fix it so.\n")


def test_stdout_that_is_full(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(StoreError, match="standard output: No space left on device"):
            output.emit({"a": 1}, True)
        assert run(["--version"]) == 1
        monkeypatch.undo()
        with contextlib.suppress(OSError):  # what it still holds
            full.close()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            OSError(28, "No space left on device", "x/y"),
            1,
            "x/y could not be read or written: No space left on device.",
        ),
        (OSError(36, "File name too long", "x"), 2, "File name too long"),
        (MemoryError(), 1, "out of memory"),
        (RecursionError("maximum recursion"), 1, "nested too deeply"),
        (RuntimeError("Could not determine home directory."), 2, "no such user"),
        (ValueError("x"), 1, "set PREFKIT_DEBUG=1 to see where"),
    ],
)
def test_errors_of_the_system_are_sentences(error, code, text):
    said, ended = explained(error)
    assert ended == code and text in said


@pytest.mark.parametrize("argument", ["a\0b", os.fsdecode(b"a\xff")])
def test_arguments_that_no_path_can_be(argument, capsys):
    assert run(["generate", argument]) == 2
    assert "contains" in capsys.readouterr().err


def test_hints_can_be_pasted_into_a_shell(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.py").write_text(
        "from PIL import Image\ndef draw(p, seeds): return [Image.new('RGB', (8, 8), (s % 256, 0, 0)) for s in seeds]\n"
    )
    (tmp_path / "p.txt").write_text("a\nb\n")
    made = cli("generate", "my $x's run", "--requests.source", "p.txt", "--generate.own.use", "g.py:draw", "--n", 2)
    hinted = made[2].split("prefkit plugins lists all scorers): prefkit ")[1].splitlines()[0]
    code, _, err = cli(*shlex.split(hinted))
    assert (made[0], code) == (0, 0), err


def test_a_warning_is_printed_once_a_command(tmp_path, cli):
    (tmp_path / "p.csv").write_text("prompt,user\na,1\n,2\n")
    (tmp_path / "g.py").write_text(
        "from PIL import Image\ndef draw(p, s): return [Image.new('RGB', (8, 8)) for _ in p]\n"
    )
    flags = ["--requests.source", tmp_path / "p.csv", "--generate.own.use", f"{tmp_path}/g.py:draw"]
    for _ in range(2):  # and by the next command again
        assert (
            cli("generate", tmp_path / "run", *flags, "--requests.test_share", 0)[2].count("1 empty prompt left out")
            == 1
        )
