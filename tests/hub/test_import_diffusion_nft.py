"""The evaluations that DiffusionNFT writes: images, prompts and scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from prefkit.errors import TooManyFailures, UsageError
from prefkit.hub.importing.run import run_import
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts


def evaluation(folder: Path, colour: int, rows: int = 3) -> Path:
    """The output of `scripts/evaluation.py --save_images` of NVlabs/DiffusionNFT at 24af5554."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(rows):
        (folder / "images" / f"{i:05d}.jpg").write_bytes(layouts.image(colour + i, "JPEG"))
        scores = {"pickscore": 20.0 + colour + i, "avg": 1.0, "two_object_accuracy": 1.0 if i else -10.0}
        row = {"sample_id": i, "prompt": f"a photo of {i} cats", "metadata": {"tag": "counting", "prompt": "x"}}
        lines.append(row | {"scores": scores, "image_path": f"./logs/eval/images/{i:05d}.jpg"})
    lines.append(lines[0])  # DistributedSampler repeats samples
    (folder / "evaluation_results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "average_scores.json").write_text("{}")
    return folder


def test_diffusion_nfts_evaluations_become_candidates_with_scores(tmp_path, capsys):
    store = Store(tmp_path / "run")
    for i, name in enumerate(("before", "after")):
        counts = run_import(store, str(evaluation(tmp_path / name, 10 * i)), name=name)
        assert (counts["items"], counts["candidates"], counts["failed"], counts["scores"]) == (3, 3, 0, 8)
    said = capsys.readouterr().err
    assert "looks like diffusion_nft" in said and "1 row that repeats a sample_id" in said
    found = {(c.prompt, c.extra["tag"], len(c.extra)) for c in store.iter_candidates()}
    assert found == {(f"a photo of {i} cats", "counting", 1) for i in range(3)}
    assert len(store.requests()) == 3  # both checkpoints were asked for the same
    assert sorted(store.scores("after.pickscore").frame(["value"]).value) == [30.0, 31.0, 32.0]
    assert len(store.scores("after.two_object_accuracy").frame(["value"])) == 2  # -10 means: does not apply


def test_an_evaluation_without_images_says_how_to_save_them(tmp_path, capsys):
    folder = evaluation(tmp_path / "eval", 0)
    file = folder / "evaluation_results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0].pop("image_path")
    rows[1]["image_path"] = "../../etc/00009.jpg"
    rows[2]["scores"] = 3
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    with pytest.raises(TooManyFailures) as error:
        run_import(Store(tmp_path / "run"), str(folder), layout="diffusion_nft")
    assert error.value.counts["failed"] == 3
    said = capsys.readouterr().err
    assert "--save_images" in said and "images/00009.jpg is neither" in said and "scores is not" in said
    with pytest.raises(UsageError, match="has no evaluation_results.jsonl"):
        run_import(Store(tmp_path / "other"), str(folder / "images"), layout="diffusion_nft")
