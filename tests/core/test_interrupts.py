"""Ctrl-C and SIGTERM: the first ends in order, a later one at once, with the processes that were started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from prefkit import interrupts


@pytest.fixture(autouse=True)
def plain():
    """As in a terminal: a background job of a shell ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_first_interrupts_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        send(number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_work_in_steps_ends_its_step_first(number, monkeypatch):
    monkeypatch.setattr(interrupts, "TOGETHER", 0.0)
    with pytest.raises(KeyboardInterrupt), interrupts.handled(), interrupts.after_the_step() as asked:
        assert not asked.is_set()
        send(number)
        assert asked.is_set()
        interrupts.check()  # not the place to end
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_launcher_sends_twice_is_one_wish(monkeypatch):
    monkeypatch.setattr(interrupts, "TOGETHER", 1000.0)
    with pytest.raises(KeyboardInterrupt), interrupts.after_the_step() as asked:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert asked.is_set()


def test_one_that_comes_after_the_last_step_is_not_lost():
    """While the last checkpoint is written nobody looks at the event any more; what would follow must not begin."""
    begun = []
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        for name in ("dpo", "dpo-sft"):
            begun.append(name)
            with interrupts.after_the_step():
                send(signal.SIGINT)
    assert begun == ["dpo"]


def test_one_that_was_swallowed_is_raised_again():
    with interrupts.handled():
        interrupts.check()
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    interrupts.check()


def test_a_signal_that_was_ignored_stays_so_and_threads_change_nothing():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with interrupts.handled():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        send(signal.SIGTERM)
        with interrupts.after_the_step() as asked:
            send(signal.SIGTERM)
        assert not asked.is_set()
    seen = []

    def work():
        with interrupts.handled(), interrupts.after_the_step():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


PROGRAM = """
import subprocess, sys, time
from prefkit import interrupts
interrupts.TOGETHER = 0.0
child = subprocess.Popen([sys.executable, "-c", "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
                          "'import time; time.sleep(600)']); print(p.pid, flush=True); time.sleep(600)"],
                         stdout=subprocess.PIPE, text=True)
interrupts.track(child)
with interrupts.handled(at_once=True):
    try:
        print(child.pid, child.stdout.readline().strip(), flush=True)  # signals are handled from here on
        time.sleep(600)
    finally:
        print("writing", flush=True)
        time.sleep(600)
"""


def test_a_second_ends_at_once_with_all_that_was_started():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "writing\n" and process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "ended at once" in said
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
