"""An adapter file is read whole, or refused with the name of what nothing reads."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefkit.errors import UsageError
from prefkit.models.lora import adapters
from tests.models.test_adapters import Model, shake

LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
HOLDS = {
    f"lora_unet_{LAYER}.lokr_w1": "LoKr",
    f"lora_unet_{LAYER}.hada_w1_a": "LoHa",
    f"lora_unet_{LAYER}.oft_blocks": "OFT",
    f"lora_unet_{LAYER}.on_input": "IA3",
    f"lora_unet_{LAYER}.dora_scale": "DoRA of LyCORIS",
    f"lora_unet_{LAYER}.lora_mid.weight": "Tucker",
    f"lora_unet_{LAYER}.diff": "differences of whole weights",
    f"lora_unet_{LAYER}.diff_b": "differences of biases",
    "lora_unet_down_blocks_0_resnets_0_norm1.w_norm": "norms",
    "lora_unet_elsewhere.alpha": "",
    "a.note": "",
}


def kohya(net, ends, rank=3, alpha=2.0):
    """(state, layer -> change of its weight) of a file in kohya's layout; ranks and alphas differ from layer to layer."""
    generator, state, changes = torch.Generator().manual_seed(0), {}, {}
    layers = [(n, m) for n, m in net.named_modules() if n.endswith(ends) and hasattr(m, "weight")]
    for number, (name, module) in enumerate(layers):
        size, key = rank + number % 3, "lora_unet_" + name.replace(".", "_")
        out, *inner = module.weight.shape
        down = torch.randn(size, *inner, generator=generator)
        up = 0.1 * torch.randn(out, size, *[1] * (len(inner) - 1), generator=generator)
        strength = (alpha + number) / size
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        state[f"{key}.alpha"] = torch.tensor(alpha + number)
        changes[name] = strength * (up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
    return state, changes


def test_convolutions_ranks_and_alphas_are_those_of_the_file(load, tmp_path):
    plain = Model(load, "sd")
    base = plain()
    state, changes = kohya(plain.net, ("to_q", "conv1", "proj_in", "ff.net.2"))
    save_file(state, tmp_path / "a.safetensors")
    for name, change in changes.items():
        plain.net.get_submodule(name).weight.data += change
    again = Model(load, "sd", adapters={str(tmp_path / "a.safetensors"): 1.0})
    assert (plain() - base).abs().max() > 1e-2
    torch.testing.assert_close(again(), plain(), rtol=1e-3, atol=1e-3)
    assert len(list(adapters.lora_layers(again.net))) == len(changes)


@pytest.mark.parametrize("key", HOLDS)
def test_a_key_that_nothing_reads_is_named(load, tmp_path, key):
    state, _ = kohya(load("sd").unet, ("to_q",))
    save_file(state | {key: torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=HOLDS[key]) as told:
        load("sd", adapters={str(tmp_path / "a.safetensors"): 1.0})
    assert key in str(told.value) and "a.safetensors" in str(told.value)


def test_half_a_pair_and_a_half_dora_are_named(load, tmp_path):
    state, _ = kohya(load("sd").unet, ("to_q",))
    lone = next(key for key in state if key.endswith("lora_up.weight"))
    save_file({key: value for key, value in state.items() if key != lone}, tmp_path / "half.safetensors")
    with pytest.raises(UsageError, match="half a pair of factors"):
        load("sd", adapters={str(tmp_path / "half.safetensors"): 1.0})


@pytest.mark.parametrize("whole", [True, False])
def test_a_dora_of_peft_is_read_whole_or_not_at_all(load, tmp_path, whole):
    from peft import LoraConfig

    made = Model(load, "sd")
    made.net.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], use_dora=True), adapter_name="made")
    shake(made.net, "made")
    state = {}
    for path, layer in adapters.lora_layers(made.net):
        layer.lora_magnitude_vector["made"].weight.data *= 1.5
        state[f"unet.{path}.lora_A.weight"] = layer.lora_A["made"].weight
        state[f"unet.{path}.lora_B.weight"] = layer.lora_B["made"].weight
        state[f"unet.{path}.lora_magnitude_vector"] = layer.lora_magnitude_vector["made"].weight
    if not whole:
        del state[next(key for key in state if "magnitude" in key)]
    save_file({key: value.detach().contiguous() for key, value in state.items()}, tmp_path / "a.safetensors")
    if not whole:
        with pytest.raises(UsageError, match="DoRA of only some of its layers"):
            load("sd", adapters={str(tmp_path / "a.safetensors"): 1.0})
        return
    again = Model(load, "sd", adapters={str(tmp_path / "a.safetensors"): 1.0})
    torch.testing.assert_close(again(), made(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_a_loader_drops_or_scales_is_noticed(load, tmp_path, monkeypatch):
    """Whatever the library does: here it loses a layer, and doubles one."""
    from prefkit.models.load import pipeline as module

    state, _ = kohya(load("sd").unet, ("to_q", "to_v"))
    save_file(state, tmp_path / "a.safetensors")
    right = module._load_file

    def wrong(pipe, denoiser, path, name, change):
        keys = right(pipe, denoiser, path, name)
        change(next(layer for _, layer in adapters.lora_layers(pipe.unet)), name)
        return keys

    def drop(layer, name):
        layer.lora_B[name].weight.data.zero_()

    def double(layer, name):
        layer.scaling[name] *= 2

    for change in (drop, double):
        monkeypatch.setattr(module, "_load_file", lambda *given, change=change: wrong(*given, change))
        with pytest.raises(UsageError, match="loaded only in part or at another strength"):
            load("sd", adapters={str(tmp_path / "a.safetensors"): 1.0})


def test_text_encoders_are_read_too(load, tmp_path):
    pipe = load("sd")
    state, _ = kohya(pipe.unet, ("to_q",))
    names = [n for n, m in pipe.text_encoder.named_modules() if n.endswith(("q_proj", "k_proj", "v_proj", "out_proj"))]
    for number, name in enumerate(names):
        key = "lora_te_" + name.replace(".", "_")
        if not name.startswith("text_model."):
            key = "lora_te_text_model_" + name.replace(".", "_")
        width = pipe.text_encoder.get_submodule(name).weight.shape
        state |= {
            f"{key}.lora_down.weight": torch.randn(2, width[1]),
            f"{key}.lora_up.weight": torch.randn(width[0], 2),
        }
        state[f"{key}.alpha"] = torch.tensor(1.0 + number)
    save_file(state, tmp_path / "a.safetensors")
    tuned = load("sd", adapters={str(tmp_path / "a.safetensors"): 1.0})
    own = [layer for _, layer in adapters.lora_layers(tuned.text_encoder)]
    assert len(own) == len(names) > 0
    changes = {
        key: float(state[f"{key}.alpha"]) / 2 * state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
        for key in {k.split(".")[0] for k in state if k.startswith("lora_te_")}
    }
    for path, layer in adapters.lora_layers(tuned.text_encoder):
        (key,) = [k for k in changes if k.endswith(path.removeprefix("text_model.").replace(".", "_"))]
        change = layer.scaling["start0"] * layer.lora_B["start0"].weight @ layer.lora_A["start0"].weight
        torch.testing.assert_close(change, changes[key], rtol=1e-4, atol=1e-5)


def test_a_damaged_file_and_a_folder_of_several_are_named(load, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    with pytest.raises(UsageError, match=r"broken\.safetensors is damaged or not a safetensors file"):
        load("sd", adapters={str(tmp_path / "broken.safetensors"): 1.0})
    (tmp_path / "other.safetensors").write_bytes(b"neither")
    with pytest.raises(UsageError, match=r"several adapters: broken\.safetensors, other\.safetensors"):
        load("sd", adapters={str(tmp_path): 1.0})


def test_an_exported_adapter_of_odd_strength_passes_its_own_count(load, tmp_path):
    made = Model(load, "sd")
    adapters.add_lora(made.net, rank=4, alpha=7, targets=("to_q", "conv1"))
    shake(made.net, "policy")
    path = adapters.export_adapter(made.net, "unet", tmp_path / "out")
    assert len(load_file(path)) == 2 * len(list(adapters.lora_layers(made.net)))
    again = Model(load, "sd", adapters={str(tmp_path / "out"): 1.0})
    torch.testing.assert_close(again(), made(), rtol=1e-4, atol=1e-5)
