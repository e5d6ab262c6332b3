"""A small finished run, the same on every machine: its images come with the package, and its numbers are
those of the demo in the README. The examples under datasets_cards/ are rendered from it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import prefkit.tiny
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.table import candidate_row, comparison_row
from prefkit.types import Candidate, Comparison, Request

RECIPE = """run: runs/example
model: {base: tiny, revision: null, adapters: {}}
requests: {source: /home/somebody/prompts.txt}
generate:
  own: {use: diffusers, n: 4, steps: 20, guidance: 3.0, seed: 0}
score:
  warmth: {use: "/home/somebody/taste.py:warmth", api_key: hunter2}
pair:
  main: {use: margin, weights: {warmth: 1.0}}
train:
  dpo: {pairs: main, objective: {use: dpo, beta: 2000}, lora: {rank: 16}, steps: 300}
"""
SPEC = {
    "name": "warmth", "version": "3f1c", "weights": None, "revision": None, "formula": "share of red in the mean colour",
    "higher_is_better": True, "licence": "Apache-2.0", "verified": "", "scope": "absolute",
}  # fmt: skip
ROW = {"diversity_base": 0.31, "diversity_tuned": 0.285, "n_requests": 43, "best_of_n": 2.9, "verdict": "better"}


def warmth(data: bytes) -> float:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        red, green, blue = (float(v) for v in image.convert("RGB").resize((1, 1)).getpixel((0, 0)))
    return round(red / (red + green + blue + 1), 3)


def build(folder: Path, *, embed: bool = True) -> Store:
    """9 requests of 4 candidates, a pair each, a tie, a verdict, a finished training and its evaluation."""
    store = Store.create(folder)
    write_json(store.folder / "run.json", {"schema": 1, "packages": {"prefkit": "0.1.0"}})
    (store.folder / "recipe.yaml").write_text(RECIPE)
    requests = [Request(f"r{i}", f"a garment, number {i} | <b>new</b>", "train" if i < 8 else "test") for i in range(9)]
    store.write_requests(requests)
    files = sorted((Path(prefkit.tiny.__file__).parent / "history").glob("*.png"))[:36]
    members = [_candidate(requests[i // 4], i % 4, path.read_bytes()) for i, path in enumerate(files)]
    store.candidates("own").append([candidate_row(c) for c in members])
    write_json(store.candidates("own").folder / "spec.json", {"model": "7c8b8e0ec948", "adapters": {}, "settings": {"steps": 20, "guidance": 3.0}})  # fmt: skip
    values = {c.id: warmth(c.image or b"") for c in members}
    store.scores("warmth").append([{"id": name, "value": value} for name, value in values.items()])
    write_json(store.scores("warmth").folder / "spec.json", SPEC)
    verdict = Comparison(members[0].id, members[1].id, "a", "annotator-5d1a", probability=1.0)
    store.comparisons("votes").append([comparison_row(verdict)])
    _pairs(store, requests, members, values, embed)
    _training(store)
    return store


def add_inputs(store: Store, sources: list[bytes]) -> None:
    """Change the run into one of edits with an input image, extra.source: one of `sources` for each two requests."""
    names = [hashlib.sha256(data).hexdigest() for data in sources]
    requests = [replace(r, extra={"source": names[i // 2], "strength": 3}) for i, r in enumerate(store.requests())]
    store.write_requests(requests)
    store.inputs().append([{"id": name, "bytes": data} for name, data in zip(names, sources, strict=True)])
    spec = store.candidates("own").folder / "spec.json"
    write_json(spec, read_json(spec) | {"inputs": {"image": "extra.source", "strength": "extra.strength"}})


def _candidate(request: Request, index: int, data: bytes) -> Candidate:
    name = hashlib.sha256(f"{request.request_id}/{index}".encode()).hexdigest()[:20]
    return Candidate(name, request.request_id, index, 100 + index, image=data, sha256=hashlib.sha256(data).hexdigest())


def _pairs(
    store: Store, requests: list[Request], members: list[Candidate], values: dict[str, float], embed: bool
) -> None:
    rows: dict[str, list] = {"train": [], "test": []}
    for i, request in enumerate(requests):
        group = sorted(members[4 * i : 4 * i + 4], key=lambda c: values[c.id])
        sides = [group[-1], group[0]] if i % 2 else [group[0], group[-1]]
        row = {
            "label_0": float(i % 2),
            "label_1": float(1 - i % 2),
            "caption": request.prompt,
            "request_id": request.request_id,
        }
        for side, c in enumerate(sides):
            row |= {f"candidate_{side}": c.id, f"image_{side}_uid": c.sha256, f"score_{side}_warmth": values[c.id]}
            row |= {f"jpg_{side}": c.image} if embed else {}
        rows[request.split].append(row | {"score_gap": 0.2 + i, "p": 0.75})
    folder = store.pairs("main")
    for split, part in [*rows.items(), ("ties", rows["train"][:1])]:
        place = folder / split / ("train" if split == "ties" else "")
        place.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(part), place / "part-00000.parquet")
    counts = {"pairs": 9, "requests": 9, "candidates": 36, "ties": 1, "tie_threshold": 0.1, "decided_reject": 0}
    spec = {"settings": {"use": "margin", "options": {"k": 1}}, "weights": {"warmth": 1.0}, "scorers": {"warmth": SPEC}}
    write_json(folder / "spec.json", {"spec": spec, "counts": counts})
    audit = {"shortcut": {"file_size": {"accuracy": 0.52, "low": 0.41, "high": 0.63}}, "warnings": []}
    write_json(folder / "audit.json", audit)


def build_fit(folder: Path) -> Path:
    """A fitted scorer as `prefkit fit vbpr` writes it, with weights that are not read."""
    folder.mkdir(parents=True)
    encoder = {
        "library": "open_clip",
        "model": "tiny",
        "revision": "413b2e098484",
        "pretrained": None,
        "processor": None,
    }
    auc = {"mean": 0.71, "low": 0.66, "high": 0.76, "n": 180}
    spec = {
        "fit": "vbpr",
        "settings": {"encoder": "tiny", "epochs": 60},
        "data": {"interactions": "5d1a0c7e", "features": "90f3e2b1"},
        "encoder": encoder,
        "sources": {"interactions": "/home/somebody/log.csv", "images": "/home/somebody/images"},
        "counts": {"users": 180, "items": 300, "interactions": 2400, "train": 2040},
        "training": {"epochs": 41, "best_epoch": 31, "auc_by_epoch": [0.5]},
        "validation": {
            "auc_validation": auc,
            "auc": auc,
            "auc_visual": {**auc, "mean": 0.68, "low": 0.63, "high": 0.73},
        },
    }
    write_json(folder / "spec.json", spec)
    for name in ("weights.safetensors", "users.json", "items.json"):
        (folder / name).write_bytes(b"")
    return folder


def _training(store: Store) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = store.train("dpo")
    (folder / "final").mkdir(parents=True)
    save_file(
        {"unet.x.lora_A.weight": np.zeros((2, 2), np.float32)}, folder / "final" / "pytorch_lora_weights.safetensors"
    )
    train = {
        "objective": {"use": "dpo", "options": {"beta": 2000.0}},
        "lora": {"rank": 16, "alpha": None},
        "pairs": "main",
    }
    write_json(folder / "spec.json", {"train": train, "model": {"base": "7c8b8e0ec948"}, "global_batch": 16})
    write_json(folder / "result.json", {"steps": 300, "pairs": 8, "validation_pairs": 1, "trainable": 724480})
    write_json(folder / "trained_on.json", {"captions": ["a" * 20], "scorers": ["warmth"], "base": "7c8b8e0ec948"})
    taste = ROW | {
        "base": 0.25,
        "tuned": 0.54,
        "win_rate": 0.647,
        "ci_low": 0.612,
        "ci_high": 0.68,
        "used_for_pairs": False,
    }
    sft = taste | {"tuned": 0.29, "win_rate": 0.521, "ci_low": 0.506, "ci_high": 0.537}
    sets = {"held_out": {"dpo": {"palette": taste}, "dpo-sft": {"palette": sft}}}
    missing = ["dpo-flipped: DPO on randomly flipped pairs"]
    write_json(store.eval("held") / "result.json", {"sets": sets, "controls": {"missing": missing}, "settings": {}})
