"""Full weights on disk: the denoiser in the base's dtypes, every other file as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefkit.models.load.pipeline import load_pipeline
from prefkit.train.export import _commonest, stored_dtypes
from prefkit.train.run import run_train

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def half(folders, tmp_path):
    """A base whose parts have different dtypes, and files that are no part of it."""
    folder = tmp_path / "half"
    pipe = load_pipeline(folders["sd"])
    pipe.unet.to(torch.bfloat16)
    pipe.text_encoder.to(torch.float16)
    pipe.save_pretrained(folder)
    state = load_file(folder / WEIGHTS)
    kept = next(key for key in state if "norm" in key)
    save_file(state | {kept: state[kept].float()}, folder / WEIGHTS, metadata={"format": "pt"})
    save_file({"x": torch.zeros(9)}, folder / "whole.safetensors")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"the same weights once more")
    return folder, kept


def test_dtypes_sizes_and_values_are_kept(run, half):
    base, kept = half
    store, recipe = run(lora=None, steps=1)
    recipe = replace(recipe, model=replace(recipe.model, base=str(base)))
    loaded = []
    run_train(store, recipe, "dpo")
    final = store.train("dpo") / "final"
    before, after = load_file(base / WEIGHTS), load_file(final / WEIGHTS)
    assert {key: value.dtype for key, value in after.items()} == {key: value.dtype for key, value in before.items()}
    assert after[kept].dtype == torch.float32 and any(not torch.equal(before[key], after[key]) for key in after)
    assert (final / WEIGHTS).stat().st_size == pytest.approx((base / WEIGHTS).stat().st_size, rel=0.01)
    for path in base.rglob("*"):
        own = final / path.relative_to(base)
        if (
            path.is_file()
            and path.name not in ("whole.safetensors", "diffusion_pytorch_model.bin")
            and "unet" not in path.parts
        ):
            assert own.read_bytes() == path.read_bytes(), path
            loaded.append(path.parent.name)
    assert {"vae", "text_encoder", "tokenizer", "scheduler"} <= set(loaded)
    assert not (final / "whole.safetensors").exists() and not list(final.rglob("*.bin"))
    again = load_pipeline(final)  # as generate does
    for key, value in again.unet.state_dict().items():
        assert torch.equal(value, after[key].float())


def test_nothing_but_the_trained_network_is_loaded_for_an_export(run, half, monkeypatch):
    from prefkit.train import export

    store, recipe = run(lora=None, steps=1)
    monkeypatch.setattr(export, "load_pipeline", lambda *args, **given: pytest.fail("a pipeline was loaded"))
    assert run_train(store, replace(recipe, model=replace(recipe.model, base=str(half[0]))), "dpo")["done"]


def test_a_single_file_is_written_in_its_own_dtype(folders, tmp_path):
    state = {key: value.half() for key, value in load_file(folders["sd"] / WEIGHTS).items()}
    save_file(state, tmp_path / "one.safetensors", metadata={"format": "pt"})
    assert _commonest(stored_dtypes([tmp_path / "one.safetensors"]).values()) == torch.float16
