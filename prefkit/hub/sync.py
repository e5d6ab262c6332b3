"""Copy a run's tables to and from a folder or an object store, for machines that share no folder.

Parts never change, so each side gets the parts that it lacks; only those of live votes change, and are copied from the
run whose server stored the votes. Settings must be equal on both sides; requests are united. Decisions, pairs, trainings
and results stay where they were made.

Any number of machines may sync with one target at the same moment. Settings and requests reach the target before the
parts that were made with them, and are listed after them, so a machine that sees a part sees its settings and requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.sync_requests import runs_of, unite
from prefkit.hub.target import Target
from prefkit.output import Progress
from prefkit.store.files import create_json, read_json, remedy_for, unreadable
from prefkit.store.run import Store
from prefkit.store.seal import verify
from prefkit.store.table import compare_settings

THREADS = 8  # concurrent copies
#: folders of a run that hold tables; each model of an evaluation has a run folder of its own
_RUN = r"(eval/[^/]+/[^/]+/[^/]+/)?"
_TABLE = _RUN + r"((candidates|scores|comparisons)/[^/]+|inputs)/"
#: where files that match the patterns below are, seen from a run folder or a run folder in an evaluation
PLACES = ("*.*", "inputs/*.*", "candidates/*/*.*", "scores/*/*.*", "comparisons/*/*.*")
PART = re.compile(_TABLE + r"part-[^/]+\.parquet")
SPEC = re.compile(_TABLE + r"spec\.json|eval/[^/]+/fingerprint\.json")
LIVE = re.compile(r"comparisons/[^/]+/part-live-([0-9a-f]{10})-(person-[0-9a-f]{12})\.parquet")  # see Ballot
OTHER = re.compile(_RUN + r"(run\.json|recipe\.yaml|prompts\.jsonl)")  # copied to the side that lacks it
Sizes = dict[str, int | None]  # name of a file in a run -> bytes, None if unknown


def sync(folder: Path, url: str) -> dict[str, int]:
    """Copy to each side the parts of tables that it lacks. Returns counts of pushed and pulled parts.

    Raises FingerprintError if a table has other settings on the other side, and UsageError for a request that differs
    or a target in `folder`; nothing is copied then, except what another machine's sync at the same moment has caused to differ.
    """
    Store(folder).check_single()
    target = Target(url)
    if target.local and Path(target.root).resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"sync: the target {url} is the run folder itself, or inside it. Give another folder or a URL."
        )
    with target.errors(), TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        ours, theirs = listed(partial(own_names, folder)), listed(target.names)
        if "run.json" not in ours | theirs:
            raise UsageError(f"neither {folder} nor {url} contains a run. Start with prefkit generate {folder}.")
        for name in sorted(filter(SPEC.fullmatch, ours.keys() & theirs.keys())):
            _compare(folder, target, name, scratch)
        united = [unite(folder, target, run, theirs, scratch) for run in sorted(runs_of(ours | theirs))]
        for pattern in (OTHER, SPEC):
            for name in sorted(filter(pattern.fullmatch, ours.keys() ^ theirs.keys())):
                _copy_small(folder, target, name, name in theirs, scratch)
        for write in united:
            write()
        pushed, pulled = _to_copy(folder, target, ours, theirs, scratch)
        _all([partial(_push, folder, target, name) for name in pushed], "push")
        _all([partial(target.get, name, folder / name, verify) for name in pulled], "pull")
    return {"pushed": len(pushed), "pulled": len(pulled)}


def listed(names: Callable[[], Sizes]) -> Sizes:
    """List a side twice: parts first, then all other files, so that the settings and requests of all parts are listed."""
    parts = {name: size for name, size in names().items() if PART.fullmatch(name)}
    return parts | {name: size for name, size in names().items() if not PART.fullmatch(name)}


def own_names(folder: Path) -> Sizes:
    """Return {name: bytes} of the files of a run, also behind links to folders."""
    places = [folder, *folder.glob("eval/*/*/*")]
    paths = [path for place in places for pattern in PLACES for path in place.glob(pattern)]
    sizes: Sizes = {}
    for path in (*paths, *folder.glob("eval/*/fingerprint.json")):
        with suppress(FileNotFoundError):  # another process has just renamed or removed it
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


def _compare(folder: Path, target: Target, name: str, scratch: Path) -> None:
    """Raise FingerprintError if settings differ; a judge's rates ("measured") grow with its verdicts and may differ."""
    target.get(name, scratch / name, read_json)
    stored, own = (
        {key: value for key, value in read_json(place / name).items() if key != "measured"}
        for place in (scratch, folder)
    )
    remedy = f"Sync to another place, or remove this folder or {target.url}/{PurePosixPath(name).parent}."
    compare_settings((folder / name).parent, own, stored, remedy)


def _copy_small(folder: Path, target: Target, name: str, pull: bool, scratch: Path) -> None:
    """Copy a file to the side that lacked it when it was listed; settings that it has got meanwhile must be equal."""
    if not pull:
        created = target.create(folder / name, name)
    elif SPEC.fullmatch(name):
        target.get(name, scratch / name, read_json)
        created = create_json(folder / name, read_json(scratch / name))
    else:
        target.get(name, folder / name, read_json if name.endswith(".json") else None)
        return
    if not created and SPEC.fullmatch(name):
        _compare(folder, target, name, scratch)


def _to_copy(folder: Path, target: Target, ours: Sizes, theirs: Sizes, scratch: Path) -> tuple[list[str], list[str]]:
    """Return (parts to push, parts to pull)."""
    pushed, pulled = (sorted(filter(PART.fullmatch, a.keys() - b.keys())) for a, b in ((ours, theirs), (theirs, ours)))
    both = set(filter(PART.fullmatch, ours.keys() & theirs.keys()))
    for name in sorted(both):
        if not LIVE.fullmatch(name) and ours[name] != theirs[name]:  # one was not copied completely, or is damaged
            target.get(name, scratch / name)
            if not _sound(folder / name):
                pulled.append(name)
            elif not _sound(scratch / name):
                pushed.append(name)
    return _with_live(folder, target, (both, pushed, pulled), scratch)


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
            target.remove(name)
            pulled.remove(name)
    for name in sorted(filter(LIVE.fullmatch, both)):
        target.get(name, scratch / name)
        if (scratch / name).read_bytes() != (folder / name).read_bytes():
            (pushed if votes_of(name).exists() else pulled).append(name)
    return pushed, pulled


def _sound(path: Path) -> bool:
    try:
        verify(path)
    except Exception:  # pyarrow has many
        return False
    return True


def _push(folder: Path, target: Target, name: str) -> None:
    try:
        verify(folder / name)
    except FileNotFoundError:  # another process has set it aside, or --redo has moved its table
        return
    except Exception as error:  # a damaged part must not spread
        raise unreadable(folder / name, error, remedy_for(folder / name)) from error
    target.put(folder / name, name)


def _all(copies: Iterable[Callable[[], None]], label: str) -> None:
    copies = list(copies)

    def run(copy: Callable[[], Any]) -> None:
        copy()
        progress.update()

    with Progress(label, len(copies)) as progress, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, copies))
