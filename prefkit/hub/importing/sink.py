"""What an import has done so far, and the tables it writes to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.earlier import discard
from prefkit.hub.importing.image_check import Checked
from prefkit.hub.importing.index import Known, stage_requests
from prefkit.hub.importing.records import Asked, Item
from prefkit.output import note
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.table import Table, candidate_row, comparison_row, request_row
from prefkit.types import Candidate, Comparison, Request, ScorerSpec, digest, split_of

FLUSH_BYTES = 32 << 20
FLUSH_ITEMS = 4096
UNKNOWN_SEED = -1
ANONYMOUS = "people"  # the judge where a source does not say who judged
REMEDY = "Give the import another --name."
STORED = ("candidates", "comparisons", "scores")
COUNTS = ("items", "failed", "requests", "candidates", "comparisons", "scores", "known")


@dataclass
class Progress:
    """How far an import is: RUN/.imports/NAME.json. `done` items are stored, and `trace` hashes what they said."""

    path: Path
    done: int = 0
    trace: str = ""
    failed: dict[str, str] = field(default_factory=dict)  # item number -> where and why
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    pictures: int = 0  # of the items that could be used, known ones too
    whole: bool = False  # it succeeded: no more failures than were allowed, and --pairs wrote pairs

    @classmethod
    def open(cls, path: Path, what: Mapping[str, Any], store: Store) -> Progress:
        """An import that stored nothing, or that failed with other options, gives way to the corrected one.

        Raises UsageError where NAME was used for something else.
        """
        if not path.exists():
            return cls(path)
        found = read_json(path)
        then = found.pop("what")
        before = cls(path, **{"whole": True} | found)  # earlier versions do not say; what they imported is kept
        if then == what:
            before.pictures = before.pictures or before.counts["candidates"] + before.counts["known"]
            return before
        if any(before.counts[kind] for kind in STORED) and (before.whole or then["source"] != what["source"]):
            raise UsageError(
                f"import: {path.stem} is the name of an import of something else, or with other options. {REMEDY}"
            )
        if any(before.counts[kind] for kind in STORED):
            note(f"The earlier import of this source as {path.stem} failed; its rows are replaced.")
        discard(store, path.stem)
        path.unlink()
        return cls(path)

    def save(self, what: Mapping[str, Any]) -> None:
        state = {k: v for k, v in asdict(self).items() if k != "path"}
        write_json(self.path, {"what": what, **state})


def trace(before: str, item: Item, used: bool) -> str:
    """A hash of all items so far. Of one that could not be used nothing but its place counts, so that it can be mended."""
    if not used:
        return hashlib.sha256(before.encode()).hexdigest()
    asked = None if item.asked is None else (item.asked.prompt, item.asked.split)
    said = [(c.id_a, c.id_b, c.outcome, c.judge) for c in item.comparisons]
    text = repr((before, item.where, asked, [p.key for p in item.pictures], said))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Sink:
    """Items to rows, rows to parts. `name` is that of the candidates, comparisons and, with a suffix, of the scores."""

    def __init__(
        self, store: Store, name: str, known: Known, keep: bool, test_share: float, spec: Mapping[str, Any]
    ) -> None:
        self.store, self.name, self.known, self.keep, self.test_share = store, name, known, keep, test_share
        self.spec = dict(spec)
        self.scratch = store.folder / ".imports" / f"{name}.unpacked"  # goes when the import ends
        self.staged = stage_requests(store, name)
        self.requests: list[dict[str, Any]] = []
        self.tables: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.claimed: dict[tuple[str, str], Table] = {}
        self.size = 0
        self.repeated = 0  # ratings of images that have one of this name

    def put(self, number: int, item: Item, checked: Mapping[str, Checked], counts: dict[str, int]) -> None:
        """The rows of the item of this number, whose images are sound."""
        ids: dict[str, str] = {}
        if item.asked is not None:
            request = self._request(item, counts)
            for picture in item.pictures:
                ids[picture.key] = self._candidate(picture, checked[picture.key], request, counts)
        for place, c in enumerate(item.comparisons):
            self._comparison(c, ids, f"{number}.{place}", counts)
        for key, rating, score in item.scores:
            alias = f"{self.name}.{rating}"
            self._table("scores", alias)
            if not self.known.row(f"scores/{alias}", ids[key]):
                self.repeated += 1
            else:
                value, error = score.value, score.error
                if value is not None and not math.isfinite(value):
                    value, error = None, f"the rating is {value}"
                row = {"id": ids[key], "value": value, "aspects": None, "text": score.text, "error": error}
                self.tables.setdefault(("scores", alias), []).append(row)
                counts["scores"] += 1

    def leak(self, item: Item) -> str | None:
        """Why an item must stay out: it is held out, and its prompt is one that is trained on."""
        said = item.asked.split if item.asked is not None else None
        if item.asked is None or said in (None, "train") or self.known.split(_request_id(item.asked)) != "train":
            return None
        return f"it is in split {said}, but its prompt is in split train already; a prompt is in one split only"

    def _request(self, item: Item, counts: dict[str, int]) -> Request:
        asked = item.asked
        assert asked is not None
        split = asked.split or split_of(asked.prompt, self.test_share)
        request = Request(_request_id(asked), asked.prompt, split, asked.extra)
        if self.known.request(request.request_id, split):
            self.requests.append(request_row(request))
            counts["requests"] += 1
        return request

    def _candidate(self, picture: Any, checked: Checked, request: Request, counts: dict[str, int]) -> str:
        """Its id: the sha256; where the same image answers another request too, a hash of both."""
        cid = checked.sha256
        if self.known.owner(cid) not in (None, request.request_id):
            cid = digest(checked.sha256, request.request_id, length=64)
        index = self.known.index(request.request_id)
        if not self.known.candidate(cid, request.request_id):
            counts["known"] += 1
            return cid
        stays = self.keep and picture.path is not None and self.scratch not in picture.path.parents
        candidate = Candidate(
            id=cid,
            request_id=request.request_id,
            index=index,
            seed=UNKNOWN_SEED if picture.seed is None else picture.seed,
            image=None if stays else checked.data,
            path=str(picture.path.resolve()) if stays else None,
            sha256=checked.sha256,
            extra=picture.extra,
        )
        self._table("candidates", self.name)
        self.tables.setdefault(("candidates", self.name), []).append(candidate_row(candidate))
        self.size += 0 if stays else len(checked.data)
        counts["candidates"] += 1
        return cid

    def _comparison(self, c: Comparison, ids: Mapping[str, str], number: str, counts: dict[str, int]) -> None:
        """Of votes without a name every row is somebody's: what a second one says of a pair counts as another person's."""
        a, b = ids.get(c.id_a, c.id_a), ids.get(c.id_b, c.id_b)
        row = comparison_row(Comparison(**{**asdict(c), "id_a": a, "id_b": b}))
        self._table("comparisons", self.name)
        if c.judge == ANONYMOUS:
            row["id"] = digest(row["id"], number)
        if self.known.row(f"comparisons/{self.name}", row["id"]):
            if c.judge == ANONYMOUS and not self.known.row(f"pairs/{self.name}", pair_of(row)):
                row["judge"] = f"{ANONYMOUS}-{number}"
            self.tables.setdefault(("comparisons", self.name), []).append(row)
            counts["comparisons"] += 1

    def _table(self, kind: str, alias: str) -> Table:
        if (kind, alias) not in self.claimed:
            table = getattr(self.store, kind)(alias)
            spec = self.spec | {"name": alias}
            if kind == "scores":
                spec = asdict(rating_spec(alias)) | {"imported": self.spec}
            table.claim(spec, REMEDY, empty=not table.parts())
            if kind != "candidates":
                self.known.fill_table(f"{kind}/{alias}", table)
            if kind == "comparisons":
                for part in table.batches(["id_a", "id_b", "aspect"]):
                    for row in part.to_pylist():
                        self.known.row(f"pairs/{alias}", pair_of(row))
            self.claimed[kind, alias] = table
        return self.claimed[kind, alias]

    def full(self) -> bool:
        return self.size >= FLUSH_BYTES or sum(map(len, self.tables.values())) >= FLUSH_ITEMS

    def flush(self) -> None:
        self.staged.append(self.requests)
        for (kind, alias), rows in self.tables.items():
            self._table(kind, alias).append(rows)
        self.requests, self.tables, self.size = [], {}, 0


def _request_id(asked: Asked) -> str:
    return digest(asked.prompt, dict(asked.extra))


def pair_of(row: Mapping[str, Any]) -> str:
    """What a verdict is about, whichever image came first."""
    return digest(sorted((row["id_a"], row["id_b"])), row["aspect"] or "")


def rating_spec(alias: str) -> ScorerSpec:
    """What people's ratings mean. A name that ends in `rank` counts from the best, within its request."""
    rank = alias.endswith("rank")
    return ScorerSpec(
        name=alias,
        version="imported",
        formula="as published" + (", 1 is the best" if rank else ""),
        higher_is_better=not rank,
        scope="within_request" if rank else "absolute",
    )
