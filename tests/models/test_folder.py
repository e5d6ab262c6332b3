"""Model folders that are not whole, not plain or not pipelines: what is loaded, or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from prefkit.config import Model
from prefkit.errors import UsageError
from prefkit.models.load.folder import Files, files_of
from prefkit.models.load.pipeline import check_model, load_pipeline
from prefkit.models.long_prompts import too_long


@pytest.fixture
def copy(sd, tmp_path):
    return shutil.copytree(sd, tmp_path / "copy")


def weights(folder):
    return [path for path in folder.rglob("*.safetensors")]


def test_the_variant_that_is_there_is_loaded(sd, copy):
    for path in weights(copy):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert files_of(str(sd)) == Files() and files_of(str(copy)) == Files("fp16", only=True)
    one, two = load_pipeline(sd), load_pipeline(copy)
    for name in ("unet", "vae", "text_encoder"):
        pairs = zip(getattr(one, name).state_dict().values(), getattr(two, name).state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_part_with_plain_weights_beside_a_variant_keeps_them(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(path, path.with_suffix(".fp16.safetensors"))
    assert files_of(str(copy)) == Files() and files_of(str(copy), variant="fp16") == Files("fp16")
    with pytest.raises(UsageError, match="model.variant is bf16, but .* has no such weight files .*unet: fp16, plain"):
        load_pipeline(copy, variant="bf16")
    path.unlink()
    assert files_of(str(copy)).variant == "fp16" and files_of(str(copy), {"vae"}) == Files()
    vae = copy / "vae/diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_suffix(".bf16.safetensors"))
    with pytest.raises(UsageError, match="no weight variant exists for all components .unet: fp16; vae: bf16."):
        files_of(str(copy))


class Code:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickled_weights_are_read_without_running_their_code(sd, copy, tmp_path):
    for plain, name in (
        ("unet/diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("text_encoder/model", "pytorch_model"),
    ):
        path = copy / f"{plain}.safetensors"
        torch.save(safetensors.torch.load_file(path), path.with_name(f"{name}.bin"))
        path.unlink()
    assert files_of(str(copy)) == Files(pickled=True)
    one, two = load_pipeline(sd), load_pipeline(copy)
    for name in ("unet", "text_encoder"):
        mine, theirs = getattr(one, name).state_dict(), getattr(two, name).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    torch.save({"x": Code(tmp_path / "ran")}, copy / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match="could not be loaded"):
        load_pipeline(copy)
    assert not (tmp_path / "ran").exists()


def no_weights(copy):
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()


def no_part(copy):
    shutil.rmtree(copy / "vae")


def half_a_download(copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    path = copy / "text_encoder/model.safetensors"
    path.rename(path.with_name("model-00001-of-00002.safetensors"))
    (copy / "text_encoder/model.safetensors.index.json").write_text(json.dumps(index))


def no_index(copy):
    (copy / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_weights, "is incomplete: .*unet holds no weights"),
        (no_part, "is incomplete: its folder vae, listed in model_index.json, is missing"),
        (half_a_download, "it lacks 1 of its 2 weight files, for example model-00002-of-00002"),
        (no_index, "model_index.json could not be read"),
    ],
)
def test_a_folder_that_is_not_whole_says_what_is_missing(copy, spoil, message):
    spoil(copy)
    for look in (lambda: check_model(Model(base=str(copy)), "cpu"), lambda: load_pipeline(copy)):
        with pytest.raises(UsageError, match=message):
            look()


def test_a_folder_that_is_something_else_says_what_it_is(copy, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/pytorch_lora_weights.safetensors").touch()
    cases = {
        "none": "is an empty folder",
        "lora": "is a LoRA adapter",
        "copy/unet": "is only one component of a pipeline",
        ".": "but contains copy. Give",
    }
    for name, message in cases.items():
        with pytest.raises(UsageError, match=message):
            load_pipeline(tmp_path / name)


def test_prompts_that_the_text_encoder_does_not_read_to_the_end_are_counted(sd, recipe, cli, monkeypatch):
    pipe = load_pipeline(sd)
    limit = pipe.tokenizer.model_max_length
    short, long = "a hat", "a red hat " * limit
    assert too_long(pipe, [short, long, long + "x"]) == (2, limit)
    assert too_long(pipe, [short]) == (0, limit)
    (recipe.parent / "prompts.txt").write_text(f"{short}\n{long}\n")
    code, out, err = cli("generate", "-r", recipe, "--requests.test_share", "0", "--n", "1", "--steps", "1", "--json")
    assert code == 0 and json.loads(out)["own"]["long_prompts"] == 1
    assert "model.long_prompts: chunks" in err
    assert err.count("1 of 2 prompts is longer than the text encoder reads") == 1 and "truncated because" not in err
