"""One changed byte in any stored file: the result is what it would have been, or the file is named.

The fast tests flip every bit, or many, of each kind of file and read it again. The slow one flips and cuts files of a
half-trained and of a finished run, and runs the verb that reads them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from prefkit.errors import DamagedError, StoreError
from prefkit.store.checksums import check_folder, write_manifest
from prefkit.store.files import dump_line, read_json, read_lines, write_json
from prefkit.store.run import Store
from prefkit.types import Request

HERE = Path(__file__).parent


def forked():
    spec = importlib.util.spec_from_file_location("core_forked", HERE / "forked.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def some(bits, count, seed=0):
    return range(bits) if count >= bits else sorted(random.Random(seed).sample(range(bits), count))


def test_every_bit_of_a_json_file(tmp_path):
    path, value = tmp_path / "spec.json", {"model": "é", "steps": 20, "ratio": 0.1, "of": [1, None, {"a": True}]}
    write_json(path, value)
    data, refused = path.read_bytes(), 0
    assert read_json(path) == value
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit))
        try:
            found = read_json(path)
        except DamagedError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert found == value
    assert refused > 7 * len(data)  # only white space may differ unseen


def test_every_bit_of_a_line_of_metrics(tmp_path, capsys):
    path, good = tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.125}]
    data = "".join(map(dump_line, good)).encode()
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit))
        rows = [{k: v for k, v in row.items() if k in ("step", "loss")} for row in read_lines(path)]
        said = capsys.readouterr().err
        assert rows == good or (str(path) in said and all(row in good for row in rows)) or len(rows) == 1, bit
        assert all(row in good for row in rows)


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"a prompt {i}", "train") for i in range(40)])
    rows = [{"id": f"c{i}", "value": float(i % 7), "aspects": None, "text": None, "error": None} for i in range(300)]
    store.scores("size").append(rows)
    return store


def test_bits_of_a_part_of_a_table(store, capsys):
    (path,) = store.scores("size").parts()
    data, wanted = path.read_bytes(), store.scores("size").read()
    for bit in some(8 * len(data), 1500):
        path.write_bytes(flipped(data, bit))
        found = store.scores("size").read()
        said = capsys.readouterr().err
        assert found.equals(wanted) or (len(found) == 0 and str(path) in said), bit


def test_every_bit_of_the_footer_and_of_the_headers_of_pages(store):
    """What page checksums do not cover: one column is read, so that lost rows would not show as another length."""
    (path,) = store.scores("size").parts()
    data, wanted = path.read_bytes(), store.scores("size").ids()
    first, last = range(4 * 8, 60 * 8), range(8 * (len(data) - 300), 8 * len(data))
    for bit in [*first, *some(len(last), 900)]:
        place = bit if bit in first else last[bit]
        path.write_bytes(flipped(data, place))
        assert store.scores("size").ids() in (wanted, set()), place


def test_bits_of_the_requests(store):
    path, wanted = store.folder / "requests.parquet", store.requests()
    data = path.read_bytes()
    for bit in some(8 * len(data), 600):
        path.write_bytes(flipped(data, bit))
        try:
            assert store.requests() == wanted
        except DamagedError as error:
            assert str(path) in str(error)


def test_bits_of_tensors(tmp_path):
    import torch

    from prefkit.store.tensors import load_tensors, save_tensors

    path, good = (
        tmp_path / "a.safetensors",
        {"a": torch.arange(6.0).bfloat16(), "b": torch.ones(2, 2), "c": torch.zeros(0)},
    )
    save_tensors(path, good, {"notes": "{}"})
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit))
        try:
            found, _ = load_tensors(path, "")
        except DamagedError as error:
            assert str(path) in str(error)
        else:
            assert found.keys() == good.keys() and all(torch.equal(found[k], good[k]) for k in good), bit


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "list"])
def test_a_folder_with_a_list_of_checksums(tmp_path, harm):
    for name in ("a.bin", "sub/b.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(50))
    write_manifest(tmp_path)
    check_folder(tmp_path, "Again.")
    path = tmp_path / ("prefkit-checksums.json" if harm == "list" else "sub/b.bin")
    data = path.read_bytes()
    path.write_bytes(data[:-9] if harm == "cut" else flipped(data, 100))
    if harm == "gone":
        path.unlink()
    with pytest.raises(DamagedError, match=str(path)):
        check_folder(tmp_path, "Again.")


GARBAGE = {
    "empty": b"",
    "half": None,
    "text": b"{",
    "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
}


@pytest.mark.parametrize("listed", [True, False], ids=["checksums", "by an earlier version"])
@pytest.mark.parametrize("harm", [*GARBAGE, "gone", "folder"])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_checkpoint_gives_way_and_its_file_is_named(tmp_path, capsys, file, harm, listed):
    import torch

    from prefkit.train import checkpoint

    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"a": torch.full((4,), float(step))}, {"x": step}, {})
    path = tmp_path / "step-00000002" / file
    data = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "gone":
        found = GARBAGE[harm]
        path.write_bytes(data[: len(data) // 2] if found is None else found)
    if not listed:
        (path.parent / "prefkit-checksums.json").unlink()
    weights, optimizer, state = checkpoint.load_last(tmp_path)
    assert torch.equal(weights["a"], torch.ones(4)) and optimizer == {"x": 1} and state["step"] == 1
    assert str(path) in capsys.readouterr().err
    assert checkpoint.last_step(tmp_path) == 1 and (tmp_path / "step-00000002.damaged").is_dir()


class Rank:
    """One of two processes; `most` exchanges numbers through a list that both share."""

    count = 2

    def __init__(self, main, told):
        self.main, self.told = main, told

    def max(self, number):
        self.told.append(number)
        return max(self.told)


@pytest.mark.parametrize("damaged", [[], [3], [2, 3]])
def test_all_processes_take_the_checkpoint_that_the_first_one_chose(tmp_path, damaged):
    import torch

    from prefkit.train import checkpoint

    for step in (2, 3):
        checkpoint.save(tmp_path, step, {"a": torch.full((1,), float(step))}, {"x": step}, {})
    for step in damaged:
        (tmp_path / f"step-{step:08d}" / "optimizer.pt").write_bytes(b"")
    told = []
    both = [checkpoint.load_last(tmp_path, Rank(main, told)) for main in (True, False)]
    steps = [None if found is None else (found[1]["x"], found[2]["step"], found[0]["a"].item()) for found in both]
    left = max({2, 3} - {*damaged}, default=None)
    assert steps == [None if left is None else (left, left, float(left))] * 2


def test_an_edited_run_json_says_what_to_do(store):
    path = store.folder / "run.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"packages": {}}))
    with pytest.raises(StoreError, match=r"edited by hand.*delete the key `checksum`"):
        Store(store.folder)
    body.pop("checksum")
    path.write_text(json.dumps(body | {"packages": {}}))
    assert Store(store.folder).exists()


# -- whole runs ------------------------------------------------------------------------------------------------------
FINAL = {name: f"run/train/{name}/final/pytorch_lora_weights.safetensors" for name in ("dpo", "on")}
#: (state, files, verb, what must be the same)
HALF = [
    ("half", "run/train/dpo/checkpoints/step-*/*", "train --name dpo", "dpo"),
    ("half", "run/train/dpo/best-*", "train --name dpo", "dpo"),
    ("half", "run/train/on/checkpoints/step-*/*", "train --name on", "on"),
    ("half", "run/train/.cache/*/*/part-*", "train --name dpo", "dpo"),
    ("half", "run/train/.cache/*/wiring.json", "train --name dpo", "dpo"),
    ("half", "run/train/*/*.json*", "train --name dpo", "dpo"),
    ("half", "run/train/on/*.json*", "train --name on", "on"),
    ("half", "run/pairs/main/train/*.parquet", "train --name dpo", "dpo"),
    ("half", "run/pairs/main/*.json", "pair", "pairs"),
    ("half", "run/pairs/main/*/*.parquet", "pair", None),
    ("half", "run/requests.parquet", "generate", "candidates"),
    ("half", "run/run.json", "generate", "candidates"),
    ("half", "run/candidates/own/*", "generate", "candidates"),
    ("half", "run/scores/size/*", "score", "scores"),
    ("half", "run/scores/size/*", "pair", None),
    ("half", "run/image_stats/*", "pair", "pairs"),
    ("done", "run/train/dpo/final/*", "eval", None),
    ("done", "run/train/dpo/final/*", "train --name dpo", "dpo"),
    ("done", "run/train/*/result.json", "train --name dpo", "dpo"),
    ("done", "run/eval/held/result.json", "report", None),
    ("done", "run/eval/held/*/*/*/*/*", "eval", None),
]


TABLES = ("candidates", "scores")


def sound(path):
    from prefkit.store.seal import open_sealed

    try:
        open_sealed(path).close()
    except (OSError, ValueError):
        return False
    return True


def outcome(kit, where, what):
    if what in FINAL:
        path = where / FINAL[what]
        return kit.tensors(path) if path.is_file() else None
    return kit.rows(where / "run" / what) if what else None


def made(kit, root):
    """Folders of a half-trained and of a finished run, and what each verb must end with."""
    half, done = root / "half", root / "done"
    kit.lay_out(half)
    kit.do(half, *("generate -r r.yaml", "score -r r.yaml", "pair -r r.yaml"))
    kit.do(half, "train -r r.yaml --name dpo --limit 4", "train -r r.yaml --name on --limit 2")
    shutil.copytree(half, done, symlinks=True)
    kit.do(done, "train -r r.yaml", "eval -r r.yaml")
    good = {what: outcome(kit, done, what) for what in (*FINAL, "pairs", "candidates", "scores")}
    assert None not in good.values()
    return {"half": half, "done": done}, good


def harm(path, rng):
    data = path.read_bytes()
    if rng.random() < 0.25 and data:
        path.write_bytes(data[: rng.randrange(len(data))])
        return "cut"
    if data:
        path.write_bytes(flipped(data, rng.randrange(8 * len(data))))
    return "flip"


def trial(kit, states, good, root, number, rng):
    """(what was done, "same" | "named" | "later" | a fault)"""
    state, pattern, verb, what = HALF[number % len(HALF)]
    where = root / f"trial-{number}"
    shutil.copytree(states[state], where, symlinks=True)
    path = rng.choice(sorted(p for p in where.glob(pattern) if p.is_file()))
    how = f"{harm(path, rng)} {path.relative_to(where)}: {verb}"
    code, text = kit.call([*verb.split(), "-r", "r.yaml", "-q"], where)
    named = path.name in text
    if "PREFKIT_DEBUG" in text or "Traceback" in text or code not in (0, 1, 2):
        return how, f"unplanned: {code} {text[-300:]}"
    if code == 0 and what in TABLES and path.suffix == ".parquet" and path.exists() and not sound(path):
        shutil.rmtree(where)
        return how, "later"  # this verb read other columns; whoever reads the damaged one will name the file
    if code == 0 and what is not None and outcome(kit, where, what) != good[what]:
        return how, f"{'named, but another result' if named else 'silent'}: {text[-300:]}"
    if code and not named:
        return how, f"the file is not named: {text[-300:]}"
    shutil.rmtree(where)
    return how, "named" if named else "same"


@pytest.mark.slow
def test_flips_over_a_whole_run(tmp_path):
    kit = forked()
    kit.preload()
    count, seed = int(os.environ.get("PREFKIT_FLIPS", "63")), int(os.environ.get("PREFKIT_SEED", "1"))
    states, good = made(kit, tmp_path)
    rng, counts, faults = random.Random(seed), Counter(), []
    for number in range(count):
        how, found = trial(kit, states, good, tmp_path, number, rng)
        fine = found in ("same", "named", "later")
        counts[found if fine else "fault"] += 1
        print(number, how, found, flush=True)
        faults += [] if fine else [f"{how}: {found}"]
    print(dict(counts))
    assert not faults, "\n".join(faults)
