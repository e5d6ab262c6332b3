"""Cards: no placeholder left, the user's parts survive, hostile text stays text, and the examples are up to date."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import jinja2
import pytest
import yaml
from hub_example import build, build_fit

from prefkit.errors import StoreError, UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards import template as card
from prefkit.hub.cards.model_card import model_card
from prefkit.hub.push import push, push_fit
from prefkit.store.files import read_json, write_json

ROOT = Path(__file__).parents[2] / "datasets_cards"
WHICH = {"example_dataset": {"pairs": "main"}, "example_model": {"train": "dpo"}}


@pytest.mark.parametrize("name", [*WHICH, "example_scorer"])
def test_the_example_in_the_repository_is_what_is_rendered(name, tmp_path):
    if name == "example_scorer":
        found = push_fit(build_fit(tmp_path / "fitted/vbpr"), "you/taste", dry_run=True)
    else:
        found = push(build(tmp_path / "run"), "you/wardrobe", dry_run=True, **WHICH[name])
    rendered = (Path(found["folder"]) / "README.md").read_text()
    assert rendered == (ROOT / name / "README.md").read_text()
    assert not re.search(r"\{\{|\}\}|TODO|More Information Needed|\bNone\b", rendered)
    head, _ = card.split(rendered)
    assert head["tags"] and ("configs" in head) == (name == "example_dataset")
    for image in re.findall(r"!\[.*?\]\((.*?)\)", rendered):
        assert (ROOT / name / image).is_file() and (Path(found["folder"]) / image).is_file()


def test_a_scorer_without_a_spec_counts_as_unverified(tmp_path):
    store = build(tmp_path / "run")
    path = store.pairs("main") / "spec.json"
    spec = json.loads(path.read_text())
    spec["spec"]["scorers"] = {name: {} for name in spec["spec"]["scorers"]}
    path.write_text(json.dumps({key: value for key, value in spec.items() if key != "checksum"}))
    found = push(store, "you/wardrobe", dry_run=True, pairs="main")
    assert "Not every scorer was checked" in (Path(found["folder"]) / "README.md").read_text()


@pytest.mark.parametrize("name", ["pairs", "train"])
def test_an_empty_name_is_not_the_only_pairs(tmp_path, name):
    with pytest.raises((UsageError, ValueError)):
        push(build(tmp_path / "run"), "you/wardrobe", dry_run=True, **{name: ""})


def test_the_sheet_shows_the_winner_first(tmp_path):
    from PIL import Image

    from prefkit.hub.cards.contact_sheet import CELL, GAP, pair_sheet

    def plain(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 30), colour).save(buffer, "PNG")
        return buffer.getvalue()

    pair_sheet([(plain("red"), plain("blue")), (b"damaged", plain("blue"))], tmp_path / "sheet.webp")
    sheet = Image.open(tmp_path / "sheet.webp").convert("RGB")
    middle = GAP + CELL // 2
    left, right = sheet.getpixel((middle, middle)), sheet.getpixel((middle + CELL + 2 * GAP, middle))
    assert left[0] > 200 > left[2] and right[2] > 200 > right[0]


METADATA = {"tags": ["prefkit"], "configs": [{"config_name": "default", "data_files": "a"}], "license": "mit"}


@pytest.mark.parametrize(
    "existing",
    [
        None,
        "",
        "# mine\n\ntext",
        "---\nlicense: apache-2.0 # my choice\ntags: [mine]\nconfigs:\n- {config_name: own, data_files: b}\n---\n\n# mine\n",
        "---\n{}\n---\n",
        "---\nlanguage: en\n---\nbefore\n<!-- prefkit:begin x -->\nold\n<!-- prefkit:end -->\nafter\n",
    ],
)
def test_merging_twice_is_merging_once_and_keeps_what_was_there(existing):
    once = card.merge(existing, METADATA, "body\n")
    assert card.merge(once, METADATA, "body\n") == once and once.count(card.END) == 1
    head, text = card.split(once)
    old, words = card.split(existing or "")
    assert "body" in text and "old" not in text
    assert all(line in text for line in words.splitlines() if "prefkit" not in line and line != "old")
    assert head["license"] == old.get("license", "mit") and set(old.get("tags", [])) | {"prefkit"} == set(head["tags"])
    names = [entry["config_name"] for entry in head["configs"]]
    assert "default" in names and all(entry["config_name"] in names for entry in old.get("configs", []))


@pytest.mark.parametrize("front", ["---\n---\n", "---\n\n---\n", "--- \n1: x\nlicense: cc0-1.0\nown: null\n---\n", ""])
def test_every_way_to_write_the_metadata_keeps_it_and_the_text(front):
    existing = f"{front}\n# mine\n\n---\n\nmore\n"
    old, text = card.split(existing)
    assert existing == front + text
    once = card.merge(existing, METADATA, "body")
    head, merged = card.split(once)
    assert merged.startswith("\n# mine\n\n---\n\nmore\n\n<!-- prefkit:begin") and head == METADATA | old | {
        "tags": ["prefkit"]
    }
    assert card.merge(once, METADATA, "body") == once


@pytest.mark.parametrize("marker", [card.BEGIN, card.END])
def test_a_marker_in_what_is_told_ends_nothing(marker):
    body = f"head\n{marker}\ntail\n"
    once = card.merge("# mine\n", METADATA, body)
    again = card.merge(once, METADATA, body)
    assert again == once and once.count(card.END) == once.count(card.BEGIN) == 1 and again.count("tail") == 1


def test_metadata_that_is_no_yaml_is_refused():
    with pytest.raises(StoreError, match="nothing was changed"):
        card.merge("---\n[a: b\n---\ntext", METADATA, "body")


def test_hostile_text_stays_text():
    found = card.table([{"a": "x | y\n<!-- prefkit:end --> <script>"}])
    assert found.count("\n") == 2 and "<" not in found and "x \\| y" in found
    assert card.fence("```\nout").startswith("````")


def test_secrets_and_places_do_not_leave():
    found = facts.clean(
        {"api_key": "k", "use": "/home/me/taste.py:f", "url": "https://me:pw@host/x", "n": [1, "~/a/b"]}
    )
    assert found == {"api_key": "***", "use": ".../taste.py:f", "url": "https://***@host/x", "n": [1, ".../b"]}


def test_templates_escape_every_value_and_fail_without_one(tmp_path, monkeypatch):
    (tmp_path / "t.md.j2").write_text("# {{ a }}\n{% if b %}\n## gone\n{% endif %}\n{{ [{'c': a}] | table }}\n")
    monkeypatch.setattr(card, "FOLDERS", (tmp_path,))
    assert card.render("t", {"a": "x|<y>", "b": ""}) == "# x\\|&lt;y>\n| c |\n|---|\n| x\\|&lt;y> |"
    with pytest.raises(jinja2.UndefinedError):
        card.render("t", {"b": ""})


def test_configs_name_every_file(tmp_path):
    found = push(build(tmp_path / "run"), "you/wardrobe", dry_run=True)
    head = yaml.safe_load((Path(found["folder"]) / "README.md").read_text().split("---")[1])
    patterns = {file["path"] for config in head["configs"] for file in config["data_files"]}
    data = [path for path in found["files"] if path.endswith(".parquet")]
    assert data and all(f"{path.rpartition('/')[0]}/*.parquet" in patterns for path in data)


def test_the_card_of_a_model_names_the_encoder_of_its_diversity_without_paths():
    from prefkit.hub.cards.model_card import _verdict

    row = {
        "diversity_base": 0.3,
        "encoder_diversity": {"encoder": "local-dir:/home/me/clip", "base": 0.2, "tuned": 0.1},
    }
    shown = _verdict("taste", row)
    assert shown["diversity by .../clip, base"] == 0.2 and shown["diversity by .../clip, tuned"] == 0.1
    assert [key for key in _verdict("taste", {}) if "diversity" in key] == ["diversity, base", "diversity, tuned"]


def test_the_card_of_a_model_states_distances_to_real_images_with_their_caveats(tmp_path):
    store = build(tmp_path / "run")
    plain = model_card(store, "dpo", "you/dpo", False, None).body
    assert "real ones" not in plain
    path = store.eval("held") / "result.json"
    result = read_json(path)
    numbers = {"base": 2.0, "tuned": 1.5, "difference": -0.5, "ci_low": None, "ci_high": None}
    apart = {
        "encoder": "local-dir:/home/me/clip",
        "n": 172,
        "n_real": 500,
        "frechet": numbers,
        "caveats": ["A.", "B " * 300 + "end."],
    }
    apart["cmmd"] = numbers | {"ci_low": -0.75, "ci_high": -0.25}
    result["sets"]["held_out"]["dpo"]["palette"]["real_distance"] = apart
    write_json(path, result)
    body = model_card(store, "dpo", "you/dpo", False, None).body
    assert "| held | held_out | Fréchet | .../clip | 2 | 1.5 | -0.5 | - to - | 172 | 500 |" in body
    assert "| held | held_out | CMMD | .../clip | 2 | 1.5 | -0.5 | -0.75 to -0.25 | 172 | 500 |" in body
    assert "\n\nA.\n\nB B" in body and "B end.\n" in body and "/home/me" not in body
