"""Each exported layout, opened by its reader, or checked against that reader's documentation."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from prefkit.cli.main import run as cli
from prefkit.errors import StoreError, UsageError
from prefkit.hub.export_run import run_export
from prefkit.hub.importing.image_check import suffix_of
from prefkit.hub.importing.pair_writer import write_pairs
from prefkit.hub.importing.run import run_import
from prefkit.hub.pair_reader import Pairs
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts

LABELS = (1.0, 0.0, 0.0, 1.0)  # no ties: what goes in comes out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the pairs `pap`: 6 in train, 2 in test."""
    folder = tmp_path_factory.mktemp("exports")
    layouts.pickapic(folder / "s", 6, LABELS)
    test = layouts.pickapic(folder / "t", 8, LABELS, split="test")
    path = test / "data" / "test-00000-of-00001.parquet"
    rows = [row | {"caption": f"held out {i}"} for i, row in enumerate(layouts.pq.read_table(path).to_pylist()[6:])]
    layouts.pq.write_table(layouts.pa.Table.from_pylist(rows), folder / "s" / "data" / path.name)
    run_import(Store(folder / "run"), str(folder / "s"), name="pap", pairs=True)
    return folder / "run"


def known(run: Path) -> set[tuple[str, str, str, str]]:
    return {(p.split, p.caption, sha(p.win), sha(p.lose)) for p in Pairs(str(run)).rows()}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_pairs_are_those_of_the_source(run):
    wanted = set()
    for path in sorted((run.parent / "s").rglob("*.parquet")):
        for row in layouts.pq.read_table(path).to_pylist():
            win, lose = ("jpg_0", "jpg_1") if row["label_0"] == 1 else ("jpg_1", "jpg_0")
            wanted.add((path.name.split("-")[0], row["caption"], sha(row[win]), sha(row[lose])))
    assert known(run) == wanted and len(wanted) == 8


def test_chosen_rejected_loads_as_images(run, tmp_path):
    import datasets

    found = run_export(str(run), tmp_path / "out", layout="chosen_rejected")
    assert (found["pairs"], found["train"], found["test"]) == (8, 6, 2)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded["train"].features["chosen"], datasets.Image)
    assert loaded["train"][0]["chosen"].size == (16, 16)
    raw = {
        (split, row["prompt"], sha(row["chosen"]["bytes"]), sha(row["rejected"]["bytes"]))
        for split, table in loaded.items()
        for row in table.cast_column("chosen", datasets.Image(decode=False)).cast_column(
            "rejected", datasets.Image(decode=False)
        )
    }
    assert raw == known(run)
    assert {row["chosen_model"] for row in loaded["train"]} <= {"dreamlike", "sdxl"}


@pytest.mark.parametrize("layout", ["chosen_rejected", "rapidata", "folders"])
def test_export_then_import_keeps_the_pairs(run, tmp_path, layout):
    run_export(str(run), tmp_path / "out", layout=layout)
    again = tmp_path / "again"
    if layout == "folders":  # one folder a split, whose name the layout does not say
        for split in ("train", "test"):
            run_import(Store(again / split), str(tmp_path / "out" / split), name="x", pairs=True, test_share=0)
        found = {(s, *p[1:]) for s in ("train", "test") for p in known(again / s)}
        assert found == known(run)
        return
    run_import(Store(again), str(tmp_path / "out"), name="x", pairs=True)
    if layout == "rapidata":  # Rapidata calls every split train, so train is split again
        assert {p[1:] for p in known(again)} == {p[1:] for p in known(run)}
        assert {p for p in known(again) if p[0] == "test"} >= {p for p in known(run) if p[0] == "test"}
    else:
        assert known(again) == known(run)


def test_unpaired_rows_for_kto(run, tmp_path):
    import datasets

    found = run_export(str(run), tmp_path / "out", layout="unpaired")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].dtype == "bool" and table[0]["image"].size == (16, 16)
    assert found["desirable"] == found["undesirable"] == 8 and sum(table["label"]) == 6
    raw = table.cast_column("image", datasets.Image(decode=False))
    won = {(row["caption"], sha(row["image"]["bytes"])) for row in raw if row["label"]}
    assert won == {(c, w) for s, c, w, _ in known(run) if s == "train"}


def test_judge_rows_pass_trls_own_preparation(run, tmp_path):
    import datasets
    from trl.data_utils import is_conversational, prepare_multimodal_messages

    run_export(str(run), tmp_path / "out", layout="trl_judge")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    winners = {p.caption + sha(p.win): p for p in Pairs(str(run)).rows()}
    answers = set()
    for row in table:
        assert is_conversational(row) and len(row["images"]) == 2
        messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
        assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
        assert {row["chosen"][0]["content"], row["rejected"][0]["content"]} == {"A", "B"}
        answers.add(row["chosen"][0]["content"])
    assert answers == {"A", "B"}  # the position does not reveal the answer
    raw = datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / "data" / "train-*"), split="train",
                                cache_dir=str(tmp_path / "cache")).with_format("arrow")  # fmt: skip
    for row in raw[:].to_pylist():
        chosen = row["images"]["AB".index(row["chosen"][0]["content"])]["bytes"]
        assert any(key.endswith(sha(chosen)) for key in winners)


def test_folders_as_simpletuner_and_kohya_pair_them(run, tmp_path):
    found = run_export(str(run), tmp_path / "out", layout="folders")
    assert found["pairs"] == 8 and found["as_png"] == 0
    for split in ("train", "test"):
        win, lose = (sorted((tmp_path / "out" / split / side).iterdir()) for side in "wl")
        assert [p.name for p in win] == [p.name for p in lose]
        images = [p for p in win if p.suffix == ".jpg"]
        assert len(images) * 2 == len(win)
        for path in images:
            other = tmp_path / "out" / split / "l" / path.name
            triple = (split, path.with_suffix(".txt").read_text(), sha(path.read_bytes()), sha(other.read_bytes()))
            assert triple in known(run)
        preferred, rejected = json.loads((tmp_path / "out" / split / "simpletuner.json").read_text())
        assert preferred["conditioning_data"] == [rejected["id"]] and preferred["instance_data_dir"] == f"{split}/w"
        assert rejected["conditioning_type"] == "reference_strict" and rejected["source_dataset_id"] == preferred["id"]


def test_images_of_two_formats_get_one_name(tmp_path):
    for side, kind in (("w", "PNG"), ("l", "JPEG")):
        (tmp_path / "s" / side).mkdir(parents=True)
        (tmp_path / "s" / side / f"0.{kind.lower()}").write_bytes(layouts.image(len(kind), kind))
        (tmp_path / "s" / side / "0.txt").write_text("a hat")
    run_import(Store(tmp_path / "run"), str(tmp_path / "s"), pairs=True, test_share=0)
    assert run_export(str(tmp_path / "run"), tmp_path / "out", layout="folders")["as_png"] == 1
    for side, kind in (("w", "PNG"), ("l", "JPEG")):
        with Image.open(tmp_path / "out" / "train" / side / "0000000.png") as image:
            with Image.open(io.BytesIO(layouts.image(len(kind), kind))) as wanted:
                assert image.format == "PNG" and image.tobytes() == wanted.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["AVIF", "TIFF", "big"])
def test_images_keep_the_ending_of_their_format(tmp_path, kind):
    """Trainers look for suffixes, and .bin is not an image to them. Images of 16 bits become PNGs of 8 bits."""
    suffix = {"AVIF": ".avif"}.get(kind, ".tif")
    for i, side in enumerate("wl"):
        (tmp_path / "s" / side).mkdir(parents=True)
        data = layouts.image(i, kind) if kind != "big" else big_endian_tiff(i)
        assert suffix_of(data) == suffix
        (tmp_path / "s" / side / f"0{suffix}").write_bytes(data)
    run_import(Store(tmp_path / "run"), str(tmp_path / "s"), flags={"prompt": "a hat"}, pairs=True, test_share=0)
    run_export(str(tmp_path / "run"), tmp_path / "out", layout="folders")
    written = ".png" if kind == "big" else suffix
    assert sorted(p.suffix for p in (tmp_path / "out" / "train").rglob("0000000.*")) == sorted(
        [written, written, ".txt", ".txt"]
    )


def big_endian_tiff(value: int) -> bytes:
    out = io.BytesIO()
    Image.frombytes("I;16B", (4, 4), bytes([0, value]) * 16).save(out, "TIFF")
    assert out.getvalue().startswith(b"MM")
    return out.getvalue()


def test_a_file_that_is_another_picture_now_is_not_handed_out(tmp_path):
    """Image files may stay in place; the verdicts on one do not apply to a file that replaced it."""
    source, store = layouts.folders(tmp_path / "s"), Store(tmp_path / "run")
    run_import(store, str(source), test_share=0)
    (source / "w" / "0.png").write_bytes(layouts.image(99))
    with pytest.raises(StoreError, match="0.png. has changed since it was stored"):
        write_pairs(store, "folders")


def test_verl_rows_hold_what_its_reader_asks(run, tmp_path):
    """Read like verl-omni's OfflineDPODataset: one file through pandas, torch.load(weights_only), relative paths."""
    import pandas as pd
    import torch
    from diffusers import StableDiffusion3Pipeline

    from prefkit.testing import tiny_pipeline

    model = tiny_pipeline("sd3", tmp_path / "sd3")
    flags = {"model": str(model), "height": 32, "width": 32, "max_sequence_length": 16}
    run_export(str(run), tmp_path / "out", layout="verl", flags=flags)
    path = tmp_path / "out" / "train-00000.parquet"
    frame = pd.read_parquet(path)
    needed = {"prompt", "img_win", "img_lose", "img_win_latents", "img_lose_latents", "prompt_embeds",
              "prompt_embeds_mask", "pooled_prompt_embeds"}  # fmt: skip
    assert needed <= set(frame) and len(frame) == 6 and frame.uid.is_unique
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    seen = set()
    for row in frame.to_dict("records"):
        assert row["win_score"] >= row["lose_score"]
        assert [m["role"] for m in row["prompt"]] == ["system", "user"]
        prompt = row["extra_info"]["raw_prompt"]
        images = [(path.parent / row[name]).read_bytes() for name in ("img_win", "img_lose")]
        seen.add(("train", prompt, *map(sha, images)))
        tensor = {k: torch.load(io.BytesIO(v), weights_only=True) for k, v in row.items() if isinstance(v, bytes)}
        with Image.open(io.BytesIO(images[0])) as image, torch.no_grad():
            pixels = pipe.image_processor.preprocess([image.convert("RGB")], 32, 32)
            latents = pipe.vae.encode(pixels).latent_dist.mode()[0]
            wanted = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
            embeds = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=16)
        torch.testing.assert_close(tensor["img_win_latents"], wanted)
        torch.testing.assert_close(tensor["prompt_embeds"], embeds[0][0])
        torch.testing.assert_close(tensor["pooled_prompt_embeds"], embeds[2][0])
        assert tensor["prompt_embeds_mask"].shape == embeds[0][0].shape[:1]
    assert seen == {p for p in known(run) if p[0] == "train"}


def test_rapidata_votes_point_to_the_winner(run, tmp_path):
    import datasets

    run_export(str(run), tmp_path / "out", layout="rapidata", flags={"votes": 10})
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    for row in table:
        assert row["votes_image1"] + row["votes_image2"] == 10
        assert json.loads(row["detailed_results"])["metadata"]["p"] == 1.0
    assert {row["votes_image1"] > row["votes_image2"] for row in table} == {True, False}


def test_mistakes_leave_nothing_behind(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli(["export", str(run), str(out)]) == 2 and "--as LAYOUT, one of chosen_rejected" in capsys.readouterr().err
    assert cli(["export", str(run), str(out), "--as", "fodlers"]) == 2
    assert "'folders'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--model"):
        run_export(str(run), out, layout="verl")
    with pytest.raises(UsageError, match="no pairs at"):
        run_export(str(tmp_path / "none"), out, layout="folders")
    bad = tmp_path / "bad" / "train"
    bad.mkdir(parents=True)
    path = next((run / "pairs" / "pap" / "train").iterdir())
    rows = layouts.pq.read_table(path).to_pylist()
    rows[2] |= {"label_0": 0.5, "label_1": 0.5}
    layouts.pq.write_table(layouts.pa.Table.from_pylist(rows), bad / path.name)
    with pytest.raises(UsageError, match=r"part-00000\.parquet row 3 has labels 0\.5"):
        run_export(str(tmp_path / "bad"), out, layout="chosen_rejected")
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="already exists"):
        run_export(str(run), out, layout="folders")
    assert (out / "mine.txt").read_text() == "precious"
    assert cli(["export", f"{run}/pap", str(out), "--as", "folders", "--overwrite"]) == 2
    assert (out / "mine.txt").read_text() == "precious" and len(list(out.iterdir())) == 1


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_overwrite_replaces_an_export_and_this_very_export_is_left_alone(run, tmp_path, capsys):
    out = tmp_path / "out"
    first = run_export(str(run), out, layout="chosen_rejected")
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run_export(str(run), out, layout="chosen_rejected") == first
    assert "already holds this export" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times
    with pytest.raises(UsageError, match="already exists"):
        run_export(str(run), out, layout="folders")
    run_export(str(run), out, layout="folders", overwrite=True)
    run_export(str(run), tmp_path / "wanted", layout="folders")
    found, wanted = ({k: v for k, v in tree(p).items() if k[0] != "."} for p in (out, tmp_path / "wanted"))
    assert found == wanted and (tmp_path / "out" / "train" / "w").is_dir()


def added(out: Path) -> Path:
    (out / "train" / "notes.md").write_text("mine")
    return out / "train" / "notes.md"


def corrected(out: Path) -> Path:
    path = next((out / "train" / "w").glob("*.txt"))
    path.write_text("corrected")
    return path


def linked(out: Path) -> Path:
    (out.parent / "photos").mkdir()
    (out.parent / "photos" / "p.png").write_bytes(b"p")
    (out / "photos").symlink_to(out.parent / "photos")
    return out / "photos"


@pytest.mark.parametrize("change", [added, corrected, linked])
def test_overwrite_keeps_a_folder_with_a_file_of_the_users(run, tmp_path, change):
    out = tmp_path / "out"
    run_export(str(run), out, layout="folders")
    path = change(out)
    before = tree(out)
    for layout in ("folders", "unpaired"):
        with pytest.raises(UsageError, match=f"{path.name} was added or changed since the export"):
            run_export(str(run), out, layout=layout, overwrite=True)
    assert tree(out) == before and not list(tmp_path.glob(".out*"))
    with pytest.raises(UsageError, match="already exists"):  # no longer the same export
        run_export(str(run), out, layout="folders")


@pytest.mark.parametrize("prompt", ["a red dress\n  on white\n\nin light\n", "a red dress\r\non white\u2028in light"])
def test_captions_of_several_lines_are_one_line_in_files(tmp_path, prompt):
    """SimpleTuner reads the lines of a caption file as alternatives, and kohya reads only the first."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(layouts.image(i))
    row = {"p": prompt, "a": "0.png", "b": "1.png", "w": "a"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    flags = {"map": "prompt=p,image_a=a,image_b=b,winner=w"}
    run_import(
        Store(tmp_path / "run"), str(tmp_path / "t.jsonl"), layout="table", flags=flags, pairs=True, test_share=0
    )
    found = run_export(str(tmp_path / "run"), tmp_path / "out", layout="folders")
    assert found["captions_joined"] == 1
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*.txt")]
    assert texts == ["a red dress on white in light"] * 2


def test_a_mistyped_layout_names_the_nearest_also_of_adapters(run, tmp_path, capsys):
    for layout, near in (("kohia", "kohya"), ("fodlers", "folders"), ("comfui", "comfyui")):
        assert cli(["export", str(run), str(tmp_path / "out"), "--as", layout]) == 2
        said = capsys.readouterr().err
        assert f"Did you mean '{near}'?" in said and "rapidata" in said and "diffusers" in said


def test_a_pair_table_of_ids_takes_its_images_from_the_run(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "pairs").rglob("*.parquet"):
        table = layouts.pq.read_table(path)
        rows = [row | {"jpg_0": None, "jpg_1": None} for row in table.to_pylist()]
        layouts.pq.write_table(layouts.pa.Table.from_pylist(rows, schema=table.schema), path)
    assert known(tmp_path / "run") == known(run)
