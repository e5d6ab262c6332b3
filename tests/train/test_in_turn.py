"""What a training has in memory: a census of live parameters at every load and every call of a part."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace

import pytest
from torch import nn

from prefkit.config import Model
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.meta import part_of
from prefkit.train.run import run_train


class Census:
    """Bytes of the parameters that came to life since it began, and the classes that were loaded."""

    def __init__(self):
        gc.collect()
        gc.freeze()  # what lives already is not counted, nor walked through
        self.peak, self.loaded = 0, []

    def take(self):
        alive = [found for found in gc.get_objects() if type(found) is nn.Parameter and not found.is_meta]
        own = sum(p.numel() * p.element_size() for p in alive if not p.requires_grad)  # the adapter is no part
        self.peak = max(self.peak, own)


@pytest.fixture
def census(monkeypatch):
    import diffusers
    import transformers

    found = Census()

    def watched(kind):
        original = kind.from_pretrained.__func__

        def load(cls, *args, **kwargs):
            module = original(cls, *args, **kwargs)
            module.requires_grad_(False)
            found.loaded.append(cls.__name__)
            found.take()
            return module

        monkeypatch.setattr(kind, "from_pretrained", classmethod(load))

    def called(module, args):
        if isinstance(module, (diffusers.ModelMixin, transformers.PreTrainedModel)):
            found.take()

    for kind in (diffusers.ModelMixin, transformers.PreTrainedModel):
        watched(kind)
    hook = nn.modules.module.register_module_forward_pre_hook(called)
    yield found
    hook.remove()


def sizes(folder):
    """part -> bytes of its parameters."""
    totals = {}
    for name, module in load_pipeline(folder).components.items():
        if isinstance(module, nn.Module):
            own = sum(p.numel() * p.element_size() for p in module.parameters())
            totals[part_of(name)] = totals.get(part_of(name), 0) + own
    return totals


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_the_peak_is_the_largest_part(run, folders, census, kind):
    parts = sizes(folders[kind])
    pipe = load_pipeline(folders[kind])
    census.take()
    assert census.peak == sum(parts.values()) > 1.2 * max(parts.values())  # it would see them together
    del pipe
    gc.collect()
    census.peak = 0
    store, recipe = run(kind)
    assert run_train(store, recipe, "dpo")["done"]
    assert census.peak == max(parts.values())


def test_what_is_cached_loads_nothing(run, census):
    store, recipe = run("sd", steps=2)
    run_train(store, recipe, "dpo")
    assert census.loaded[-1] == "UNet2DConditionModel"
    (conditions,) = (store.folder / "train" / ".cache").glob("*/conditions")

    def again(name):
        census.loaded.clear()
        run_train(store, replace(recipe, train={name: recipe.train["dpo"]}), name)
        return census.loaded

    assert again("second") == ["UNet2DConditionModel"]
    shutil.rmtree(conditions)
    assert again("third") == ["CLIPTextModel", "UNet2DConditionModel"]
    (latents,) = (store.folder / "train" / ".cache").glob("*/latents")
    shutil.rmtree(latents)
    assert again("fourth") == ["AutoencoderKL", "UNet2DConditionModel"]


def test_a_start_adapter_comes_with_its_denoiser(run, census, folders, tmp_path):
    store, recipe = run("sd", steps=2)
    run_train(store, recipe, "dpo")
    start = shutil.copytree(store.train("dpo") / "final", tmp_path / "start")
    parts = sizes(folders["sd"])
    census.peak = 0
    other, _ = run("sd", where="other")
    model = Model(base=recipe.model.base, adapters={str(start): 1.0})
    run_train(other, replace(recipe, model=model), "dpo")
    adapter = sum(p.stat().st_size for p in start.glob("*.safetensors"))
    assert max(parts.values()) <= census.peak <= max(parts.values()) + 2 * adapter < sum(parts.values())
