"""Write requests whose outfit is one picture: the mean of the other items, cut out of their pictures.

    python pipelines/fashion/pictured.py fashion       # from fashion/requests.jsonl to fashion/pictured.jsonl

DiFashion takes the mean of the items' latents. Here it is the mean of the pixels, at each pixel over the items that cover it, so
that the picture is an ordinary image (`model.inputs: {image: extra.picture}`). The backdrop is the colour whose latents are nearest
to zero, because latents of zero are the null condition of StableDiffusionInstructPix2PixPipeline. The prompts of pictured.jsonl name
no other item.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from prefkit.errors import UsageError
from prefkit.tiny.captions import Asked, asked, phrase

CANVAS = (68, 68, 100)  # the colour whose latents are nearest to zero, the null condition: root mean square .06
FAINT, CLEAR = (
    12.0,
    40.0,
)  # distances in RGB from the background at which a pixel begins to count as item, and fully does


def cut_out(picture: Image.Image) -> np.ndarray:
    """Return the item of a picture with a plain background: float32 [64, 64, 4] in 0..1, the last one opacity."""
    pixels = np.asarray(picture.convert("RGB").resize((64, 64)), np.float32)
    rim = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    distance = np.linalg.norm(pixels - np.median(rim, 0), axis=-1)
    return np.dstack([pixels / 255, ((distance - FAINT) / (CLEAR - FAINT)).clip(0, 1)])


def overlay(items: Sequence[np.ndarray]) -> Image.Image:
    """Return the mean of items from cut_out on CANVAS, at each pixel over the items that cover it: RGB 64 x 64."""
    cover = np.stack([item[..., 3:] for item in items])
    colours = (np.stack([item[..., :3] for item in items]) * cover).sum(0) / cover.sum(0).clip(1e-3)
    opacity = cover.max(0)
    mean = colours * opacity + np.array(CANVAS) / 255 * (1 - opacity)
    return Image.fromarray((mean * 255).round().astype(np.uint8))


def prompt(item: str, background: str) -> str:
    return phrase(Asked(item, None, background, "plain"))


def write_pictures(world: Path) -> int:
    """Write pictured.jsonl, with the column `picture`, and the pictures. Returns the number of requests."""
    try:
        rows = [json.loads(line) for line in (world / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"{world}/requests.jsonl cannot be read. Write the world first: world.py {world}.") from error
    (world / "pictured").mkdir(exist_ok=True)
    for row in rows:
        picture = overlay([cut_out(Image.open(world / name)) for name in row["outfit"]])
        row["picture"] = f"pictured/{row['request_id']}.png"
        picture.save(world / row["picture"])
        wanted = asked(row["prompt"])
        row["prompt"] = prompt(wanted.item, wanted.background)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (world / "pictured.jsonl").write_text(text, encoding="utf-8")
    return len(rows)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(f"{Path(arguments[0]) / 'pictured.jsonl'}: {write_pictures(Path(arguments[0]))} requests")
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
