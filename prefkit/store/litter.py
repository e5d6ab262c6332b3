"""Temporary files and folders, and the removal of those that killed processes left.

A temporary name is .NAME.HOST-PID-RANDOM.tmp. HOST identifies the machine, its boot and its process namespace
(container), within which a PID is unique.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

#: seconds without changes after which another machine's temporary file counts as abandoned
ABANDONED = 3600.0
TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
#: names of temporary files written by versions before 0.1
EARLIER = re.compile(r"\..+\.\d+\.(tmp|partial)|\.(step-\d+|final|best|probe)\.tmp|\..+\.(new|old|partial)", re.DOTALL)
#: folders with these endings are not searched, because an unpacked archive may hold a million files
SKIPPED = (".unpacked", ".locks")


def temporary_beside(path: Path) -> Path:
    """Return a path with a unique temporary name in the folder that contains `path`."""
    return path.with_name(f".{path.name[:150]}.{unique()}.tmp")


def unique() -> str:
    """Return a new HOST-PID-RANDOM, unique across processes and machines."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


@cache
def _host() -> str:
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text(encoding="ascii"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes anywhere below `folder`."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(SKIPPED)]
        for name in [*folders, *files]:
            if name.startswith(".") and _abandoned(Path(root) / name):
                remove(Path(root) / name)
                if name in folders:
                    folders.remove(name)


def sweep_beside(path: Path) -> None:
    """Remove the temporary files that killed processes left when writing `path`."""
    with suppress(OSError):
        for other in list(path.parent.iterdir()):
            if other.name.startswith(f".{path.name[:150]}.") and _abandoned(other):
                remove(other)


def _abandoned(path: Path) -> bool:
    name = TEMPORARY.fullmatch(path.name)
    if name and name["host"] == _host():
        return not _alive(int(name["pid"]))
    if name or EARLIER.fullmatch(path.name):
        with suppress(FileNotFoundError):  # another process has just renamed or removed it
            return _now(path.parent) - _changed(path) > ABANDONED
    return False


def _changed(path: Path) -> float:
    """Return when a file, or anything in a folder, was last changed: a folder's own time is that of its entries."""
    times = [path.lstat().st_mtime]
    for root, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                times.append(os.lstat(os.path.join(root, name)).st_mtime)
    return max(times)


def _now(folder: Path) -> float:
    """Return the time by the clock of the folder's file system, which may be another machine's."""
    probe = temporary_beside(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # no permission to write
        return time.time()
    finally:
        remove(probe)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content. If that fails, do nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
