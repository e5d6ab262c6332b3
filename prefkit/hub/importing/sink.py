"""The state of an import, and the rows that the imported items add to the tables of a run."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.image_check import Checked
from prefkit.hub.importing.index import RunIndex, merged_requests, rewrite_requests, stage_requests
from prefkit.hub.importing.records import Asked, Item, Picture
from prefkit.output import note
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.table import Table, candidate_row, comparison_row, request_row
from prefkit.types import Candidate, Comparison, Request, ScorerSpec, digest, split_of

FLUSH_BYTES = 32 << 20
FLUSH_ITEMS = 4096
UNKNOWN_SEED = -1
ANONYMOUS = "people"  # judge name for votes of unnamed annotators
REMEDY = "Give the import another --name."
STORED = ("candidates", "comparisons", "scores")
COUNTS = ("items", "failed", "requests", *STORED, "known")


class ChangedImport(UsageError):
    """An earlier import holds the name, and its settings or rows differ."""


@dataclass
class Progress:
    """The state of an import, RUN/.imports/NAME.json: its first `done` items are stored, and `trace` is their hash."""

    path: Path
    done: int = 0
    trace: str = ""
    failed: dict[str, str] = field(default_factory=dict)  # item number -> where and why
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    pictures: int = 0  # images in the usable items, including those that the run already had
    whole: bool = False  # True after success: few enough failures, and pairs written if --pairs was given
    began: bool = True  # True if this command has begun the import; not stored

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], store: Store) -> Progress:
        """Return the state to resume. A state with other settings is discarded if its import failed or stored nothing.

        Raises UsageError if NAME belongs to a successful import with other settings, or to one of another source.
        """
        if not path.exists():
            tables = (store.candidates(path.stem), store.comparisons(path.stem))
            return cls(path, began=not any(table.parts() for table in tables))
        state = read_json(path)
        earlier = state.pop("what")
        progress = cls(path, **{"whole": True} | state, began=False)  # files of earlier versions lack the key
        if earlier == settings:
            progress.pictures = progress.pictures or progress.counts["candidates"] + progress.counts["known"]
            return progress
        if any(progress.counts[kind] for kind in STORED):
            if progress.whole or earlier["source"] != settings["source"]:
                raise ChangedImport(
                    f"import: {path.stem} was imported from another source or with other options. {REMEDY}"
                )
            note(f"The earlier import of this source as {path.stem} failed; its rows are replaced.")
        discard(store, path.stem)
        path.unlink()
        return cls(path)

    def save(self, settings: Mapping[str, Any]) -> None:
        state = {k: v for k, v in asdict(self).items() if k not in ("path", "began")}
        write_json(self.path, {"what": settings, **state})

    def forget(self, store: Store) -> None:
        """Remove everything that a failed import has stored, unless an earlier command has begun it."""
        if self.began:
            discard(store, self.path.stem)
            self.path.unlink(missing_ok=True)
            for kind in (*STORED, "pairs"):
                with suppress(OSError):  # other commands have filled it
                    (store.folder / kind).rmdir()


def trace(before: str, item: Item, used: bool) -> str:
    """Return the hash of all items so far.

    It ignores the content of failed items, so that the source can be fixed, and the content of image files, which are
    known by their names.
    """
    if not used:
        return hashlib.sha256(before.encode()).hexdigest()
    asked = None if item.asked is None else (item.asked.prompt, item.asked.split)
    pictures = [(p.key, zlib.crc32(p.data or b"") if p.path is None else p.path.name) for p in item.pictures]
    verdicts = [(c.id_a, c.id_b, c.outcome, c.judge, c.probability, c.aspect) for c in item.comparisons]
    ratings = [(key, name, score.value) for key, name, score in item.scores]
    text = repr((before, item.where, asked, pictures, verdicts, ratings))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class Sink:
    """Turns items into rows of the tables candidates/NAME, comparisons/NAME and scores/NAME.rating."""

    store: Store
    name: str
    index: RunIndex
    counts: dict[str, int]
    keep: bool  # False: copy image files into the run
    test_share: float
    spec: dict[str, Any]
    requests: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    tables: dict[tuple[str, str], Table] = field(default_factory=dict)
    size: int = 0  # bytes of the images and payloads in `rows`
    repeated: int = 0  # ratings of images that already have one under this name

    def __post_init__(self) -> None:
        self.unpacked = self.store.folder / ".imports" / f"{self.name}.unpacked"  # removed when the import ends
        self.staged = stage_requests(self.store, self.name)

    def put(self, number: int, item: Item, checked: Mapping[str, Checked]) -> None:
        """Add the rows of item `number`, whose images have been checked."""
        ids: dict[str, str] = {}
        if item.asked is not None:
            request = self._request(item.asked)
            for picture in item.pictures:
                ids[picture.key] = self._candidate(picture, checked[picture.key], request)
        for position, c in enumerate(item.comparisons):
            self._comparison(c, ids, f"{number}.{position}")
        for key, rating, score in item.scores:
            alias = f"{self.name}.{rating}"
            self._table("scores", alias)
            if not self.index.add_row(f"scores/{alias}", ids[key]):
                self.repeated += 1
                continue
            value, error = score.value, score.error
            if value is not None and not math.isfinite(value):
                value, error = None, f"the rating is {value}"
            row = {"id": ids[key], "value": value, "aspects": None, "text": score.text, "error": error}
            self._add("scores", alias, row)

    def leak(self, item: Item) -> str | None:
        """Return why a held-out item must be left out (its prompt is in split train), or None if it may be stored."""
        split = item.asked.split if item.asked is not None else None
        if item.asked is None or split in (None, "train") or self.index.split_of(_request_id(item.asked)) != "train":
            return None
        return f"it is in split {split}, but its prompt is already in split train; a prompt must be in one split only"

    def _request(self, asked: Asked) -> Request:
        split = asked.split or split_of(asked.prompt, self.test_share)
        request = Request(_request_id(asked), asked.prompt, split, asked.extra)
        if self.index.add_request(request.request_id, split):
            self.requests.append(request_row(request))
            self.counts["requests"] += 1
        return request

    def _candidate(self, picture: Picture, checked: Checked, request: Request) -> str:
        """Add the image or payload and return its id.

        The id is the SHA-256 or, if another request already has it, a hash of SHA-256 and request. The id of a payload
        with an image, such as a rendered mesh, is a hash of both, because two meshes may look alike.
        """
        cid = checked.sha256
        if picture.payload is not None and checked.data is not None:
            cid = digest(cid, hashlib.sha256(picture.payload).hexdigest(), length=64)
        if self.index.request_of(cid) not in (None, request.request_id):
            cid = digest(cid, request.request_id, length=64)
        index = self.index.next_index(request.request_id)
        if not self.index.add_candidate(cid, request.request_id):
            self.counts["known"] += 1
            return cid
        path = picture.path if self.keep and picture.path and self.unpacked not in picture.path.parents else None
        candidate = Candidate(
            id=cid,
            request_id=request.request_id,
            index=index,
            seed=UNKNOWN_SEED if picture.seed is None else picture.seed,
            image=None if path else checked.data,
            path=str(path.resolve()) if path else None,
            sha256=checked.sha256,
            payload=picture.payload,
            extra=picture.extra,
        )
        self._add("candidates", self.name, candidate_row(candidate))
        self.size += len(picture.payload or b"") + (0 if path else len(checked.data or b""))
        return cid

    def _comparison(self, c: Comparison, ids: Mapping[str, str], number: str) -> None:
        """Add a verdict. Further anonymous votes on the same pair are stored under separate annotator names."""
        a, b = ids.get(c.id_a, c.id_a), ids.get(c.id_b, c.id_b)
        row = comparison_row(Comparison(**{**asdict(c), "id_a": a, "id_b": b}))
        self._table("comparisons", self.name)
        if c.judge == ANONYMOUS:
            row["id"] = digest(row["id"], number)
        if self.index.add_row(f"comparisons/{self.name}", row["id"]):
            if c.judge == ANONYMOUS and not self.index.add_row(f"pairs/{self.name}", _pair_key(row)):
                row["judge"] = f"{ANONYMOUS}-{number}"
            self._add("comparisons", self.name, row)

    def _add(self, kind: str, alias: str, row: dict[str, Any]) -> None:
        self._table(kind, alias)
        self.rows.setdefault((kind, alias), []).append(row)
        self.counts[kind] += 1

    def _table(self, kind: str, alias: str) -> Table:
        """Return a table of this import; the first call claims and indexes it."""
        if (kind, alias) not in self.tables:
            table = getattr(self.store, kind)(alias)
            spec = self.spec | {"name": alias}
            if kind == "scores":
                spec = asdict(_rating_spec(alias)) | {"imported": self.spec}
            table.claim(spec, REMEDY, empty=not table.parts())
            if kind != "candidates":
                self.index.add_table(f"{kind}/{alias}", table)
            if kind == "comparisons":
                for part in table.batches(["id_a", "id_b", "aspect"]):
                    for row in part.to_pylist():
                        self.index.add_row(f"pairs/{alias}", _pair_key(row))
            self.tables[kind, alias] = table
        return self.tables[kind, alias]

    def full(self) -> bool:
        return self.size >= FLUSH_BYTES or sum(map(len, self.rows.values())) >= FLUSH_ITEMS

    def flush(self) -> None:
        self.staged.append(self.requests)
        for (kind, alias), rows in self.rows.items():
            self._table(kind, alias).append(rows)
        self.requests, self.rows, self.size = [], {}, 0


def _request_id(asked: Asked) -> str:
    return asked.request_id or digest(asked.prompt, dict(asked.extra))


def _pair_key(row: Mapping[str, Any]) -> str:
    """Return a hash of a verdict's aspect and pair, equal for both orders of the images."""
    return digest(sorted((row["id_a"], row["id_b"])), row["aspect"] or "")


def _rating_spec(alias: str) -> ScorerSpec:
    """Return the spec of imported ratings; if the name ends in `rank`, they are ranks within a request, 1 the best."""
    rank = alias.endswith("rank")
    return ScorerSpec(
        name=alias,
        version="imported",
        formula="as published" + (", 1 is the best" if rank else ""),
        higher_is_better=not rank,
        scope="within_request" if rank else "absolute",
    )


def totals(store: Store, name: str, pictures: int) -> dict[str, int]:
    """Return the number of rows that the import `name` has added, by kind. pictures: the count in `Progress`."""
    candidates = _rows(store.candidates(name))
    return {
        "requests": _rows(merged_requests(store, name)) + _rows(stage_requests(store, name)),
        "candidates": candidates,
        "comparisons": _rows(store.comparisons(name)),
        "scores": sum(map(_rows, ratings(store, name))),
        "known": max(0, pictures - candidates),
    }


def discard(store: Store, name: str) -> None:
    """Remove the tables of a failed import, and its requests unless candidates of other generators answer them."""
    for table in (store.candidates(name), store.comparisons(name), *ratings(store, name)):
        _clear(table)
    merged = merged_requests(store, name)
    requests = set(merged.read(["request_id"]).column("request_id").to_pylist())
    for other in store.names("candidates") if requests else ():
        requests -= set(store.candidates(other).read(["request_id"]).column("request_id").to_pylist())
    if requests:
        rewrite_requests(store, without=requests)
    _clear(merged)
    _clear(stage_requests(store, name))


def ratings(store: Store, name: str) -> list[Table]:
    """Return the score tables that the import `name` wrote. Names may contain dots: `a.b.q` belongs to the import `a.b`."""
    known = {*store.names("candidates"), *(path.stem for path in (store.folder / ".imports").glob("*.json"))}
    longer = tuple(f"{other}." for other in known if other.startswith(f"{name}."))
    aliases = [
        alias for alias in store.names("scores") if alias.startswith(f"{name}.") and not alias.startswith(longer)
    ]
    tables = [store.scores(alias) for alias in aliases]
    return [table for table in tables if "imported" in (table.spec() or {})]


def _rows(table: Table) -> int:
    return sum(len(part) for part in table.batches([table.schema.names[0]]))


def _clear(table: Table) -> None:
    """Remove the files of a table; other files in its folder stay."""
    for path in (*table.parts(), table.folder / "spec.json", table.folder / "pace.json"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        table.folder.rmdir()
