"""What makes a training another training, and what is kept of what it was trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefkit.config import Choice, Lora
from prefkit.distributed.collectives import Processes
from prefkit.models.load.trained import caption_hash, trained_model, trained_on
from prefkit.store.files import read_json
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.run import fingerprint, run_train
from prefkit.train.setup import ModelLoader

OBJECTIVE = """
from prefkit.train.objectives.dpo import plugin
class Mine(plugin):
    pass
"""


def of(store, recipe, **changes):
    config = replace(recipe.train["dpo"], **changes)
    plan = ModelLoader(store, recipe, config, store.train("dpo"))
    return plan, fingerprint(config, plan, read_pairs(PairSource.find(store, "main")), Processes("cpu"))


def test_the_code_of_plugins_counts(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OBJECTIVE)
    store, recipe = run()
    assert "code" not in of(store, recipe)[1]
    for changes in ({"objective": Choice(f"{file}:Mine")}, {"family": f"{file}:Mine"}):
        file.write_text(OBJECTIVE)
        plan, before = of(store, recipe, **changes)
        file.write_text(OBJECTIVE + "# mended\n")
        again, after = of(store, recipe, **changes)
        assert before != after
        assert (plan.latents_folder() != again.latents_folder()) == ("family" in changes)


def test_the_configuration_of_a_single_file_counts(run, folders):
    store, recipe = run()
    file = folders["sd"] / "unet" / "diffusion_pytorch_model.safetensors"
    found = []
    for kind in (None, "sd", "sd-v"):
        model = replace(recipe.model, base=str(file), config=None if kind is None else str(folders[kind]))
        found.append(of(store, replace(recipe, model=model)))
    assert len({str(own) for _, own in found}) == len({plan.latents_folder() for plan, _ in found}) == 3


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_how_a_batch_is_split_counts_where_dropout_follows_it(run, dropout):
    store, recipe = run(lora=Lora(rank=4, dropout=dropout))
    whole, split = (of(store, recipe, batch_size=size, accumulation=4 // size)[1] for size in (4, 2))
    assert (whole == split) == (dropout == 0)


def test_what_a_model_was_trained_on_is_kept(run, pair_rows):
    first = [row | {"score_0_red": 1.0, "score_1_red": 0.0, "caption": "A  Red\u00a0cat"} for row in pair_rows(2)]
    store, recipe = run(rows=first, steps=1)
    run_train(store, recipe, "dpo")
    found = trained_on(store.train("dpo"))
    base = read_json(store.train("dpo") / "spec.json")["model"]["base"]
    assert found == {"captions": [caption_hash("a red cat")], "scorers": ["red"], "base": base}
    (store.train("dpo") / "trained_on.json").unlink()
    run_train(store, recipe, "dpo")  # done already: it is written all the same
    assert trained_on(store.train("dpo")) == found

    adapters = trained_model(store.folder, recipe.model, "dpo").adapters
    second = [row | {"caption": "two boats", "score_0_blue": 1.0} for row in pair_rows(2)]
    again, other = run(rows=second, steps=1, where="again", model={"adapters": adapters})
    run_train(again, other, "dpo")
    found = trained_on(again.train("dpo"))
    assert found is not None and set(found["captions"]) == {caption_hash("a red cat"), caption_hash("two boats")}
    assert found["scorers"] == ["blue", "red"]


def test_pairs_kept_aside_are_not_trained_on_and_scorers_may_be_unknown(run):
    store, recipe = run(steps=1, validation=1)
    run_train(store, recipe, "dpo")
    found = trained_on(store.train("dpo"))
    assert found is not None and found["scorers"] is None and len(found["captions"]) == 5
    assert trained_on(store.folder) is None
