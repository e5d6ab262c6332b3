"""The voting page: one static file for any number of annotators, and the key to it, which stays in the run folder."""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.human.pairs import VotePair, find_set, of_eval, within_requests
from prefkit.output import warn
from prefkit.report import html
from prefkit.store import Store
from prefkit.store.files import read_json, write_atomic, write_json
from prefkit.types import digest

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
#: above this many bytes a page is slow to open and to send, and --sidecar is advised
LARGE = 60 << 20


@dataclass(frozen=True)
class Ask:
    """What is asked. models: two names of an evaluation, or none for candidates of the run against each other.

    n: pairs; repeats: how many of them are shown again with sides swapped (None: a tenth); side: bound in pixels;
    sidecar: images in a folder beside the page instead of in it.
    """

    models: tuple[str, ...] = ()
    eval: str | None = None
    set: str | None = None
    n: int = 100
    repeats: int | None = None
    seed: int = 0
    side: int = 768
    sidecar: bool = False
    question: str = "Which picture is better?"


def write_vote_page(store: Store, ask: Ask) -> dict[str, Any]:
    """Write RUN/vote-PAGE.html and RUN/votes/PAGE.json (the key). Returns {page, path, key, pairs, repeats, bytes}.

    The same question on the same candidates gives the same page id, so that votes on either copy can be imported.
    Raises UsageError where there is nothing to compare.
    """
    if ask.models:
        name, set_name = find_set(store, ask.models, ask.eval, ask.set)
        pairs = of_eval(store, name, set_name, ask.models, ask.n, ask.seed)
        stores = {model: Store(store.eval(name) / set_name / model) for model in ask.models}
        source = {"eval": name, "set": set_name, "models": list(ask.models)}
    else:
        if ask.eval or ask.set:
            raise UsageError("--eval and --set say where --models are compared; add --models base,NAME.")
        pairs, stores, source = within_requests(store, ask.n, ask.seed), {"": store}, {}
    pairs, sources = _with_pictures(stores, pairs, ask.side)
    salt = _salt(store)
    repeats = min(len(pairs), ask.repeats if ask.repeats is not None else -(-len(pairs) // 10))
    page = digest("vote", salt, [asdict(pair) for pair in pairs], repeats, ask.question, length=10)
    items = _items(pairs, repeats, salt, page)
    key = {
        "version": VERSION,
        "page": page,
        "run": html.plain(store.folder.resolve().name, 80),
        "seed": ask.seed,
        **source,
    }
    key |= {"question": ask.question, "pairs": items}
    path = store.folder / f"vote-{page}.html"
    pictures = _encode(sources, pairs, ask, salt, page, path.with_name(f"{path.stem}-images"))
    text = _page(store, ask, key, pictures, salt)
    write_json(store.folder / "votes" / f"{page}.json", key)
    write_atomic(path, text)
    if len(text) > LARGE:
        warn(f"{path} has {len(text) >> 20} MB. --sidecar keeps the images beside it, --side 512 makes them smaller.")
    found = {"page": page, "path": str(path), "pairs": len(pairs), "repeats": repeats, "bytes": len(text.encode())}
    return {**found, "key": str(store.folder / "votes" / f"{page}.json")}


def _salt(store: Store) -> str:
    """One of the run, so that an annotator has one name on all its pages; the tables do not hold it."""
    path = store.folder / "votes" / "salt.json"
    if not path.exists():
        write_json(path, {"salt": secrets.token_hex(16)})
    return str(read_json(path)["salt"])


def _items(pairs: list[VotePair], repeats: int, salt: str, page: str) -> list[dict[str, Any]]:
    """The pairs under names that say nothing, then those shown again (`again`: the name of the first showing)."""
    found = [{"pair": digest(salt, page, i, length=12), **asdict(pair)} for i, pair in enumerate(pairs)]
    chosen = sorted(found, key=lambda item: digest("again", salt, item["pair"]))[:repeats]
    again = [
        {**item, "pair": digest(salt, page, "again", item["pair"], length=12), "again": item["pair"]} for item in chosen
    ]
    return [*found, *again]


def _with_pictures(
    stores: dict[str, Store], pairs: list[VotePair], side: int
) -> tuple[list[VotePair], dict[str, bytes]]:
    """The pairs whose two images can be read, and these by id, as they are shown. Raises UsageError where no pair is left."""
    wanted: dict[str, set[str]] = {name: set() for name in stores}
    for pair in pairs:
        wanted[pair.model_a].add(pair.a)
        wanted[pair.model_b].add(pair.b)
    found: dict[str, bytes] = {}
    for name, store in stores.items():
        for c in store.iter_candidates(
            ids=wanted[name], columns=["id", "request_id", "index", "seed", "image", "path"]
        ):
            try:
                found[c.id] = _webp(c.pil(), side)  # at once: decoded, a thousand pictures fill the memory
            except (OSError, ValueError, SyntaxError) as error:
                warn(f"candidate {c.id} is left out: its image cannot be read ({' '.join(str(error).split())[:120]}).")
    kept = [pair for pair in pairs if pair.a in found and pair.b in found]
    if not kept:
        raise UsageError(
            "no pair has two images that can be read. `prefkit generate` makes those that are damaged again."
        )
    return kept, found


def _encode(
    images: dict[str, bytes], pairs: list[VotePair], ask: Ask, salt: str, page: str, folder: Path
) -> dict[str, str]:
    """Source of the image by candidate id: a data URI, or a file under `folder` whose name says nothing."""
    place: Callable[[str, bytes], str] = _data_uri
    if ask.sidecar:

        def place(name: str, data: bytes) -> str:
            file = f"{digest(salt, page, name, length=16)}.webp"
            write_atomic(folder / file, data)
            return f"{folder.name}/{file}"

    wanted: Iterable[str] = dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b))
    return {name: place(name, images[name]) for name in wanted}


def _data_uri(name: str, data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def _webp(image: Image, side: int) -> bytes:
    """At most `side` pixels wide and high, without metadata; at a quality whose traces nobody votes on."""
    from PIL import Image as pil

    image.thumbnail((side, side), pil.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=92, method=2)
    return buffer.getvalue()


def _page(store: Store, ask: Ask, key: dict[str, Any], pictures: dict[str, str], salt: str) -> str:
    prompts = {r.request_id: r.prompt for r in store.requests()}
    for model in ask.models:
        prompts |= {r.request_id: r.prompt for r in Store(store.eval(key["eval"]) / key["set"] / model).requests()}
    # images in the order of a hash: their place in the file must not say which model made them
    names = sorted(pictures, key=lambda name: digest(salt, key["page"], "place", name))
    place = {name: i for i, name in enumerate(names)}
    number = {item["pair"]: i for i, item in enumerate(key["pairs"])}
    items = [
        {
            "pair": item["pair"],
            "prompt": html.plain(prompts.get(item["request_id"], ""), 1200),
            "a": place[item["a"]],
            "b": place[item["b"]],
            **({"again": number[item["again"]]} if "again" in item else {}),
        }
        for item in key["pairs"]
    ]
    data = {"version": VERSION, "page": key["page"], "run": key["run"], "salt": salt, "pairs": items}
    data["images"] = [pictures[name] for name in names]
    here = Path(__file__)
    body = here.with_name("vote.html").read_text(encoding="utf-8").replace("{question}", html.text(ask.question, 200))
    return html.page(
        ask.question,
        body + html.data("data", data),
        script=here.with_name("vote.js").read_text(encoding="utf-8"),
        style=here.with_name("vote.css").read_text(encoding="utf-8"),
        images="data: file: 'self'" if ask.sidecar else "data:",
    )
