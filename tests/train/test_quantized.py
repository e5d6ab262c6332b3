"""Training an adapter on a quantised denoiser, whose frozen reference is that very network; torchao runs on CPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml

from prefkit.api import Run
from prefkit.config import Lora
from prefkit.errors import UsageError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.load.trained import trained_model
from prefkit.train.families.diffusers import DiffusersFamily
from prefkit.train.run import run_train
from prefkit.train.setup import ModelLoader


def test_full_weights_are_refused(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    store, recipe = run(model={"quantize": "int8"}, lora=None)
    with pytest.raises(UsageError, match=r"train\.dpo\.lora is null, but full weights cannot be trained in int8"):
        run_train(store, recipe, "dpo")


def test_caches_of_another_precision_do_not_mix(run):
    store, recipe = run()
    plans = [
        ModelLoader(
            store, replace(recipe, model=replace(recipe.model, quantize=name)), recipe.train["dpo"], store.train("dpo")
        )
        for name in (None, "nf4", "int8", "fp8")
    ]
    assert len({plan.reference_folder() for plan in plans}) == 4
    assert (
        len({(plan.latents_folder(), plan.conditions_folder()) for plan in plans}) == 1
    )  # neither passes the denoiser


# -- with torchao ---------------------------------------------------------------------------------------------------
@pytest.fixture
def torchao():
    return pytest.importorskip("torchao")


def error_of(loop, net):
    with torch.no_grad():
        return torch.cat([loop.residuals(net, batch)["image"] for micro in loop.micro_batches(0) for batch in micro])


@pytest.mark.parametrize(("kind", "name"), [("sd", "int8"), ("flux", "int8"), ("sd", "fp8")])
def test_the_reference_is_the_quantised_start_and_the_export_loads_back(torchao, run, loop_of, folders, kind, name):
    store, recipe = run(kind, model={"quantize": name}, learning_rate=1e-2)
    loop = loop_of(store, recipe)
    loader = {"base": folders[kind], "quantize": name}
    start = DiffusersFamily()
    start.load(loader, parts={"denoiser"}, wiring=loop.family.wiring)
    before = error_of(loop, start.net)
    assert torch.equal(error_of(loop, loop.policy.net), before)
    assert run_train(store, recipe, "dpo")["done"]
    loop.run()
    with loop.policy.reference() as net:
        assert net is loop.policy.net and torch.equal(error_of(loop, net), before)  # the adapter is off
    after = error_of(loop, loop.policy.net)
    moved = (after - before).abs().max().item()
    assert moved > 1e-2
    model = trained_model(store.folder, recipe.model, "dpo")
    assert model.quantize == name
    tuned = load_pipeline(model.base, adapters=model.adapters, quantize=model.quantize)
    torch.testing.assert_close(
        error_of(loop, getattr(tuned, loop.family.wiring.denoiser)), after, rtol=0, atol=1e-3 * moved
    )
    with pytest.raises(UsageError, match="trained from another model"):
        trained_model(store.folder, replace(recipe.model, quantize=None), "dpo")


def test_a_start_adapter_is_continued_on_quantised_weights(torchao, run):
    store, recipe = run(model={"quantize": "int8"}, learning_rate=1e-2)
    run_train(store, recipe, "dpo")
    second = replace(recipe, model=trained_model(store.folder, recipe.model, "dpo"))
    second = replace(second, train={"more": replace(recipe.train["dpo"], lora=Lora(rank=4, resume=True))})
    assert run_train(store, second, "more")["done"]


def test_from_generation_to_evaluation(torchao, recipe):
    text = yaml.safe_load(recipe.read_text())
    text["model"]["quantize"] = "int8"
    recipe.write_text(yaml.safe_dump(text))
    run = Run(recipe=recipe)
    run.generate()
    assert run.store.candidates("own").spec()["quantize"] == "int8"
    run.score()
    run.pair()
    assert run.train()["dpo"]["done"]
    assert (run.store.train("dpo") / "final").is_dir()
    assert set(run.eval()["held_out"]["sets"]["held_out"]) == {"dpo"}
