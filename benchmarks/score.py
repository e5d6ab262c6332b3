"""Score against a bare loop that decodes and runs the same network, as a ratio in one run.

    python benchmarks/score.py [--images 256] [--batch 32] [--side 512]

bare    open each PNG, the model's own transform, encode image and text, cosine; one batch after another
stage   `run_scores` with the scorer `clip`: reading parts, decoding ahead, checks, writing the table
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import safetensors.torch
import torch
from PIL import Image

from prefkit.config import Recipe, Score
from prefkit.output import table
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
        weights = Path(folder) / "clip.safetensors"
        safetensors.torch.save_file(model.state_dict(), weights)
        images = [picture(i, args.side) for i in range(args.images)]
        options = {"model": "ViT-B-32", "pretrained": str(weights)}
        scorer = make_scorer("clip", options)
        scorer.load("cpu", "float32")
        own = scorer.encoder.network.inner

        def bare() -> None:
            tokenizer = open_clip.get_tokenizer("ViT-B-32")
            for start in range(0, len(images), args.batch):
                part = images[start : start + args.batch]
                with torch.inference_mode():
                    pixels = torch.stack([own.transform(Image.open(io.BytesIO(b)).convert("RGB")) for b in part])
                    image = own.model.encode_image(pixels, normalize=True)
                    text = own.model.encode_text(tokenizer(["a thing"]), normalize=True)
                    (image * text).sum(-1).tolist()

        def stage(number: int) -> float:
            store = Store.create(Path(folder) / f"run{number}")
            store.write_requests([Request("r", "a thing")])
            rows = [candidate_row(Candidate(str(i), "r", i, i, image=b)) for i, b in enumerate(images)]
            for start in range(0, len(rows), 64):
                store.candidates("own").append(rows[start : start + 64])
            recipe = Recipe(run=str(store.folder), score={"clip": Score("clip", options, batch_size=args.batch)})
            scorer.encoder.network.images.entries.clear()  # the network stays open, what it has seen must not
            return run_scores(store, recipe, ["clip"])["clip"]["seconds"]

        bare()
        times: dict[str, list[float]] = {"bare": [], "stage": []}
        for number in range(args.rounds):
            times["bare"].append(timed(bare))
            times["stage"].append(stage(number))
        best = {name: min(values) for name, values in times.items()}
        print(
            table(
                [
                    {"what": k, "seconds": round(v, 3), "ratio to bare": round(v / best["bare"], 3)}
                    for k, v in best.items()
                ]
            )
        )
        print(
            f"{args.images} images of {args.side} px, batches of {args.batch}, ViT-B/32; loading the model is in neither"
        )


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
