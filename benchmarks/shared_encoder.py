"""Three scorers on one encoder against one of them, as a ratio in one run.

    python benchmarks/shared_encoder.py [--images 96] [--batch 32] [--side 512] [--rounds 3]

one       `run_scores` with `clip`: reading parts, decoding ahead, preprocessing, encoding, writing the table
three     the same with `clip`, `pickscore` and `aesthetic`, all on the same weights, into three tables
apart     the three one after another, each opening the images again, as three separate commands
The weights are random, of the shape of CLIP ViT-B/32; the times exclude loading them.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prefkit import output
from prefkit.config import Recipe, Score
from prefkit.score.core import make_scorer
from prefkit.score.run import run_scores
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request


def picture(seed: int, side: int) -> bytes:
    """A smooth image: noise at an eighth of the side, enlarged, so that PNG has something to compress."""
    small = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((side, side)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def weights(folder: Path) -> None:
    """A CLIP with tokenizer and image processor, and an aesthetic head for it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings}), encoding="utf-8"
    )
    CLIPModel(CLIPConfig(text_config={"eos_token_id": len(tokens) - 1})).save_pretrained(folder)
    widths = [512, 1024, 128, 64, 16, 1]
    head = {}
    for i, at in enumerate((0, 2, 4, 6, 7)):
        head[f"layers.{at}.weight"] = torch.randn(widths[i + 1], widths[i]) / widths[i] ** 0.5
        head[f"layers.{at}.bias"] = torch.zeros(widths[i + 1])
    torch.save(head, folder / "head.pth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 96), ("batch", 32), ("side", 512), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    output.quiet = True
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "clip"
        folder.mkdir()
        weights(folder)
        how = {"batch_size": args.batch, "device": args.device}
        entries = {
            "clip": Score("clip", {"model": str(folder), "library": "transformers"}, **how),
            "pickscore": Score("pickscore", {"model": str(folder), "processor": str(folder)}, **how),
            "aesthetic": Score("aesthetic", {"head": str(folder / "head.pth"), "model": str(folder)}, **how),
        }
        rows = [candidate_row(Candidate(str(i), "r", i, i, image=picture(i, args.side))) for i in range(args.images)]
        kept = make_scorer("clip", entries["clip"].options)
        kept.load(args.device, "float32")  # holds the network open for all rounds
        runs = iter(range(10**6))

        def seconds(*groups: Sequence[str]) -> float:
            store = Store.create(Path(place) / f"run{next(runs)}")
            store.write_requests([Request("r", "a thing")])
            for at in range(0, len(rows), 64):
                store.candidates("own").append(rows[at : at + 64])
            start = time.perf_counter()
            for group in groups:
                kept.encoder.network.images.entries.clear()
                kept.encoder.network.texts.entries.clear()
                run_scores(store, Recipe(run=str(store.folder), score=entries), group)
            return time.perf_counter() - start

        three = list(entries)
        seconds(three)  # warm up
        times: dict[str, list[float]] = {"one": [], "three": [], "apart": []}
        for _ in range(args.rounds):
            times["one"].append(seconds(["clip"]))
            times["three"].append(seconds(three))
            times["apart"].append(seconds(*([name] for name in three)))
        best = {name: min(values) for name, values in times.items()}
        print(
            output.table(
                [
                    {"what": k, "seconds": round(v, 3), "ratio to one": round(v / best["one"], 3)}
                    for k, v in best.items()
                ]
            )
        )
        print(f"{args.images} images of {args.side} px, batches of {args.batch}, best of {args.rounds}, {args.device}")


if __name__ == "__main__":
    main()
