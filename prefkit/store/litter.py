"""Temporary files and folders: names that say who writes them, and removal of those whose writer was killed.

A name is .NAME.HOST-PID-RANDOM.tmp. HOST stands for the machine, its boot and its process namespace, so that a pid is
looked up only where it means something: two containers may have equal pids.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

#: seconds after which a temporary file that another machine wrote counts as abandoned
ABANDONED = 3600.0
OWN = re.compile(r"\..+\.(?P<host>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
#: as versions up to 0.1 named theirs
EARLIER = re.compile(r"\..+\.\d+\.(tmp|partial)|\.(step-\d+|final|best|probe)\.tmp|\..+\.(new|old|partial)", re.DOTALL)
#: one unpacked archive may hold a million files, none of them temporary
SKIPPED = (".unpacked", ".locks")


def temporary_beside(path: Path) -> Path:
    """A name that only this call uses, in the folder of `path`."""
    return path.with_name(f".{path.name[:150]}.{unique()}.tmp")


def unique() -> str:
    """HOST-PID-RANDOM: no two processes, on whichever machine, get the same."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


@cache
def _host() -> str:
    known = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            path = Path(source)
            known.append(os.readlink(path) if path.is_symlink() else path.read_text(encoding="ascii"))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written anywhere below `folder`; what is being written stays."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(SKIPPED)]
        for name in [*folders, *files]:
            if name.startswith(".") and _is_litter(Path(at) / name):
                remove(Path(at) / name)
                if name in folders:
                    folders.remove(name)


def sweep_beside(path: Path) -> None:
    """The same for temporary names of `path` alone, in a folder that may belong to others."""
    for other in _listed(path.parent):
        if other.name.startswith(f".{path.name[:150]}.") and _is_litter(other):
            remove(other)


def _listed(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from list(folder.iterdir())


def _is_litter(path: Path) -> bool:
    own = OWN.fullmatch(path.name)
    if own and own["host"] == _host():
        return not _alive(int(own["pid"]))
    if own or EARLIER.fullmatch(path.name):
        with suppress(FileNotFoundError):  # finished or removed by others meanwhile
            return time.time() - path.lstat().st_mtime > ABANDONED
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def remove(path: Path) -> None:
    """A file or a folder with all that is in it, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
