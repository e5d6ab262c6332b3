"""Small files made to the published schemas."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PROMPTS = ("a red hat", "a blue boot", "a green coat", "a dress")


def image(seed: int, kind: str = "PNG", size: int = 16) -> bytes:
    """An image of noise, different for every seed."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def pickapic(folder: Path, rows: int = 4, labels=(1.0, 0.0, 0.5, 1.0), split: str = "train") -> Path:
    """Files like those of Pick-a-Pic v2: data/SPLIT-00000-of-00001.parquet."""
    made = [
        {
            "are_different": True,
            "best_image_uid": f"u{i}",
            "caption": PROMPTS[i % len(PROMPTS)],
            "created_at": None,
            "has_label": True,
            "image_0_uid": f"u{i}",
            "image_1_uid": f"v{i}",
            "jpg_0": image(2 * i, "JPEG"),
            "jpg_1": image(2 * i + 1, "JPEG"),
            "label_0": labels[i % len(labels)],
            "label_1": 1 - labels[i % len(labels)],
            "model_0": "dreamlike",
            "model_1": "sdxl",
            "ranking_id": i,
            "user_id": 7 + i % 2,
            "num_example_per_prompt": 1,
        }
        for i in range(rows)
    ]
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.Table.from_pylist(made[:1]).schema.set(3, pa.field("created_at", pa.timestamp("ns")))
    pq.write_table(pa.Table.from_pylist(made, schema=schema), path, row_group_size=8)
    return folder


def chosen_rejected(folder: Path) -> Path:
    """Files like those of open-image-preferences-v1-binarized."""
    import datasets

    cells = {
        "id": ["x", "y"],
        "prompt": list(PROMPTS[:2]),
        "chosen": [{"bytes": image(i), "path": None} for i in (0, 1)],
        "rejected": [{"bytes": image(i), "path": None} for i in (2, 3)],
        "chosen_model": ["flux", "sd3.5"],
        "rejected_model": ["sd3.5", "flux"],
        "evolution": ["quality"] * 2,
        "category": ["Cinematic"] * 2,
        "sub_category": ["Drama"] * 2,
    }
    pictures = {name: datasets.Image() for name in ("chosen", "rejected")}
    texts = {name: datasets.Value("string") for name in cells if name not in pictures}
    table = datasets.Dataset.from_dict(cells, features=datasets.Features({**texts, **pictures}))
    (folder / "data").mkdir(parents=True)
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def rapidata(folder: Path, votes=((20, 6), (13, 13))) -> Path:
    rows = [
        {
            "prompt": PROMPTS[i],
            "image1": {"bytes": image(2 * i, "JPEG"), "path": f"flux/{i}.jpg"},
            "image2": {"bytes": image(2 * i + 1, "JPEG"), "path": f"sd3/{i}.jpg"},
            "votes_image1": one,
            "votes_image2": two,
            "model1": "flux",
            "model2": "sd3",
            "detailed_results": json.dumps({"votes": []}),
            "image1_path": f"flux/{i}.jpg",
            "image2_path": f"sd3/{i}.jpg",
        }
        for i, (one, two) in enumerate(votes)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train_0001.parquet")
    return folder


def hpdv2(folder: Path) -> Path:
    """train.json, test.json and a tar.gz of each one's images."""
    folder.mkdir(parents=True, exist_ok=True)
    train = [{"prompt": PROMPTS[0], "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1], "user_hash": "u"}]
    test = [
        {
            "prompt": PROMPTS[1],
            "image_path": ["t0.jpg", "t1.jpg", "t2.jpg"],
            "rank": [1, 2, 3],
            "raw_annotations": [{"rank": [1, 2, 3], "user_hash": "a"}, {"rank": [2, 1, 3], "user_hash": "b"}],
        }
    ]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    tar(folder / "train.tar.gz", {"train/0.jpg": image(0, "JPEG"), "train/1.jpg": image(1, "JPEG")})
    tar(folder / "test.tar.gz", {f"test/t{i}.jpg": image(9 + i, "JPEG") for i in range(3)})
    return folder


def hpdv3(folder: Path) -> Path:
    """train.json and images.tar.gz, split in two as it is published."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt": PROMPTS[i],
            "path1": f"images/{i}_a.jpg",
            "path2": f"images/{i}_b.jpg",
            "model1": "kolors",
            "model2": "sd2",
            "confidence": 0.9,
            "choice_dist": [18, 2],
        }
        for i in range(2)
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    names = [row[key] for row in rows for key in ("path1", "path2")]
    tar(folder / "whole", {name: image(i, "JPEG") for i, name in enumerate(names)})
    data = (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    (folder / "images.tar.gz.00").write_bytes(data[: len(data) // 2])
    (folder / "images.tar.gz.01").write_bytes(data[len(data) // 2 :])
    return folder


def imagerewarddb(folder: Path) -> Path:
    """metadata-train.parquet and images/train/train_1.zip."""
    rows = [
        {
            "image_path": f"images/train/train_1/{i}.webp",
            "prompt_id": f"p{i // 3}",
            "prompt": PROMPTS[i // 3],
            "classification": "Arts",
            "image_amount_in_total": 3,
            "rank": rank,
            "overall_rating": 8 - 2 * rank,
            "image_text_alignment_rating": 5,
            "fidelity_rating": 6,
        }
        for i, rank in enumerate((1, 2, 2, 3, 1, 2))
    ]
    (folder / "images" / "train").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata-train.parquet")
    with zipfile.ZipFile(folder / "images" / "train" / "train_1.zip", "w") as archive:
        for i in range(len(rows)):
            archive.writestr(f"{i}.webp", image(i, "WEBP"))
    return folder


def folders(folder: Path, names=("w", "l")) -> Path:
    for side, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            (folder / name / f"{i}.png").write_bytes(image(10 * side + i))
            (folder / name / f"{i}.txt").write_text(PROMPTS[i])
    return folder


def tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def science_t2i(folder: Path, rows: int = 3, lists: bool = False, size: int = 16, images: int = 2) -> Path:
    """A file like those of Science-T2I: texts in the test schema, lists of wordings in that of the full set."""
    kind = pa.list_(pa.string()) if lists else pa.string()
    picture = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    names = {f"{tier}_prompt": kind for tier in ("implicit", "explicit", "superficial")}
    names |= {f"{side}_image": picture for side in ("explicit", "superficial")}
    names |= {name: pa.string() for name in ("scene_scoring", "real_scoring", "category", "law")}
    made = []
    for i in range(rows):
        texts = {
            "implicit": f"an unripe fruit {i}",
            "explicit": f"a green fruit {i}",
            "superficial": f"a red fruit {i}",
        }
        row: dict = {f"{tier}_prompt": [text, f"{text} again"] if lists else text for tier, text in texts.items()}
        for n, side in enumerate(("explicit", "superficial")):
            seeds = [100 * i + 2 * k + n for k in range(images)]
            row[f"{side}_image"] = [{"bytes": image(seed, size=size), "path": f"{seed}.png"} for seed in seeds]
        made.append(row | {"category": "biology", "law": "ripeness", "scene_scoring": "", "real_scoring": ""})
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(made, schema=pa.schema(list(names.items())))
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=rows)  # one row group, as published
    return folder
