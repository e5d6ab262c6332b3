"""Adapters in every layout: loaded back they give the trainer's prediction, and what nothing reads is an error."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefkit.errors import UsageError
from prefkit.models.lora import adapters
from prefkit.models.lora.files import export_as
from tests.models.test_adapters import Model, shake

CASES = [
    ("sd", "kohya"),
    ("sd", "comfyui"),
    ("sdxl", "kohya"),
    ("flux", "comfyui"),
    ("sd3", "comfyui"),
    ("flux", "diffusers"),
]


def trained(load, kind, folder, targets=None):
    """A model with an adapter of alpha unlike its rank, its prediction, and the exported final/."""
    model = Model(load, kind)
    adapters.add_lora(model.net, rank=4, alpha=10, targets=targets)
    shake(model.net, "policy")
    adapters.export_adapter(model.net, model.wiring.denoiser, folder / "run" / "train" / "dpo" / "final")
    return model, model(), folder / "run" / "train" / "dpo"


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_loaded_back_it_is_what_was_trained(load, tmp_path, kind, layout):
    model, tuned, folder = trained(load, kind, tmp_path)
    written = export_as(folder, tmp_path / "out", layout)
    assert written["layers"] == len(list(adapters.lora_layers(model.net)))
    again = Model(load, kind)
    base = again()
    again.net = getattr(load(kind, adapters={written["out"]: 1.0}), model.wiring.denoiser)
    assert (again() - base).abs().max() > 1e-2 * base.abs().max()
    torch.testing.assert_close(again(), tuned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "layout"), [("sd", "kohya"), ("flux", "comfyui")])
def test_the_file_says_by_itself_how_weights_change(load, tmp_path, kind, layout):
    """By the rule of the programs that read it: W + alpha / rank * up @ down, alpha = rank where none is given."""
    _, tuned, folder = trained(load, kind, tmp_path)
    state = load_file(export_as(folder, tmp_path / "out", layout)["out"])
    plain = Model(load, kind)
    names = {
        ("lora_unet_" + n.replace(".", "_") if kind == "sd" else f"transformer.{n}"): n
        for n, _ in plain.net.named_modules()
    }
    down, up = (".lora_down.weight", ".lora_up.weight") if kind == "sd" else (".lora_A.weight", ".lora_B.weight")
    for key in [key.removesuffix(down) for key in state if key.endswith(down)]:
        a, b = state.pop(key + down), state.pop(key + up)
        strength = float(state.pop(f"{key}.alpha", torch.tensor(float(len(a))))) / len(a)
        plain.net.get_submodule(names[key]).weight.data += strength * b @ a
    assert not state
    torch.testing.assert_close(plain(), tuned, rtol=1e-4, atol=1e-5)


def test_two_adapters_joined_are_written_with_each_layers_strength(load, tmp_path):
    _, _, folder = trained(load, "sd", tmp_path, targets=("to_q",))
    second = Model(load, "sd", adapters={str(folder / "final"): 0.6})
    adapters.add_lora(second.net, rank=2, alpha=3, targets=("to_q", "to_k"))
    shake(second.net, "policy", seed=1)
    adapters.export_adapter(second.net, "unet", tmp_path / "joined")
    out = export_as(tmp_path / "joined", tmp_path / "out", "kohya")["out"]
    again = Model(load, "sd", adapters={out: 1.0})
    torch.testing.assert_close(again(), second(), rtol=1e-4, atol=1e-5)


def test_a_kohya_file_of_uneven_ranks_and_alphas_loads_right(load, tmp_path):
    """As others write it; diffusers alone would give every layer one alpha."""
    generator, state, plain = torch.Generator().manual_seed(0), {}, Model(load, "sd")
    base = plain()
    modules = [(n, m) for n, m in plain.net.named_modules() if n.endswith(("attn1.to_q", "attn2.to_v", "to_out.0"))]
    for number, (name, module) in enumerate(modules):
        rank, alpha, key = 2 + number % 3, 1.0 + number, "lora_unet_" + name.replace(".", "_")
        down = torch.randn(rank, module.in_features, generator=generator)
        up = 0.1 * torch.randn(module.out_features, rank, generator=generator)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
        module.weight.data += alpha / rank * up @ down
    save_file(state, tmp_path / "a.safetensors")
    again = Model(load, "sd", adapters={str(tmp_path / "a.safetensors"): 1.0})
    assert (plain() - base).abs().max() > 1e-2
    torch.testing.assert_close(again(), plain(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("filled", [torch.randn, torch.zeros])
def test_weights_that_nothing_reads_are_an_error(load, tmp_path, filled):
    _, _, folder = trained(load, "sd", tmp_path)
    for layout, key in (
        ("kohya", "lora_unet_down_blocks_7_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight"),
        ("diffusers", "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"),
        ("diffusers", "wheels.to_q.lora_{}.weight"),
    ):
        out = export_as(folder, tmp_path / "out", layout, overwrite=True)["out"]
        state = load_file(out)
        for side, shape in zip(("down", "up") if layout == "kohya" else ("A", "B"), ((4, 8), (8, 4)), strict=True):
            state[key.format(side)] = filled(shape)
        save_file(state, out)
        with pytest.raises(UsageError, match="would be loaded only in part|could not be loaded"):
            load("sd", adapters={out: 1.0})


def test_what_has_no_such_layout_is_said(load, tmp_path, cli):
    _, _, folder = trained(load, "flux", tmp_path)
    with pytest.raises(UsageError, match="holds no adapter"):
        export_as(tmp_path, tmp_path / "out", "kohya")
    code, out, _ = cli("export", folder, tmp_path / "out", "--as", "comfyui", "--json")
    assert code == 0 and (tmp_path / "out" / "dpo.safetensors").is_file() and "dpo.safetensors" in out


def test_an_adapter_is_not_written_over_itself_and_a_damaged_one_is_named(load, tmp_path):
    _, _, source = trained(load, "sd", tmp_path)
    with pytest.raises(UsageError, match="the adapter itself"):
        export_as(source, source / "final", "diffusers", overwrite=True)
    (source / "final" / "pytorch_lora_weights.safetensors").write_bytes(b"no adapter")
    for layout in ("diffusers", "kohya"):
        with pytest.raises(UsageError, match="damaged"):
            export_as(source, tmp_path / layout, layout)
