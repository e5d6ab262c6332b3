"""Cards claim only what the run holds: several models and evaluations, imported images, local folders, online training."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hub_example import build

from prefkit.errors import UsageError
from prefkit.hub.cards import facts
from prefkit.hub.cards import template as card
from prefkit.hub.push import push
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.reader import CandidateReader
from prefkit.store.table import candidate_row, comparison_row
from prefkit.types import Candidate, Comparison, Request


@pytest.fixture
def render(tmp_path):
    """render(change, train="dpo"): the card of the example run after `change(store)`, as (metadata, text)."""

    def call(change=lambda store: None, **what):
        store = build(tmp_path / "run")
        change(store)
        found = push(store, "you/wardrobe", dry_run=True, **(what or {"train": "dpo"}))
        return card.split((Path(found["folder"]) / "README.md").read_text())

    return call


def recipe(store, **changes):
    path = store.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_an_evaluation_of_another_model_says_nothing_of_this_one(render):
    def others(store):
        found = read_json(store.eval("held") / "result.json")
        row = found["sets"]["held_out"].pop("dpo")
        found["sets"]["held_out"] = {"ipo": row}
        found |= {"controls": {"missing": []}, "settings": {"in_training": {"held_out": 7}}}
        write_json(store.eval("held") / "result.json", found)

    _, text = render(others)
    assert "Nobody has measured it" in text and "Unmeasured" in text
    assert "The table includes" not in text and "were training prompts" not in text


def test_controls_of_a_model_with_a_longer_name_are_not_its_own(render):
    def more(store):
        missing = ["dpo-b-sft: of dpo-b", "dpo-flipped: of dpo", "base with different guidance (eval.base_guidance)"]
        found = read_json(store.eval("held") / "result.json") | {"controls": {"missing": missing}}
        write_json(store.eval("held") / "result.json", found)
        # a second evaluation has the guidance; a control that only one evaluation misses was measured
        sets = {"set": {"dpo": found["sets"]["held_out"]["dpo"], "base-g3.0": found["sets"]["held_out"]["dpo-sft"]}}
        write_json(store.eval("other") / "result.json", found | {"sets": sets, "controls": {"missing": missing[:2]}})

    _, text = render(more)
    assert "- dpo-flipped: of dpo" in text and "dpo-b" not in text and "different guidance" not in text
    assert "| eval | set |" in text and "| other | set | base-g3.0 |" in text


def test_a_control_is_called_one_and_its_recipe_makes_it(render):
    def control(store):
        store.train("dpo").rename(store.train("dpo-sft"))

    _, text = render(control, train="dpo-sft")
    assert "itself a control for dpo" in text and "The table includes" not in text
    assert "entry train.dpo with `controls: true`" in text and "steps: 300" in text


def test_online_training_is_no_training_on_pairs(render):
    def online(store):
        spec = read_json(store.train("dpo") / "spec.json")
        del spec["train"]["pairs"]
        spec |= {"online": {"rewards": {"warmth": 1.0}, "samples": 4}, "requests": ["r0", "r1"]}
        write_json(store.train("dpo") / "spec.json", spec)

    _, text = render(online)
    assert "trained with the rewards warmth on its own samples" in text and "online, samples | 4" in text
    assert "rewarded by warmth. A reward is not an independent judge" in text and "pairs were chosen" not in text


def test_folders_here_are_no_repositories(render, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)

    def local(store):
        recipe(store, model={"base": "models/mine", "revision": None, "adapters": {}})
        spec = read_json(store.train("dpo") / "spec.json")
        spec["train"]["pairs"] = "models/mine"
        write_json(store.train("dpo") / "spec.json", spec)

    head, _ = render(local)
    assert "base_model" not in head and "datasets" not in head


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("look at me", 'from_pretrained("look at me")'),
        ('a"b', r'from_pretrained("a\"b")'),
        ("sd.safetensors", 'from_single_file("sd.safetensors")'),
    ],
)
def test_the_lines_that_load_it_are_python(render, base, line):
    _, text = render(lambda store: recipe(store, model={"base": base, "revision": None, "adapters": {}}))
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert line in code and "revision" not in code


def test_who_made_the_images(render):
    def several(store):
        recipe(
            store,
            generate={"own": {"use": "diffusers"}, "judge": {"use": "http://me:pass@host/x"}},
            model={"base": "you/base"},
        )
        image = next(iter(store.iter_candidates()))
        for name, spec in {
            "photos": {"imported": "folders", "source": "/home/me/photos", "model": "imported:folders"},
            "judge": {"use": "http://me:pass@host/x", "code": None},
            "gone": {"use": "diffusers", "model": "abc"},
        }.items():
            row = Candidate(f"of-{name}", "r0", 9, 0, image=image.image, sha256=image.sha256)
            store.candidates(name).append([candidate_row(row)])
            write_json(store.candidates(name).folder / "spec.json", spec)

    _, text = render(several, pairs="main")
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:3] for line in text.splitlines() if line.startswith("|")
    }
    assert rows["photos"] == ["none in this run: imported as folders", "-"] and rows["own"][0] == "you/base"
    assert rows["judge"][0] == card.markdown("http://***@host/x") and rows["gone"][0].startswith("unknown")
    assert "| images and verdicts imported as folders | see their source | unknown |" in text


@pytest.mark.parametrize(
    ("licence", "binds"),
    [("Apache-2.0", "no"), ("MIT", "no"), ("CC0-1.0", "no"), ("CreativeML Open RAIL-M", "yes"), ("GPL-3.0", "yes"),
     ("not for commercial use", "yes"), ("research use only", "yes"), ("CC-BY-SA-4.0", "yes"), ("LGPL-3.0", "unknown"),
     ("that of the encoder and of the outfits", "unknown"), ("proprietary", "unknown"), ("MITRE terms", "unknown")],
)  # fmt: skip
def test_only_licences_that_are_known_to_ask_nothing_are_called_so(licence, binds):
    assert facts.binds_users(f"scorer x {licence}", licence) == binds


def test_secrets_and_places_stay_at_home_and_settings_that_only_sound_so_do_not():
    said = {
        "a": {
            "use": "https://judge.example/v1?api_key=hunter2&n=3&sig=hunter3",
            "max_tokens": 64,
            "tokenizer": "you/t",
        },
        "b": {
            "use": "exec:/home/me/env/bin/python /home/me/judge.py --n 3",
            "hf_token": "hunter4",
            "x": "file:///home/me/y",
        },
        "credentials": {"user": "hunter5", "deep": [{"number": 0.5}]},
    }
    shown = facts.clean(said)
    assert "hunter" not in str(shown) and "/home" not in str(shown) and "0.5" not in str(shown)
    assert shown["a"]["max_tokens"] == 64 and shown["a"]["tokenizer"] == "you/t" and "&n=3&" in shown["a"]["use"]
    assert shown["b"]["use"] == "exec:.../python .../judge.py --n 3"


def test_a_split_that_datasets_refuses_is_named_before_anything_is_pushed(render):
    """A bad split name in any config makes even the pairs unloadable."""

    def odd(store):
        image = next(iter(store.iter_candidates()))
        store.write_requests([*store.requests(), Request("x", "odd", "held-out")])
        row = Candidate("odd", "x", 0, 0, image=image.image, sha256=image.sha256)
        store.candidates("own").append([candidate_row(row)])

    with pytest.raises(UsageError, match="candidates: Hugging Face datasets does not accept 'held-out'"):
        render(odd, pairs="main")


def test_versions_are_text(render):
    def odd(store):
        write_json(store.folder / "run.json", {"schema": 1, "packages": {"<img src=x>": "# 1"}})

    _, text = render(odd)
    assert "<img" not in text and "&lt;img src=x> # 1" in text


def test_candidates_that_are_no_pictures_are_rows_without_one(render, tmp_path):
    def meshes(store):
        store.candidates("mesh").append([candidate_row(Candidate("m", "r0", 0, 0, payload=b"numbers"))])

    render(meshes, pairs="main")
    folder = tmp_path / "run" / "push" / "pairs-main" / "candidates" / "train"
    rows = {r["id"]: r for path in folder.glob("*.parquet") for r in pq.read_table(path).to_pylist()}
    assert rows.pop("m")["image"] is None and len(rows) == 32 and all(r["image"] for r in rows.values())
    assert CandidateReader(Store(tmp_path / "run")).image("m") is None


def test_verdicts_on_images_that_are_not_pushed_stay_at_home(render, tmp_path):
    def evaluated(store):
        own = [c.id for c in store.iter_candidates(columns=["id", "request_id", "index", "seed"])][:2]
        for a, b in ((own[1], own[0]), (own[0], "of-an-evaluation")):
            store.comparisons("more").append([comparison_row(Comparison(a, b, "a", "person"))])

    _, text = render(evaluated, pairs="main")
    (path,) = (tmp_path / "run" / "push" / "pairs-main" / "comparisons" / "train").glob("*.parquet")
    assert pq.read_table(path).column("table").to_pylist() == ["more", "votes"] and "| comparisons | train 2 |" in text


def test_an_audit_that_is_cut_says_so(render):
    def long(store):
        write_json(
            store.pairs("main") / "audit.json", {"figures": {f"f{i}": i for i in range(203)}, "warnings": ["look"]}
        )

    _, text = render(long, pairs="main")
    assert "3 further figures are not shown.\n\n- look" in text and text.count("| figures.f") == 200


def test_a_lora_of_default_shape_is_called_one(render):
    """spec.json keeps only what differs from the defaults, which the card once mistook for full weights."""

    def defaults(store):
        spec = read_json(store.train("dpo") / "spec.json")
        write_json(store.train("dpo") / "spec.json", spec | {"train": {"pairs": "main"}})

    _, text = render(defaults)
    assert "| LoRA rank | 16 |" in text and "full weights" not in text
    assert "| objective | dpo |" in text and "| beta | 2000 |" in text and "| learning rate | 1e-05 |" in text


def test_full_weights_are_called_so(render):
    def full(store):
        spec = read_json(store.train("dpo") / "spec.json")
        write_json(store.train("dpo") / "spec.json", spec | {"train": {"pairs": "main", "lora": None}})
        (store.train("dpo") / "final" / "pytorch_lora_weights.safetensors").unlink()
        (store.train("dpo") / "final" / "model_index.json").write_text("{}")

    _, text = render(full)
    assert "| LoRA | none: full weights |" in text and "A pipeline fine-tuned from" in text


def test_an_online_training_is_not_asked_for_controls_on_pairs(render):
    def online(store):
        spec = read_json(store.train("dpo") / "spec.json") | {
            "online": {"rewards": {"warmth": 1.0}},
            "requests": ["r0"],
        }
        del spec["train"]["pairs"]
        write_json(store.train("dpo") / "spec.json", spec)

    _, text = render(online)
    assert "flipped" not in text.lower() and "| LoRA rank | 16 |" in text


def test_a_run_of_imported_images_does_not_promise_to_be_rebuilt(render):
    _, text = render(lambda store: recipe(store, requests={"source": ""}), pairs="main")
    assert "A recipe alone cannot rebuild it" in text and "Save this as recipe.yaml" not in text


def verdicts(store, table, spec, pairs="main"):
    """Give `pairs` winners from a table of verdicts, as `use: comparisons` stores it."""
    write_json(store.comparisons(table).folder / "spec.json", spec)
    folder = store.pairs(pairs)
    stored = read_json(folder / "spec.json")
    write_json(folder / "spec.json", stored | {"spec": {"weights": {}, "comparisons": [table], "scorers": {}}})


@pytest.mark.parametrize(
    ("spec", "claim"),
    [
        ({"imported": "votes"}, "people (t)"),
        ({"imported": "pickapic"}, "people, imported as pickapic (t)"),
        ({"imported": "table"}, "an unknown judge, imported as table (t)"),
        ({"name": "mllm", "version": "1"}, "the model mllm (t)"),
    ],
)
def test_the_card_names_who_chose_the_winners(render, spec, claim):
    _, text = render(lambda store: verdicts(store, "t", spec), pairs="main")
    assert f"The preference is that of {claim}." in text and "not of people" not in text


def test_the_card_of_a_model_trained_on_votes_names_people(render):
    _, text = render(lambda store: verdicts(store, "t", {"imported": "votes"}))
    assert "The winners were chosen by people (t)." in text and "unknown what chose" not in text


def test_a_scorer_that_is_a_model_is_called_one(render):
    def model(store):
        stored = read_json(store.pairs("main") / "spec.json")
        stored["spec"]["scorers"]["warmth"] |= {"weights": "some/weights"}
        write_json(store.pairs("main") / "spec.json", stored)

    _, text = render(model, pairs="main")
    assert "The preference is that of the scorer warmth (a model), not of people" in text


def test_a_scorer_that_was_refitted_is_described_as_when_it_chose(render):
    def refitted(store):
        path = store.scores("warmth").folder / "spec.json"
        write_json(path, read_json(path) | {"version": "99"})

    _, text = render(refitted, pairs="main")
    (row,) = [line for line in text.splitlines() if line.startswith("| score_warmth |")]
    assert "by a later version" in row and " 99 " not in row


def test_the_shape_of_an_adapter_is_read_from_its_file(render):
    import json

    import numpy as np
    from safetensors.numpy import save_file

    def other(store):
        stored = {"unet.r": 3, "unet.lora_alpha": 7, "unet.target_modules": ["to_q"]}
        path = store.train("dpo") / "final" / "pytorch_lora_weights.safetensors"
        save_file({"x": np.zeros(1, np.float32)}, path, {"lora_adapter_metadata": json.dumps(stored)})

    _, text = render(other)
    assert "| LoRA rank | 3 |" in text and "| LoRA alpha | 7 |" in text and "to_q" in text


def test_the_recipe_on_a_card_has_the_settings_of_the_training(render):
    def edited(store):
        recipe(store, train={"dpo": {"pairs": "other", "steps": 7, "objective": {"use": "ipo"}, "lora": {"rank": 99}}})

    _, text = render(edited)
    made = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["train"]["dpo"]
    assert (made["pairs"], made["steps"], made["lora"]["rank"]) == ("main", 300, 16)
    assert made["objective"] == {"use": "dpo", "beta": 2000.0}


def test_functions_of_python_code_are_named(render):
    _, text = render(lambda store: recipe(store, score={"warmth": {"use": "python:warmth"}}), pairs="main")
    assert "python:warmth: functions or classes in the publisher" in text
