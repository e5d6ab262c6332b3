"""The voting page: one static file for any number of annotators. The key that identifies the images stays in RUN."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from prefkit.errors import UsageError
from prefkit.human.pairs import VotePair, find_set, of_eval, within_requests
from prefkit.output import warn
from prefkit.report import html
from prefkit.report.pictures import data_uri, webp
from prefkit.store import Store
from prefkit.store.files import read_json, write_atomic, write_json
from prefkit.types import digest

VERSION = 1
PAGE = re.compile(r"[0-9a-f]{10}")
#: a page with more bytes than this is slow to open and to send; a warning recommends --sidecar
LARGE = 60 << 20


@dataclass(frozen=True)
class VoteSettings:
    """Settings of a voting page. models: two models of an evaluation, or () to compare candidates of the run.

    n: number of pairs; repeats: how many of the pairs are shown again with sides swapped (None: a tenth); side: maximum
    width and height of the images in pixels; sidecar: store the images in a folder next to the page, not inside it.
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


@dataclass(frozen=True)
class VotePage:
    """A page before it is written. key: the content of RUN/votes/PAGE.json, which names the candidates; images: WebP by
    candidate id; names: anonymous file names by candidate id; prompts: by request id; salt: of the hashed names."""

    key: dict[str, Any]
    images: dict[str, bytes]
    names: dict[str, str]
    prompts: dict[str, str]
    salt: str


def write_vote_page(store: Store, settings: VoteSettings) -> dict[str, Any]:
    """Write RUN/vote-PAGE.html and RUN/votes/PAGE.json (the key). Returns {page, path, key, pairs, repeats, bytes}.

    The same question about the same pairs gives the same page id, so that votes from any copy of the page are accepted.
    Raises UsageError if there is nothing to compare.
    """
    made = make_page(store, settings)
    page = made.key["page"]
    path = store.folder / f"vote-{page}.html"
    if settings.sidecar:
        sources = _sidecar(made, path.with_name(f"{path.stem}-images"))
    else:
        sources = {name: data_uri(data) for name, data in made.images.items()}
    text = page_text(settings.question, made, sources, images="data: file: 'self'" if settings.sidecar else "data:")
    write_atomic(path, text)
    if len(text) > LARGE:
        warn(f"{path} is {len(text) >> 20} MB large. Store its images separately (--sidecar) or smaller (--side 512).")
    counts = counts_of(made.key) | {"bytes": len(text.encode())}
    return {"page": page, "path": str(path), **counts, "key": str(key_path(store, page))}


def make_page(store: Store, settings: VoteSettings, resume: bool = False) -> VotePage:
    """Choose the pairs, encode their images, and write the key. Raises UsageError if there is nothing to compare.

    resume: take the pairs of the latest page with the same settings, if there is one and all its images can be read, even
    if the run has changed since, so that annotators continue where they stopped.
    """
    stores, source, choose = _source(store, settings)
    salt = _salt(store)
    asked = digest([source, *(getattr(settings, name) for name in ("n", "repeats", "seed", "question"))])
    prompts = {r.request_id: r.prompt for folder in [store, *stores.values()] for r in folder.requests()}
    if (key := _latest(store, asked) if resume else None) is not None:
        fields = VotePair.__dataclass_fields__
        known = [VotePair(**{f: item[f] for f in fields}) for item in key["pairs"] if "again" not in item]
        pairs, images = _with_images(stores, known, settings.side)
        if pairs == known:
            return VotePage(key, images, _names(images, salt, key["page"]), prompts, salt)
    pairs, images = _with_images(stores, choose(), settings.side)
    if not pairs:
        raise UsageError("no pair has two readable images. Run `prefkit generate` to replace damaged images.")
    repeats = min(len(pairs), settings.repeats if settings.repeats is not None else -(-len(pairs) // 10))
    page = digest("vote", salt, [asdict(pair) for pair in pairs], repeats, settings.question, length=10)
    run = html.plain(store.folder.resolve().name, 80)
    key = {"version": VERSION, "page": page, "run": run, "seed": settings.seed, "asked": asked, **source}
    key |= {"question": settings.question, "pairs": _items(pairs, repeats, salt, page)}
    write_json(key_path(store, page), key)
    return VotePage(key, images, _names(images, salt, page), prompts, salt)


def key_path(store: Store, page: str) -> Path:
    return store.folder / "votes" / f"{page}.json"


def counts_of(key: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of pairs and of repeated pairs of a page."""
    repeats = sum("again" in item for item in key["pairs"])
    return {"pairs": len(key["pairs"]) - repeats, "repeats": repeats}


def _source(
    store: Store, settings: VoteSettings
) -> tuple[dict[str, Store], dict[str, Any], Callable[[], list[VotePair]]]:
    """Return (run folders by model, what the key says about them, a function that chooses the pairs)."""
    if settings.models:
        name, set_name = find_set(store, settings.models, settings.eval, settings.set)
        stores = {model: Store(store.eval(name) / set_name / model) for model in settings.models}
        source = {"eval": name, "set": set_name, "models": list(settings.models)}
        choose = partial(of_eval, store, name, set_name, settings.models, settings.n, settings.seed)
        return stores, source, choose
    if settings.eval or settings.set:
        raise UsageError("--eval and --set apply only to a comparison of models; add --models base,NAME.")
    return {"": store}, {}, partial(within_requests, store, settings.n, settings.seed)


def _latest(store: Store, asked: str) -> dict[str, Any] | None:
    """Return the key of the latest page that was made with the settings whose hash is `asked`."""
    paths = (path for path in (store.folder / "votes").glob("*.json") if PAGE.fullmatch(path.stem))
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        key = read_json(path)
        if key.get("asked") == asked:
            return key
    return None


def _salt(store: Store) -> str:
    """Return the run's salt. All pages use it, so that a person's hashed name is the same on all of them."""
    path = store.folder / "votes" / "salt.json"
    if not path.exists():
        write_json(path, {"salt": secrets.token_hex(16)})
    return str(read_json(path)["salt"])


def _items(pairs: list[VotePair], repeats: int, salt: str, page: str) -> list[dict[str, Any]]:
    """Return the pairs under anonymous names, then the repeated pairs. `again`: name of the pair that is repeated."""
    items = [{"pair": digest(salt, page, i, length=12), **asdict(pair)} for i, pair in enumerate(pairs)]
    chosen = sorted(items, key=lambda item: digest("again", salt, item["pair"]))[:repeats]
    for item in chosen:
        name = digest(salt, page, "again", item["pair"], length=12)
        items.append({**item, "pair": name, "again": item["pair"]})
    return items


def _with_images(stores: dict[str, Store], pairs: list[VotePair], side: int) -> tuple[list[VotePair], dict[str, bytes]]:
    """Return the pairs whose two images can be read, and {candidate id: WebP}."""
    wanted: dict[str, set[str]] = {name: set() for name in stores}
    for pair in pairs:
        wanted[pair.model_a].add(pair.a)
        wanted[pair.model_b].add(pair.b)
    images: dict[str, bytes] = {}
    columns = ["id", "request_id", "index", "seed", "image", "path"]
    for name, store in stores.items():
        for c in store.iter_candidates(ids=wanted[name], columns=columns):
            try:
                image = c.pil()  # one at a time: a thousand decoded images would fill the memory
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
                images[c.id] = webp(image, 92)  # a quality without visible artefacts
            except (OSError, ValueError, SyntaxError) as error:
                warn(f"candidate {c.id} is left out: its image cannot be read ({' '.join(str(error).split())[:120]}).")
    pairs = [pair for pair in pairs if pair.a in images and pair.b in images]
    return pairs, {name: images[name] for name in dict.fromkeys(n for pair in pairs for n in (pair.a, pair.b))}


def _names(images: dict[str, bytes], salt: str, page: str) -> dict[str, str]:
    return {name: f"{digest(salt, page, name, length=16)}.webp" for name in images}


def _sidecar(made: VotePage, folder: Path) -> dict[str, str]:
    """Write the images to `folder` under anonymous names, and return their relative paths by candidate id."""
    for name, file in made.names.items():
        write_atomic(folder / file, made.images[name])
    return {name: f"{folder.name}/{file}" for name, file in made.names.items()}


def page_text(
    question: str, made: VotePage, sources: dict[str, str], images: str, live: dict[str, Any] | None = None
) -> str:
    """Return the HTML of a page. sources: addresses of the images by candidate id; images: see `html.page`.

    live: None for a page that stores the votes in the browser; {} or {"annotator": hashed name} for one that sends each
    vote to the server from which it came.
    """
    key, salt = made.key, made.salt
    # sort the images by a hash, so that their position in the file does not reveal the model
    names = sorted(sources, key=lambda name: digest(salt, key["page"], "place", name))
    index = {name: i for i, name in enumerate(names)}
    number = {item["pair"]: i for i, item in enumerate(key["pairs"])}
    items = []
    for item in key["pairs"]:
        prompt = html.plain(made.prompts.get(item["request_id"], ""), 1200)
        again = {"again": number[item["again"]]} if "again" in item else {}
        items.append({"pair": item["pair"], "prompt": prompt, "a": index[item["a"]], "b": index[item["b"]], **again})
    data = {"version": VERSION, "page": key["page"], "run": key["run"], "salt": salt, "pairs": items}
    data["images"] = [sources[name] for name in names]
    data |= {"live": live} if live is not None else {}
    body, script, style = (
        Path(__file__).with_name(f"vote.{kind}").read_text(encoding="utf-8") for kind in ("html", "js", "css")
    )
    body = body.replace("{question}", html.text(question, 200)) + html.data("data", data)
    return html.page(question, body, script=script, style=style, images=images, live=live is not None)
