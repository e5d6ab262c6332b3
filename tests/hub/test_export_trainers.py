"""Exports for other trainers, read as their source reads them. The readers are restated here, with their source."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from prefkit.cli.main import run as cli
from prefkit.errors import StoreError, UsageError
from prefkit.hub.export_run import run_export
from prefkit.hub.importers.flow_factory import INPUT
from prefkit.hub.importing.run import run_import
from prefkit.hub.pair_reader import Pairs
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import example
import import_layouts as layouts

LAYOUTS = ("flow_factory", "onetrainer", "diffsynth")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 8 pairs in train, 1 in test and a tie; p is 0.75."""
    return example.build(tmp_path_factory.mktemp("plain") / "run").folder


@pytest.fixture(scope="module")
def edit(plain: Path) -> Path:
    """The same run, made by a pipeline with an input image: extra.source, one for each two requests."""
    folder = plain.parent / "edit"
    shutil.copytree(plain, folder)
    example.add_inputs(Store(folder), [layouts.image(50 + i) for i in range(5)])
    return folder


def known(run: Path) -> set[tuple[str, str, str, str]]:
    return {(p.split, p.caption, sha(p.win), sha(p.lose)) for p in Pairs(str(run)).rows()}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_v2(folder: Path, split: str = "train") -> list[tuple[str, list[Path], Path, Path]]:
    """Read as Flow-Factory does: src/flow_factory/data_utils/schema.py (`DatasetRecordV2`: strict types, no further
    keys) and offline_dataset.py (`load_offline_manifest`: no blank line, paths relative to the folder) at 442134ee."""
    rows = []
    for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        assert record.keys() <= {"schema_version", "input", "supervision", "metadata"}
        assert record["schema_version"] == 2 and isinstance(record["schema_version"], int)
        given, supervision = record["input"], record["supervision"]
        assert given.keys() <= {"prompt", "negative_prompt", "media"} and isinstance(given["prompt"], str)
        assert supervision.keys() == {"type", "chosen", "rejected"} and supervision["type"] == "preference"
        assert "NaN" not in line and isinstance(record["metadata"], dict)
        sides = [supervision[side] for side in ("chosen", "rejected")]
        assert all(side.keys() == {"media"} and len(side["media"]) == 1 for side in sides)
        media = [*given["media"], *(side["media"][0] for side in sides)]
        assert all(m.keys() == {"type", "path"} and m["type"] == "image" for m in media)
        paths = [folder / m["path"] for m in media]
        rows.append((given["prompt"], paths[:-2], paths[-2], paths[-1]))
    return rows


def read_concept(concept: dict) -> list[tuple[str, Path, Path]]:
    """Read as pull request 1403 of OneTrainer does at 8c664c79: modules/util/dpo_pattern_util.py (`match_chosen`,
    `resolve_rejected`: {} stands for the same text in both patterns, without the suffix), mgds' LoadMultipleTexts."""
    root = Path(concept["path"])
    assert root.is_absolute() and concept["include_subdirectories"] and concept["__version"] == 3
    chosen, rejected = concept["dpo_chosen_pattern"], concept["dpo_rejected_pattern"]
    assert chosen.count("{}") == rejected.count("{}") == 1
    images = [p for p in sorted(root.rglob("*")) if p.suffix in {".jpg", ".png", ".webp"}]
    stems = {p.relative_to(root).with_suffix("").as_posix(): p for p in images}
    rows = []
    for stem, path in stems.items():
        match = re.fullmatch(re.escape(chosen).replace(r"\{\}", "(.+)"), stem)
        if match:
            texts = [line.strip() for line in path.with_suffix(".txt").read_text(encoding="utf-8").split("\n")]
            assert len([text for text in texts if text]) == 1
            rows.append((texts[0], path, stems[rejected.replace("{}", match[1])]))
    return rows


def read_diffsynth(base: Path, metadata: Path) -> list[dict]:
    """Read as DiffSynth-Studio's branch dpo does at 1e8c201d: diffsynth/trainers/unified_dataset.py with
    --data_file_keys image,lose_image; `forward_dpo` in examples/qwen_image/model_training/train.py uses these keys."""
    rows = []
    with open(metadata, encoding="ascii") as file:
        for line in file:
            row = json.loads(line.strip())
            for key in ("image", "lose_image"):
                row[key] = Path(os.path.join(base, row[key]))
            rows.append({"prompt": row["prompt"], "image": row["image"], "lose_image": row["lose_image"]})
    return rows


def opened(path: Path) -> str:
    with Image.open(path) as image:
        assert image.convert("RGB").size
    return sha(path.read_bytes())


def test_flow_factory_reads_every_pair_and_the_held_out_prompts(plain, tmp_path, capsys):
    found = run_export(str(plain), tmp_path / "out", layout="flow_factory")
    rows = read_v2(tmp_path / "out")
    assert {("train", text, opened(win), opened(lose)) for text, _, win, lose in rows} == {
        pair for pair in known(plain) if pair[0] == "train"
    }
    assert not any(inputs for _, inputs, _, _ in rows)
    record = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[1])
    assert record["metadata"] == {"request_id": "r1", "p": 0.75, "score_gap": 1.2}
    assert [json.loads(line) for line in (tmp_path / "out" / "test.jsonl").read_text().splitlines()] == [
        {"prompt": "a garment, number 8 | <b>new</b>"}
    ]
    assert (found["pairs"], found["held_out_pairs"], found["held_out_prompts"]) == (8, 1, 1)
    assert (found["soft_left_out"], found["ties_left_out"]) == (9, 1) and "edits_left_out" not in found
    said = capsys.readouterr().err
    assert "a probability (p) below 1: 9." in said and "ties left out: 1." in said


def test_flow_factory_gets_the_input_images_of_edits(edit, tmp_path):
    found = run_export(str(edit), tmp_path / "out", layout="flow_factory")
    rows = read_v2(tmp_path / "out")
    assert found["with_inputs"] == len(rows) == 8 and "edits_left_out" not in found
    for i, (_, inputs, _, _) in enumerate(rows):
        assert [opened(path) for path in inputs] == [sha(layouts.image(50 + i // 2))]
    assert len(list((tmp_path / "out" / "images" / "inputs").iterdir())) == 5  # each once, with the held-out one
    (row,) = (json.loads(line) for line in (tmp_path / "out" / "test.jsonl").read_text().splitlines())
    # rows to generate from have paths relative to images/ (`image_dir` in src/flow_factory/data_utils/dataset.py)
    assert [opened(tmp_path / "out" / "images" / name) for name in row["images"]] == [sha(layouts.image(54))]


@pytest.mark.parametrize("layout", ["folders", "diffsynth", "flow_factory"])
def test_these_exports_are_imported_as_the_same_pairs(plain, tmp_path, layout, capsys):
    run_export(str(plain / "pairs"), tmp_path / "out", layout=layout)
    capsys.readouterr()
    run_import(Store(tmp_path / "again"), str(tmp_path / "out"), pairs=True)
    again, first = ({pair[layout == "diffsynth" :] for pair in known(run)} for run in (tmp_path / "again", plain))
    if layout == "flow_factory":  # it holds the pairs of one split
        assert "1 file was skipped: 1 .jsonl." in capsys.readouterr().err
        first = {pair for pair in first if pair[0] == "train"}
    assert again == first and len(again) == (8 if layout == "flow_factory" else 9)  # diffsynth's rows hold no split
    assert "skipped" not in capsys.readouterr().err


def test_flow_factory_edits_keep_the_paths_of_their_inputs_and_odd_rows_are_counted(edit, tmp_path, capsys):
    run_export(str(edit), tmp_path / "out", layout="flow_factory")
    file = tmp_path / "out" / "train.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[0]["input"]["prompt"] = records[1]["input"]["prompt"] = "the same"  # of one image
    records[2]["input"]["prompt"] = "the same"  # of another image
    sides = {side: records[3]["supervision"][side] for side in ("chosen", "rejected")}
    records[3]["supervision"] = {"type": "pointwise", **sides}
    records[4]["supervision"]["chosen"]["media"][0]["type"] = "video"
    records[5]["supervision"]["rejected"]["media"] = []
    records[6]["supervision"]["chosen"]["media"][0]["path"] = "../out.png"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = run_import(Store(tmp_path / "again"), str(tmp_path / "out"), max_failed=1)
    assert (counts["items"], counts["failed"], counts["left_out"][INPUT]) == (8, 4, 4)
    requests = Store(tmp_path / "again").requests()
    assert len(requests) == 3 and all(len(r.extra["inputs"]) == 1 for r in requests)
    said = capsys.readouterr().err
    for text in ("supervision is 'pointwise'", "type 'video'", "rejected has 0 images", "leads out of"):
        assert text in said


def test_files_beside_the_folders_of_splits_are_counted(plain, tmp_path):
    run_export(str(plain), tmp_path / "out", layout="folders")
    for place in ("notes.txt", "train/more.txt", "other/one.png"):
        (tmp_path / "out" / place).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / place).write_text("x")
    found = run_import(Store(tmp_path / "again"), str(tmp_path / "out"), pairs=True)
    assert found["left_out"] == {"outside of w/ and l/": 1, "outside of test/ and train/": 2}


def test_onetrainer_pairs_the_images_and_its_folders_come_back_with_their_splits(plain, tmp_path, capsys):
    found = run_export(str(plain), tmp_path / "out", layout="onetrainer")
    assert (found["pairs"], found["train"], found["test"]) == (9, 8, 1)
    concepts = json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert {(c["name"], c["type"]) for c in concepts} == {("DPO train", "STANDARD"), ("DPO test", "VALIDATION")}
    rows = {(c["name"][4:], text, opened(w), opened(loser)) for c in concepts for text, w, loser in read_concept(c)}
    assert rows == known(plain)
    capsys.readouterr()
    run_import(Store(tmp_path / "again"), str(tmp_path / "out"), pairs=True, test_share=0.9)
    assert known(tmp_path / "again") == known(plain) and "skipped" not in capsys.readouterr().err


def test_onetrainer_root_is_the_place_of_the_export_or_the_one_given(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags, root in (({}, str(tmp_path / "out")), ({"root": "/data/taste"}, "/data/taste")):
        run_export(str(plain), "out", layout="onetrainer", flags=flags, overwrite=True)
        assert {c["path"] for c in json.loads(Path("out/concepts.json").read_text())} == {root}


def test_diffsynth_reads_every_pair(plain, tmp_path):
    found = run_export(str(plain), tmp_path / "out", layout="diffsynth")
    assert (found["pairs"], found["train"], found["test"]) == (9, 8, 1) and "different_sizes" not in found
    rows = {
        (split, row["prompt"], opened(row["image"]), opened(row["lose_image"]))
        for split in ("train", "test")
        for row in read_diffsynth(tmp_path / "out", tmp_path / "out" / f"{split}.jsonl")
    }
    assert rows == known(plain)


def odd(folder: Path) -> Path:
    """A folder with one pair: two sizes and formats, and a prompt of two lines that is not ASCII."""
    row = {"jpg_0": layouts.image(1, "GIF", 16), "jpg_1": layouts.image(2, "WEBP", 24), "label_0": 0.0, "label_1": 1.0}
    (folder / "train").mkdir(parents=True)
    table = layouts.pa.Table.from_pylist([row | {"caption": "une robe d'été\n en soie 红"}])
    pq.write_table(table, folder / "train" / "part-0.parquet")
    return folder


def test_sizes_formats_and_lines_that_a_reader_cannot_use(tmp_path, capsys):
    odd(tmp_path / "pairs")
    found = {n: run_export(str(tmp_path / "pairs"), tmp_path / n, layout=n) for n in LAYOUTS}
    assert found["diffsynth"]["different_sizes"] == 1 and found["onetrainer"]["captions_joined"] == 1
    assert "pairs whose images differ in size: 1." in capsys.readouterr().err
    for name in LAYOUTS:
        files = [p for p in (tmp_path / name).rglob("*") if p.suffix in {".png", ".webp", ".gif"}]
        assert sorted(p.suffix for p in files) == [".png", ".webp"]  # not every reader opens GIF
    (concept,) = json.loads((tmp_path / "onetrainer" / "concepts.json").read_text())
    assert read_concept(concept)[0][0] == "une robe d'été en soie 红"
    assert read_v2(tmp_path / "flow_factory")[0][0] == "une robe d'été\n en soie 红"
    (row,) = read_diffsynth(tmp_path / "diffsynth", tmp_path / "diffsynth" / "train.jsonl")
    assert row["prompt"] == "une robe d'été\n en soie 红"


@pytest.mark.parametrize("layout", ["onetrainer", "diffsynth", "folders", "chosen_rejected"])
def test_input_images_that_a_layout_cannot_hold_are_reported(edit, tmp_path, layout, capsys):
    found = run_export(str(edit), tmp_path / "out", layout=layout)
    assert found["edits_left_out"] == 9 and found.get("soft_left_out") == (None if layout == "chosen_rejected" else 9)
    assert f"made with input images: 9. {layout} does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_that_cannot_be_exported_leave_nothing_behind(edit, tmp_path, layout, capsys):
    shutil.copytree(edit, tmp_path / "run")
    path = next((tmp_path / "run" / "pairs" / "main" / "train").iterdir())
    rows = pq.read_table(path).to_pylist()
    cases = [
        ({"jpg_0": None, "candidate_0": None}, UsageError, "row 3 has no image in jpg_0"),
        ({"jpg_0": None, "candidate_0": "f" * 20}, StoreError, "candidate f+ is not in the run"),
        ({"label_0": 0.5, "label_1": 0.5}, UsageError, r"labels 0\.5 and 0\.5"),
    ]
    if layout == "flow_factory":
        cases.append(({"request_id": "gone"}, UsageError, r"request gone, which is not in the run .*input image"))
    for change, kind, text in cases:
        changed = [row | change if i == 2 else row for i, row in enumerate(rows)]
        pq.write_table(layouts.pa.Table.from_pylist(changed), path)
        with pytest.raises(kind, match=text):
            run_export(str(tmp_path / "run"), tmp_path / "out", layout=layout)
        assert not list(tmp_path.glob("*out*"))
    pq.write_table(layouts.pa.Table.from_pylist(rows), path)
    assert cli(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--as", layout, "--split", "valid"]) == 2
    text = "unknown key; no options exist here" if layout == "diffsynth" else "with --split: test, train."
    assert text in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.glob("*out*"))
    shutil.rmtree(tmp_path / "run" / "inputs")
    if layout == "flow_factory":
        with pytest.raises(UsageError, match="inputs/ table has no image"):
            run_export(str(tmp_path / "run"), tmp_path / "out", layout=layout)


def test_a_training_is_no_pairs_and_the_message_names_its_exports(plain, tmp_path):
    with pytest.raises(UsageError, match="This layout needs pairs: .* --as diffusers, kohya or comfyui"):
        run_export(str(plain / "train" / "dpo"), tmp_path / "out", layout="diffsynth")


def test_an_edit_set_with_pairs_without_input_is_reported(edit, tmp_path, capsys):
    shutil.copytree(edit, tmp_path / "run")
    store = Store(tmp_path / "run")
    requests = [r if i else replace(r, extra={}) for i, r in enumerate(store.requests())]
    store.write_requests(requests)
    found = run_export(str(tmp_path / "run"), tmp_path / "out", layout="flow_factory")
    assert found["with_inputs"] == 7 and "pairs without an input image: 1 of 8." in capsys.readouterr().err
