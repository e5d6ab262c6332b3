"""What people have: tables by the names of their columns, NAME_w and NAME_l, tar files, prompts in file names."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from prefkit.errors import UsageError
from prefkit.hub.importing.columns import mapping_of
from prefkit.hub.importing.run import run_import
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts


def taken(run, name):
    """The prompts, and (prompt, winner's SHA-256, loser's) of the verdicts."""
    store = Store(run)
    rows = {c.id: c for c in store.iter_candidates([name])}
    won = [
        (r.id_a, r.id_b) if r.outcome == "a" else (r.id_b, r.id_a) for r in store.comparisons(name).frame().itertuples()
    ]
    return sorted(c.prompt for c in rows.values()), sorted(
        (rows[a].prompt, rows[a].sha256, rows[b].sha256) for a, b in won
    )


def pictures(folder, count=4):
    folder.mkdir()
    data = [layouts.image(n) for n in range(count)]
    for n, picture in enumerate(data):
        (folder / f"{n}.png").write_bytes(picture)
    return data


def verdict(prompt, data, win, lose):
    return prompt, *(hashlib.sha256(data[n]).hexdigest() for n in (win, lose))


@pytest.mark.parametrize(
    ("columns", "flag"),
    [
        ("prompt chosen rejected", "prompt=prompt,chosen=chosen,rejected=rejected"),
        ("id prompt winner loser", "prompt=prompt,chosen=winner,rejected=loser"),
        ("Caption image_w image_l", "prompt=Caption,chosen=image_w,rejected=image_l"),
        ("text chosen_path rejected_path chosen_model", "prompt=text,chosen=chosen_path,rejected=rejected_path"),
        ("prompt left right best split", "prompt=prompt,image_a=left,image_b=right,winner=best,split=split"),
        ("prompt image_1 image_2 judge", "prompt=prompt,image_a=image_1,image_b=image_2,judge=judge"),
        ("file_name text", "prompt=text,image_a=file_name"),
        ("prompt image lose_image", "prompt=prompt,chosen=image,rejected=lose_image"),
        ("prompt image image_win image_lose", "prompt=prompt,chosen=image_win,rejected=image_lose"),
        ("prompt image lose", "prompt=prompt,image_a=image"),
    ],
)
def test_columns_are_found_by_name(columns, flag):
    found = mapping_of(columns.split())
    assert found.flag() == f"--map {flag}" and not found.doubts


@pytest.mark.parametrize(
    ("columns", "doubt"),
    [
        ("text caption chosen rejected", "the prompt may be in text or in caption"),
        ("prompt chosen rejected winner loser", "the pair may be in chosen and rejected or in winner and loser"),
        ("prompt image_a image_b winner loser", "the pair may be in image_a and image_b or in winner and loser"),
        ("prompt image_a image_b winner label", "the verdict may be in winner or in label"),
        ("prompt image path", "the image may be in image or in path"),
        ("prompt score", "no column is named like images"),
        ("prompt image w l", "the pair may be in w and l or in image"),
        (
            "prompt image_0 image_1 label_0 label_1",
            "no column is named like a verdict, but label_... columns may hold it",
        ),
    ],
)
def test_names_that_leave_something_open_are_asked_about(columns, doubt):
    assert mapping_of(columns.split()).doubts[0] == doubt


@pytest.mark.parametrize("kind", ["path", "base64"])
@pytest.mark.parametrize(("head", "better"), [("prompt,winner,loser", 1), ("prompt,left,right,best", 2)])
def test_a_table_needs_no_map(tmp_path, capsys, kind, head, better):
    data = pictures(tmp_path / "i")
    cells = [f"i/{n}.png" if kind == "path" else base64.b64encode(data[n]).decode() for n in range(4)]
    rows = [["a hat", cells[0], cells[1]], ["a boot", cells[3], cells[2]]]
    rows = [row + ["right"] * (better == 2) for row in rows]
    (tmp_path / "t.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")
    counts = run_import(Store(tmp_path / "run"), str(tmp_path / "t.csv"), pairs=True, test_share=0.0)
    order = [(0, 1), (3, 2)] if better == 1 else [(1, 0), (2, 3)]
    expected = sorted(verdict(prompt, data, *pair) for prompt, pair in zip(("a hat", "a boot"), order))
    assert taken(tmp_path / "run", "table")[1] == expected and counts["pairs"] == {"train": 2}
    assert "--map prompt=prompt," in capsys.readouterr().err


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_import_leaves_nothing(tmp_path, cli, before):
    pictures(tmp_path / "i")
    (tmp_path / "t.csv").write_text("prompt,winner,loser\na hat,i/0.png,i/1.png\n")
    (tmp_path / "u.csv").write_text("prompt,image_1,image_2,label\na hat,i/2.png,i/3.png,1\n")
    run = tmp_path / "run"
    if before:
        assert cli("import", tmp_path / "t.csv", run)[0] == 0
    files = sorted(path for path in run.rglob("*") if ".locks" not in path.parts)
    undecided = ("--name", "u", "--as", "table", "--map", "prompt=prompt,image_a=image_1,image_b=image_2", "--pairs")
    for flags, said in ((undecided, "chosen=COLUMN,rejected=COLUMN"), (("--name", "u"), "--values a=1")):
        code, _, err = cli("import", tmp_path / "u.csv", run, *flags)
        assert code == 2 and said in err
        assert sorted(path for path in run.rglob("*") if ".locks" not in path.parts) == files
    assert len(Store(run).requests()) == before
    assert cli("import", tmp_path / "u.csv", run, "--name", "u", "--values", "a=1,b=2", "--pairs")[0] == 0


def test_imagefolder(tmp_path):
    pictures(tmp_path / "train", 3)
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"hat {n}"}) for n in range(3)]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(lines))
    run_import(Store(tmp_path / "run"), str(tmp_path / "train"))
    assert taken(tmp_path / "run", "table") == (["hat 0", "hat 1", "hat 2"], [])


def test_two_images_of_one_name_in_one_folder(tmp_path):
    source = tmp_path / "s"
    data = pictures(source)
    for n, name in enumerate(("red hat_w", "red hat_l", "a_blue boot 2-chosen", "a_blue boot 2-rejected")):
        (source / f"{n}.png").rename(source / f"{name}.png")
    (source / "red hat.txt").write_text("a red hat")
    run_import(Store(tmp_path / "run"), str(source), flags={"file_names": "true"})
    _, won = taken(tmp_path / "run", "folders")
    assert won == sorted([verdict("a red hat", data, 0, 1), verdict("a blue boot", data, 2, 3)])
    (source / "a_blue boot 2-chosen.png").unlink()
    counts = run_import(Store(tmp_path / "more"), str(source), max_failed=1.0)
    assert (counts["comparisons"], counts["failed"]) == (1, 1)
    (source / "other.png").write_bytes(data[2])  # not every name has a side, so that no pair is meant
    with pytest.raises(UsageError, match="could not detect the layout"):
        run_import(Store(tmp_path / "none"), str(source))


def tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_tars_of_captioned_images_and_of_pairs(tmp_path):
    (tmp_path / "s").mkdir()
    data = [layouts.image(n) for n in range(4)]
    for shard in (0, 1):
        files = {
            f"0{shard}0.jpg": data[shard],
            f"0{shard}0.txt": b"a hat %d" % shard,
            f"0{shard}0.json": b'{"caption": "x"}',
        }
        tar(tmp_path / f"s/0000{shard}.tar", files | {f"0{shard}1.jpg": data[2 + shard]})
    counts = run_import(Store(tmp_path / "run"), str(tmp_path / "s"), max_failed=0.5)
    assert taken(tmp_path / "run", "webdataset") == (["a hat 0", "a hat 1"], []) and counts["failed"] == 2
    pair = {
        "x/7.chosen.png": data[1],
        "x/7.rejected.png": data[0],
        "x/7.json": json.dumps({"prompt": "a boot"}).encode(),
    }
    tar(tmp_path / "pairs.tar", pair)
    run_import(Store(tmp_path / "other"), str(tmp_path / "pairs.tar"))
    assert taken(tmp_path / "other", "webdataset")[1] == [verdict("a boot", data, 1, 0)]
