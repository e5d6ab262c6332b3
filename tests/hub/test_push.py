"""Pushes to a local Hub through the real client: files that arrive, files that stay, refusals, and loading it back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from prefkit.hub.push import push
from prefkit.store.files import read_json, write_json
from prefkit.store.litter import temporary_beside
from prefkit.store.parquet import read_rows

sys.path.insert(0, str(Path(__file__).parent))
import example
import import_layouts as layouts

TOKEN = "hf_goodtoken"
LOAD = """
import sys, json
from datasets import load_dataset
name, first = sys.argv[1], {}
for config in ("default", "bytes", "candidates", "comparisons", "ties"):
    found = load_dataset(name, config, split="train")
    column = found.column_names[0]
    first[config] = [len(found), type(found[0][column]).__name__]
print(json.dumps(first))
"""
PAIRS = """
import sys
from prefkit.store import Store
from prefkit.train.data.pairs import PairSource, read_pairs
store = Store(sys.argv[1])
here, there = (read_pairs(PairSource.find(store, name)) for name in ("main", sys.argv[2]))
assert here == there and len(here) == 8, (here[:1], there[:1])
images = [list(PairSource.find(store, name).images()) for name in ("main", sys.argv[2])]
assert images[0] == images[1]
"""
LORA = """
import sys
from pathlib import Path
import prefkit.tiny
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(Path(prefkit.tiny.__file__).parent / "sd", safety_checker=None)
pipe.load_lora_weights(sys.argv[1])
print(pipe.get_active_adapters())
"""


def answer(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_pushed_loaded_and_read_for_training_are_the_same_pairs(hub, pushed, outside, store):
    found = answer(pushed())
    assert found["changed"] and found["private"] and hub.repositories["dataset", "you/wardrobe"].private
    assert hub.repositories["dataset", "you/wardrobe"].tags == {found["tag"]: found["commit"]}
    loaded = answer(outside.code(LOAD, "you/wardrobe"))
    assert loaded == {
        "default": [8, "PngImageFile"], "bytes": [8, "bytes"], "candidates": [32, "PngImageFile"],
        "comparisons": [1, "str"], "ties": [1, "PngImageFile"],
    }  # fmt: skip
    process = outside.code(PAIRS, store.folder, "you/wardrobe")
    assert process.returncode == 0, process.stderr


def test_a_second_push_makes_no_commit_and_the_users_words_stay(hub, pushed):
    first = answer(pushed())
    again = answer(pushed())
    assert not again["changed"] and again["commit"] == first["commit"] and hub_commits(hub) == 1
    repository = hub.repositories["dataset", "you/wardrobe"]
    files = dict(repository.history[-1][1])
    card = files["README.md"].decode().replace("---\npretty_name", "---\nlicense: mit\npretty_name", 1)
    files["README.md"] = card.replace("<!-- prefkit:begin", "My own words.\n\n<!-- prefkit:begin", 1).encode()
    files["notes/mine.txt"] = b"mine"
    repository.commit(files, "by hand")
    assert not answer(pushed())["changed"]
    found = answer(pushed("--license", "apache-2.0"))
    after = repository.history[-1][1]
    assert found["changed"] and after["notes/mine.txt"] == b"mine"
    text = after["README.md"].decode()
    assert "My own words." in text and yaml.safe_load(text.split("---")[1])["license"] == "mit"


def test_takedowns_leave_every_config_and_with_squash_the_history(hub, pushed, store):
    answer(pushed())
    before = hub.files("dataset", "you/wardrobe")
    gone = store.candidates("own").frame(["id", "request_id", "sha256"]).iloc[[0, 1]]
    process = pushed("--remove", ",".join(gone.id))
    found = answer(process)
    assert "--squash" in process.stderr and set(store.decisions().id[store.decisions().verdict == "remove"]) == set(
        gone.id
    )
    assert found["left_out"]["candidates"] == 2 and found["left_out"]["comparisons"] == 1
    after = hub.files("dataset", "you/wardrobe")
    images = [c.image for c in store.iter_candidates(ids=set(gone.id))]
    assert all(any(image in data for data in before.values()) for image in images)
    assert not any(image in data for data in after.values() for image in images)
    assert not [path for path in after if path.startswith("comparisons/")]
    repository = hub.repositories["dataset", "you/wardrobe"]
    old = dict(repository.tags)
    repository.tags["theirs"] = old[found["tag"]]
    process = pushed("--squash")
    answer(process)
    assert "can still be reached by theirs; delete" in process.stderr
    assert len(repository.history) == 1 and list(repository.tags) == ["theirs", found["tag"]] != list(old)
    assert repository.history[0][1] == after


def test_pairs_without_images_are_embedded_and_bytes_are_the_same(hub, pushed, store, outside, tmp_path):
    from hub_example import build

    answer(pushed())
    bare = build(tmp_path / "bare", embed=False)
    answer(outside.run("push", bare.folder, "--to", "you/bare", "--json"))
    rows = [_rows(hub.files("dataset", name)["train/part-00000.parquet"]) for name in ("you/wardrobe", "you/bare")]
    assert rows[0] == rows[1] and isinstance(rows[0][0]["jpg_0"], bytes)
    again = build(tmp_path / "again", embed=False)
    answer(outside.run("push", again.folder, "--to", "you/again", "--json"))
    assert hub.files("dataset", "you/again")["prefkit.json"] == hub.files("dataset", "you/bare")["prefkit.json"]


def test_pairs_of_edits_are_pushed_with_their_input_images(store):
    sources = [layouts.image(50 + i) for i in range(5)]
    example.add_inputs(store, sources)
    removed = hashlib.sha256(sources[0]).hexdigest()
    planned = push(store, "you/edits", pairs="main", dry_run=True, remove=[removed])
    folder = store.folder / "push" / "pairs-main"
    rows = [row for path in sorted(folder.glob("train/*.parquet")) for row in read_rows(path)]
    assert [row["input_0"] for row in rows] == [sources[i // 2] for i in range(2, 8)]  # the first two show `removed`
    card = (folder / "README.md").read_text()
    meta = yaml.safe_load(card.split("---")[1])
    (features,) = (info["features"] for info in meta["dataset_info"] if info["config_name"] == "default")
    assert {"name": "input_0", "dtype": "image"} in features and meta["task_categories"] == ["image-to-image"]
    assert "| input_N | input images" in card and planned["dry_run"]


def test_a_model_is_pushed_and_loaded(hub, pushed, outside, store):
    from safetensors.torch import save_file

    save_file(_tiny_lora(), store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
    found = answer(pushed("--train", "dpo", to="you/lora"))
    assert {"pytorch_lora_weights.safetensors", "README.md", "trained_on.json"} <= set(hub.files("model", "you/lora"))
    process = outside.code(LORA, "you/lora")
    assert process.returncode == 0 and "default" in process.stdout, process.stderr
    assert not answer(pushed("--train", "dpo", to="you/lora"))["changed"] and found["changed"]


def test_refusals_name_the_fix(hub, pushed, outside, store):
    hub.tokens["hf_reader"] = "you"
    hub.readers.add("hf_reader")
    cases = {
        "expired": (pushed(token="hf_expired"), "hf auth login"),
        "reader": (pushed(token="hf_reader"), "may not write"),
        "other": (pushed(to="someone/else"), "may not write"),
        "nobody": (pushed(token=""), "hf auth login"),
        "unknown": (pushed("--remove", "nothing"), "neither a candidate"),
    }
    for name, (process, fix) in cases.items():
        assert process.returncode in (1, 2) and fix in process.stderr, (name, process.stderr)
        assert "Traceback" not in process.stderr and "hf_" not in process.stderr.replace("hf_hub", "")
    arguments = ("push", store.folder, "--to", "you/wardrobe")
    alone = {"HF_HUB_OFFLINE": {"HF_HUB_OFFLINE": "1"}, "run this again": {"HF_ENDPOINT": "http://127.0.0.1:9"}}
    for fix, environment in alone.items():
        process = outside.start(*arguments, **environment)
        _, text = process.communicate(timeout=300)
        assert process.returncode in (1, 2) and fix in text, text
    assert not hub.repositories


def test_a_repository_that_changes_under_us_is_read_again_and_then_refused(hub, pushed):
    left = [1]

    def somebody(_, repository):
        if left[0]:
            left[0] -= 1
            repository.commit(repository.history[-1][1] | {f"theirs-{left[0]}.txt": b"x"}, "theirs")

    hub.before_commit = somebody
    assert answer(pushed())["changed"]
    assert "theirs-0.txt" in hub.files("dataset", "you/wardrobe")
    left[0] = 10
    process = pushed(to="you/busy")
    assert process.returncode == 1 and "push again" in process.stderr
    assert "train/part-00000.parquet" not in hub.files("dataset", "you/busy")


def test_killed_in_the_upload_and_repeated(hub, outside, store):
    seen, hang = [], [True]

    def slow(_, sha):
        seen.append(sha)
        while hang[0] and len(seen) > 1 and sha == seen[-1]:
            time.sleep(0.05)

    hub.before_put = slow
    arguments = ("push", store.folder, "--to", "you/wardrobe", "--json")
    process = outside.start(*arguments)
    end = time.monotonic() + 200
    while len(seen) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    hang[0] = False
    time.sleep(0.2)
    assert len(seen) >= 2 and list(hub.files("dataset", "you/wardrobe")) == [".gitattributes"]
    hub.before_put = None
    found = answer(outside.run(*arguments))
    assert found["changed"] and hub_commits(hub) == 1
    assert set(found["files"]) | {".gitattributes"} == set(hub.files("dataset", "you/wardrobe"))


def test_a_dry_run_contacts_nobody_and_decides_nothing(hub, pushed, store):
    name = store.candidates("own").frame(["id"]).id[0]
    found = answer(pushed("--dry-run", "--remove", name))
    assert found["dry_run"] and sum(found["files"].values()) == found["bytes"] and not hub.log
    assert not (store.folder / "decisions.csv").exists()


@pytest.mark.parametrize(
    "to", ["you/..", "you/a..b", "you/" + "n" * 97, "you/a--b", "you/x-", "you/x.git", "you/.x", "you", "a/b/c"]
)
def test_a_dry_run_refuses_the_names_that_the_hub_refuses(store, to):
    from prefkit.errors import UsageError
    from prefkit.hub.push import push

    with pytest.raises(UsageError, match="--to"):
        push(store, to, pairs="main", dry_run=True)
    assert not (store.folder / "push").exists()
    assert push(store, "you/" + "n" * 92, pairs="main", dry_run=True)["dry_run"]


def test_a_file_of_the_users_in_the_folder_of_a_push_is_kept(store):
    from prefkit.errors import UsageError
    from prefkit.hub.push import push

    first = push(store, "you/x", pairs="main", dry_run=True)
    folder = store.folder / "push" / "pairs-main"
    assert push(store, "you/x", pairs="main", dry_run=True) == first and first["folder"] == str(folder)
    (folder / "train" / "notes.md").write_text("mine")
    with pytest.raises(UsageError, match="train/notes.md"):
        push(store, "you/x", pairs="main", dry_run=True)
    assert (folder / "train" / "notes.md").read_text() == "mine"
    (folder / "train" / "notes.md").unlink()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = temporary_beside(folder).name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")  # of a push that was killed
    (folder.parent / left / "train").mkdir(parents=True)
    assert push(store, "you/x", pairs="main", dry_run=True) == first
    assert [path.name for path in folder.parent.iterdir()] == ["pairs-main"]


def test_the_token_and_the_recipes_secrets_are_nowhere(hub, pushed, store):
    process = pushed()
    assert process.returncode == 0
    texts = [process.stdout.encode(), process.stderr.encode(), *hub.files("dataset", "you/wardrobe").values()]
    texts += [path.read_bytes() for path in store.folder.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    assert not any(TOKEN.encode() in text for text in texts)
    assert not any(b"hunter2" in text or b"/home/somebody" in text for text in texts)


def test_public_with_a_binding_licence_wants_a_stated_one(hub, pushed, store):
    spec = read_json(store.scores("warmth").folder / "spec.json") | {"licence": "CC-BY-NC-4.0"}
    write_json(store.scores("warmth").folder / "spec.json", spec)
    process = pushed("--public")
    assert process.returncode == 2 and "--license" in process.stderr and not hub.repositories
    answer(pushed("--public", "--license", "cc-by-nc-4.0"))
    assert not hub.repositories["dataset", "you/wardrobe"].private
    card = hub.files("dataset", "you/wardrobe")["README.md"].decode()
    assert "CC-BY-NC-4.0 | **yes" in card and "license: cc-by-nc-4.0" in card


def hub_commits(hub):
    return sum("/commit/" in line for line in hub.log)


def _rows(data):
    import io

    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(data)).to_pylist()


def _tiny_lora():
    """An adapter of the embedded model in the format of diffusers."""
    from pathlib import Path

    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    import prefkit.tiny

    net = UNet2DConditionModel.from_pretrained(Path(prefkit.tiny.__file__).parent / "sd", subfolder="unet")
    net.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    return {
        f"unet.{key}": value.to(torch.float32).contiguous() for key, value in get_peft_model_state_dict(net).items()
    }
