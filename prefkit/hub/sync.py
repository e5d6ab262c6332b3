"""Copy a run's tables to and from a folder or an object store, for machines that share no folder.

Parts never change, so each side gets the parts that it lacks; only those of live votes change, and are copied from the
run whose server stored the votes. Settings must be equal on both sides; requests are united. Pairs, trainings and
results stay where they were made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from prefkit.errors import DamagedError, PrefkitError, StoreError, UsageError
from prefkit.output import Progress, message
from prefkit.store.files import read_json, remedy_for, write_whole
from prefkit.store.run import Store
from prefkit.store.seal import open_sealed
from prefkit.store.table import check_fingerprint, compare_settings

THREADS = 8  # concurrent copies
#: folders of a run that hold tables; each model of an evaluation has a run folder of its own
_RUN = r"(eval/[^/]+/[^/]+/[^/]+/)?"
_TABLE = _RUN + r"((candidates|scores|comparisons)/[^/]+|inputs)/"
PART = re.compile(_TABLE + r"part-[^/]+\.parquet")
SPEC = re.compile(_TABLE + r"spec\.json|eval/[^/]+/fingerprint\.json")
REQUESTS = re.compile(_RUN + r"requests\.parquet")
LIVE = re.compile(r"comparisons/[^/]+/part-live-([0-9a-f]{10})-(person-[0-9a-f]{12})\.parquet")  # see Ballot
OTHER = re.compile(_RUN + r"(run\.json|recipe\.yaml|prompts\.jsonl)")  # copied to the side that lacks it


class Target:
    """A folder `url` that fsspec reads and writes: s3://bucket/run, gs://bucket/run, a path, ..."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self.errors():
            from fsspec.core import url_to_fs

            self.fs, self.root = url_to_fs(self.url)
            self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of the file system as prefkit's, with the target's name."""
        try:
            yield
        except PrefkitError:
            raise
        except ImportError as error:
            raise UsageError(
                f"{self.url}: {message(str(error), 200).rstrip('.')} (for s3://, run pip install s3fs)."
            ) from error
        except ValueError as error:
            raise UsageError(f"{self.url}: {message(str(error), 200)}.") from error
        except Exception as error:  # each file system has errors of its own
            raise StoreError(f"{self.url} could not be read or written: {message(str(error), 200)}.") from error

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def names(self) -> set[str]:
        """Return the paths of all files, relative to the target."""
        prefix = PurePosixPath(self.root)
        try:
            found = self.fs.find(self.root)
        except FileNotFoundError:
            return set()
        names = [PurePosixPath(path).relative_to(prefix) for path in found]
        return {str(name) for name in names if ".." not in name.parts}  # an object may have any name

    def put(self, source: Path, name: str) -> None:
        """Upload a file completely or not at all: an object appears when its upload ends."""
        if self.local:
            write_whole(Path(self.path(name)), lambda temporary: shutil.copyfile(source, temporary))
        else:
            self.fs.put_file(str(source), self.path(name))

    def get(self, name: str, path: Path) -> None:
        write_whole(path, lambda temporary: self.fs.get_file(self.path(name), str(temporary)))


def sync(folder: Path, url: str) -> dict[str, int]:
    """Copy to each side the parts of tables that it lacks. Returns counts of pushed and pulled parts.

    Raises FingerprintError if a table has other settings on the other side, and UsageError for a request that differs;
    nothing is copied then.
    """
    Store(folder).check_single()
    target = Target(url)
    with target.errors(), TemporaryDirectory() as scratch:
        theirs, ours = target.names(), {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        if "run.json" not in ours | theirs:
            raise UsageError(f"neither {folder} nor {url} contains a run. Start with prefkit generate {folder}.")
        for name in sorted(filter(SPEC.fullmatch, ours & theirs)):
            target.get(name, Path(scratch) / name)
            # "measured" are a judge's rates, which grow with its verdicts
            stored, own = (
                {k: v for k, v in read_json(place / name).items() if k != "measured"}
                for place in (Path(scratch), folder)
            )
            remedy = f"Sync to another place, or remove this folder or {url}/{PurePosixPath(name).parent}."
            compare_settings((folder / name).parent, own, stored, remedy)
        united = [
            unite(folder, target, name, Path(scratch)) for name in sorted(filter(REQUESTS.fullmatch, ours | theirs))
        ]
        for write in united:
            write()
        for pattern in (OTHER, SPEC):
            for name in sorted(filter(pattern.fullmatch, ours ^ theirs)):
                _copy_small(folder, target, name, name in theirs, Path(scratch))
        pushed, pulled = (sorted(filter(PART.fullmatch, names)) for names in (ours - theirs, theirs - ours))
        pushed, pulled = _with_live(folder, target, (ours & theirs, pushed, pulled), Path(scratch))
        _all([partial(_push, folder, target, name) for name in pushed], "push")
        _all([partial(_pull, folder, target, name) for name in pulled], "pull")
    return {"pushed": len(pushed), "pulled": len(pulled)}


def _with_live(
    folder: Path, target: Target, names: tuple[set[str], list[str], list[str]], scratch: Path
) -> tuple[list[str], list[str]]:
    """Return (parts to push, parts to pull), with changed parts of live votes, and remove undone ones from the target.

    names: parts on both sides, on this side only, on the target only. The side that holds RUN/votes/PAGE.ANNOTATOR.json
    stored the annotator's votes.
    """
    both, pushed, pulled = names

    def votes_of(name: str) -> Path:
        page, annotator = LIVE.fullmatch(name).groups()  # type: ignore[union-attr]
        return folder / "votes" / f"{page}.{annotator}.json"

    for name in filter(LIVE.fullmatch, list(pulled)):
        # otherwise the part here was damaged, and comes back
        if votes_of(name).exists() and all(vote["choice"] == "skip" for vote in read_json(votes_of(name))["votes"]):
            target.fs.rm_file(target.path(name))
            pulled.remove(name)
    for name in sorted(filter(LIVE.fullmatch, both)):
        target.get(name, scratch / name)
        if (scratch / name).read_bytes() != (folder / name).read_bytes():
            (pushed if votes_of(name).exists() else pulled).append(name)
    return pushed, pulled


def _copy_small(folder: Path, target: Target, name: str, pull: bool, scratch: Path) -> None:
    if not pull:
        target.put(folder / name, name)
    elif SPEC.fullmatch(name):  # a worker may have claimed the table meanwhile
        target.get(name, scratch / name)
        check_fingerprint(folder / name, read_json(scratch / name), "Sync again.")
    else:
        target.get(name, folder / name)


def unite(folder: Path, target: Target, name: str, scratch: Path) -> Callable[[], None]:
    """Return a function that writes the requests of both sides to both. Raises UsageError if one differs."""
    here = Store((folder / name).parent)
    there = Store((scratch / name).parent)
    if target.fs.exists(target.path(name)):
        target.get(name, scratch / name)
    ours, theirs = ({r.request_id: r for r in store.requests()} for store in (here, there))
    differing = next((key for key in ours if key in theirs and ours[key] != theirs[key]), None)
    if differing is not None:
        raise UsageError(
            f"request {differing!r} of {here.folder} has another prompt, split or column in {target.url}/{name}. Sync "
            "runs of the same prompts."
        )
    united = theirs | ours

    def write() -> None:
        if len(united) > len(ours):
            with here.lock("requests", seconds=60):  # a command on this machine may have added requests meanwhile
                here.write_requests((united | {r.request_id: r for r in here.requests()}).values())
        if len(united) > len(theirs):
            there.write_requests(united.values())
            target.put(scratch / name, name)

    return write


def _push(folder: Path, target: Target, name: str) -> None:
    _check(folder / name, str(folder / name), remedy_for(folder / name))
    target.put(folder / name, name)


def _pull(folder: Path, target: Target, name: str) -> None:
    shown = f"{target.url}/{name}"

    def save(temporary: Path) -> None:
        target.fs.get_file(target.path(name), str(temporary))
        _check(temporary, shown, "Remove it there, then sync from the machine that made it.")

    write_whole(folder / name, save)


def _check(part: Path, shown: str, remedy: str) -> None:
    """Raise DamagedError if `part` is damaged, so that a damaged part does not spread. shown: its name in the message."""
    import pyarrow as pa

    try:
        open_sealed(part).close()
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(
            part, f"{shown} could not be read: {message(str(error), 160).rstrip('.')}. {remedy}"
        ) from error


def _all(copies: Iterable[Callable[[], None]], label: str) -> None:
    copies = list(copies)

    def run(copy: Callable[[], Any]) -> None:
        copy()
        progress.update()

    with Progress(label, len(copies)) as progress, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, copies))
