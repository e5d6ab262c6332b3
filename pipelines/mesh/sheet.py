"""A contact sheet of stored pictures with the keypoints and the true joints drawn on them.

    python pipelines/mesh/sheet.py DATA [--out sheet.png]

White lines and dots are keypoints (green to red as the confidence falls); black lines are the true limbs; a cross marks
a true joint that is not visible.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from detector import JOINT_LANDMARKS
from PIL import Image, ImageDraw
from skeleton import LIMB_ENDS

from prefkit.mesh.body import JOINT_NAMES
from prefkit.mesh.camera import Camera

COLUMNS = 8
#: lines of the picture: the limbs, the shoulders and the hips
LINES = [*LIMB_ENDS.items(), ("LeftArm", "RightArm"), ("LeftUpLeg", "RightUpLeg")]


def index_of(names: str) -> dict[str, int]:
    """Return the index of each limb joint among the keypoints."""
    return JOINT_LANDMARKS if names == "blazepose33" else {name: JOINT_NAMES.index(name) for name in JOINT_LANDMARKS}


def drawn(folder: Path, row: dict[str, Any]) -> Image.Image:
    """Return a row's stored picture with its keypoints and true joints."""
    image = Image.open(folder / row["picture"]).convert("RGB")
    draw = ImageDraw.Draw(image)
    camera = Camera.of(row)
    assert camera
    true = dict(zip(JOINT_NAMES, camera.project(np.array(row["true_joints3d"]))))
    keypoints, index = np.array(row["keypoints2d"]), index_of(row["keypoint_names"])
    for bone, end in LINES:
        draw.line([*true[bone], *true[end]], fill="black", width=1)
        draw.line([*keypoints[index[bone], :2], *keypoints[index[end], :2]], fill="white", width=2)
    for name, number in index.items():
        x, y, confidence = keypoints[number]
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=(int(255 * (1 - confidence)), int(230 * confidence), 40))
        if not row["visible"][JOINT_NAMES.index(name)]:
            tx, ty = true[name]
            draw.line([tx - 4, ty - 4, tx + 4, ty + 4], fill="black", width=2)
            draw.line([tx - 4, ty + 4, tx + 4, ty - 4], fill="black", width=2)
    draw.rectangle([row["bbox"][0], row["bbox"][1], *np.add(row["bbox"][:2], row["bbox"][2:])], outline="gray")
    draw.text((3, 2), f"{row.get('clip') or row.get('mode')}{' occluded' if row['occluded'] else ''}", fill="black")
    return image


def stored_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all sets that have a stored picture."""
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        if "picture" in table.column_names:
            rows += table.filter(table["picture"].is_valid()).to_pylist()
    return rows


def contact_sheet(folder: Path) -> Image.Image:
    """Draw the rows of a data folder that have a stored picture."""
    images = [drawn(folder, row) for row in stored_rows(folder)]
    if not images:
        return Image.new("RGB", (1, 1))
    side = images[0].width
    sheet = Image.new("RGB", (COLUMNS * side, -(-len(images) // COLUMNS) * side), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % COLUMNS * side, k // COLUMNS * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    contact_sheet(args.data).save(args.out or args.data / "sheet.png")


if __name__ == "__main__":
    main()
