"""Adapters of transformers as sd-scripts, musubi-tuner and ComfyUI read them, checked with what others wrote.

diffusers' converters of kohya files and of original checkpoints are one witness; the other are facts read in ComfyUI's
loader (comfy/lora.py at 17358c8f, comfy/utils.py of v0.26.1): which names it looks for, and where they go.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from prefkit.errors import TrainingError, UsageError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.lora import adapters
from prefkit.models.lora.files import export_as
from tests.models import editing, kinds
from tests.models.original_names import sd3_state

FLUX_TARGETS = {  # leaf -> inputs, outputs, of a network 3072 wide: diffusers' converter of single blocks knows no other
    "attn.to_q": (3072, 3072), "attn.to_k": (3072, 3072), "attn.to_v": (3072, 3072), "proj_mlp": (3072, 12288),
    "proj_out": (15360, 3072), "norm.linear": (3072, 9216),
}  # fmt: skip


def shaken(net, targets=None, rank=2, alpha=5):
    adapters.add_lora(net, rank=rank, alpha=alpha, targets=targets)
    generator = torch.Generator().manual_seed(3)
    for tensor in adapters.lora_state(net).values():
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return net


def exported(net, folder, layout, denoiser="transformer"):
    adapters.export_adapter(net, denoiser, folder / "run" / "train" / "dpo" / "final")
    return load_file(export_as(folder / "run" / "train" / "dpo", folder / layout, layout)["out"])


def changes(net, name="policy"):
    """Layer -> strength * up @ down."""
    return {
        path: layer.scaling[name] * layer.lora_B[name].weight.data @ layer.lora_A[name].weight.data
        for path, layer in adapters.lora_layers(net)
    }


def product(state, name):
    down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
    return float(state[f"{name}.alpha"]) / len(down) * up @ down


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def read_back(pipeline, state):
    """Layer -> its change, as diffusers' own converter reads a kohya file."""
    read = pipeline.lora_state_dict(dict(state))
    read = read[0] if isinstance(read, tuple) else read
    layers = {key.removesuffix(".lora_A.weight") for key in read if key.endswith(".lora_A.weight")}
    found = {k.removeprefix("transformer."): read[f"{k}.lora_B.weight"] @ read[f"{k}.lora_A.weight"] for k in layers}
    return {name: change for name, change in found.items() if change.any()}  # a fused layer's parts without an adapter


@pytest.mark.parametrize(
    "targets", [None, ("to_k", "to_add_out", "linear_in", "to_qkv_mlp_proj", "single_transformer_blocks.0.attn.to_out")]
)
def test_flux2_as_kohya_is_what_diffusers_reads(tmp_path, targets):
    net = shaken(editing.flux2().transformer, targets)
    assert_same(read_back(diffusers.Flux2Pipeline, exported(net, tmp_path, "kohya")), changes(net))


def test_flux2_as_kohya_loads_into_a_pipeline_as_it_was_trained(tmp_path):
    torch.manual_seed(0)
    pipe = editing.klein()
    pipe.save_pretrained(tmp_path / "model")
    expected = changes(shaken(pipe.transformer, ("attn.to_k", "to_out.0")))
    exported(pipe.transformer, tmp_path, "kohya")
    net = load_pipeline(tmp_path / "model", adapters={str(tmp_path / "kohya" / "dpo.safetensors"): 1.0}).transformer
    assert_same({path: change for path, change in changes(net, "start0").items() if change.any()}, expected)


def test_double_blocks_of_flux_as_kohya_are_what_diffusers_reads(load, tmp_path):
    layers = ("attn.to_q", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
    added = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.2", "norm1_context.linear")
    targets = [*(f"transformer_blocks.0.{layer}" for layer in layers), *added]
    net = shaken(load("flux").transformer, targets)
    state = exported(net, tmp_path, "kohya")
    assert "lora_unet_double_blocks_0_txt_attn_qkv.lora_up.weight" in state
    assert_same(read_back(diffusers.FluxPipeline, state), changes(net))


@pytest.mark.parametrize("left_out", ["", "proj_mlp", "attn.to_k"])
def test_single_blocks_of_flux_at_full_width_as_kohya_are_what_diffusers_reads(tmp_path, left_out):
    generator, state = torch.Generator().manual_seed(0), {}
    for leaf, (inputs, outputs) in FLUX_TARGETS.items():
        name = f"transformer.single_transformer_blocks.7.{leaf}"
        state[f"{name}.lora_A.weight"] = torch.randn(1, inputs, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(outputs, 1, generator=generator)
    state = {key: value for key, value in state.items() if not left_out or left_out not in key}
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors", {"network": "FluxTransformer2DModel"})
    written = load_file(export_as(tmp_path, tmp_path / "out", "kohya")["out"])
    read = diffusers.FluxPipeline.lora_state_dict(written)
    read = {key: value for key, value in read.items() if not left_out or left_out not in key}
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_sd3_as_kohya_changes_the_original_checkpoint_rightly(tmp_path):
    """sd-scripts adds alpha / rank * up @ down to the original code's layers; diffusers' converter leads back."""
    torch.manual_seed(0)
    net = kinds.sd35().transformer
    plain = sd3_state(net)
    before = convert_sd3_transformer_checkpoint_to_diffusers(dict(plain))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    shaken(net, (*adapters.TARGETS, "ff.net.2", "ff_context.net.0.proj"))
    state, tuned = exported(net, tmp_path, "kohya"), dict(plain)
    names = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}": key for key in plain}
    for name in {key.partition(".")[0] for key in state}:
        tuned[names[name]] = tuned[names[name]] + product(state, name)
    after = convert_sd3_transformer_checkpoint_to_diffusers(tuned)
    moved = {
        key.removesuffix(".weight"): after[key] - before[key]
        for key in before
        if not torch.equal(after[key], before[key])
    }
    assert_same(moved, changes(net))


@pytest.mark.parametrize("layer", ["x_embedder", "norm_out.linear"])
def test_layers_without_a_sure_name_are_refused(load, tmp_path, layer):
    with pytest.raises(UsageError, match=f"no name for the layer {layer} in a FluxTransformer2DModel"):
        exported(shaken(load("flux").transformer, (layer,)), tmp_path, "kohya")


def test_networks_without_known_names_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match="UNets, FLUX and SD 3, but this adapter belongs to a AuraFlowTransformer2DModel"
    ):
        exported(shaken(kinds.aura_flow().transformer), tmp_path, "kohya")
    with pytest.raises(TrainingError, match="HunyuanDiT2DModel does not support adapters"):
        shaken(kinds.hunyuan_dit().transformer)


def test_a_sharded_network_is_known_by_its_own_class(load, tmp_path):
    net = shaken(load("sd3").transformer)
    net.__class__ = type("FSDPSD3Transformer2DModel", (type(net),), {})  # as fully_shard does
    assert any("joint_blocks_0_x_block_attn_qkv" in key for key in exported(net, tmp_path, "kohya"))


# As facts, what ComfyUI's loader looks for: name in the file -> (its own layer, None | (first row, rows) in widths there)
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def thirds(names, layer):
    return {name: (layer, (i, 1)) for i, name in enumerate(names)}


def comfy_sd3(i):
    block = f"joint_blocks.{i}"
    found = thirds([f"attn.{n}" for n in ("to_q", "to_k", "to_v")], f"{block}.x_block.attn.qkv")
    found |= thirds([f"attn2.{n}" for n in ("to_q", "to_k", "to_v")], f"{block}.x_block.attn2.qkv")
    found |= thirds([f"attn.{n}" for n in ADDED], f"{block}.context_block.attn.qkv")
    found |= {
        "attn.to_out.0": (f"{block}.x_block.attn.proj", None),
        "attn2.to_out.0": (f"{block}.x_block.attn2.proj", None),
    }
    return found | {"attn.to_add_out": (f"{block}.context_block.attn.proj", None)}


def comfy_flux(i):
    block = f"double_blocks.{i}"
    found = thirds([f"attn.{n}" for n in ("to_q", "to_k", "to_v")], f"{block}.img_attn.qkv")
    found |= thirds([f"attn.{n}" for n in ADDED], f"{block}.txt_attn.qkv")
    return found | {
        "attn.to_out.0": (f"{block}.img_attn.proj", None),
        "attn.to_add_out": (f"{block}.txt_attn.proj", None),
    }


def comfy_flux_single(i):
    found = thirds([f"attn.{n}" for n in ("to_q", "to_k", "to_v")], f"single_blocks.{i}.linear1")
    return found | {
        "proj_mlp": (f"single_blocks.{i}.linear1", (3, 4)),
        "proj_out": (f"single_blocks.{i}.linear2", None),
    }


def comfy_aura(i):
    w = dict(zip(("to_q", "to_k", "to_v", "to_out.0"), ("w2q", "w2k", "w2v", "w2o"), strict=True))
    w |= dict(zip((*ADDED, "to_add_out"), ("w1q", "w1k", "w1v", "w1o"), strict=True))
    return {f"attn.{name}": (f"double_layers.{i}.attn.{own}", None) for name, own in w.items()}


def comfy_aura_single(i):
    w = dict(zip(("to_q", "to_k", "to_v", "to_out.0"), ("w1q", "w1k", "w1v", "w1o"), strict=True))
    return {f"attn.{name}": (f"single_layers.{i}.attn.{own}", None) for name, own in w.items()}


def comfy_z_image(i):
    found = thirds([f"attention.{n}" for n in ("to_q", "to_k", "to_v")], f"layers.{i}.attention.qkv")
    return found | {"attention.to_out.0": (f"layers.{i}.attention.out", None)}


def comfy_qwen(i):  # its network has diffusers' own names
    names = ("to_q", "to_k", "to_v", *ADDED, "to_out.0", "to_add_out")
    return {f"attn.{name}": (f"transformer_blocks.{i}.attn.{name}", None) for name in names}


COMFY = {  # pipeline -> blocks of diffusers -> what is known of block i
    "sd35": {"transformer_blocks": comfy_sd3},
    "flux": {"transformer_blocks": comfy_flux, "single_transformer_blocks": comfy_flux_single},
    "flux2": {"transformer_blocks": comfy_flux},
    "chroma": {"transformer_blocks": comfy_flux, "single_transformer_blocks": comfy_flux_single},
    "aura_flow": {"joint_transformer_blocks": comfy_aura, "single_transformer_blocks": comfy_aura_single},
    "qwen_image": {"transformer_blocks": comfy_qwen},
    "z_image": {"layers": comfy_z_image, "noise_refiner": None, "context_refiner": None},
}


def network(name, load):
    if name == "flux":
        return load("flux").transformer
    return (editing.flux2 if name == "flux2" else getattr(kinds, name))().transformer


@pytest.mark.parametrize("name", COMFY)
def test_comfyui_finds_every_layer_of_a_transformer(load, tmp_path, name):
    net = shaken(network(name, load))
    state = exported(net, tmp_path, "comfyui")
    assert not any(key.endswith(".alpha") for key in state)  # without one the loader's strength is 1
    layers = {key.rpartition(".lora_")[0] for key in state}
    assert {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"} == state.keys()
    assert len(layers) == len(changes(net))
    for layer in layers:
        prefix, blocks, number, rest = layer.split(".", 3)
        assert prefix == "transformer"
        known = COMFY[name][blocks] or COMFY[name]["layers"]
        _, rows = known(int(number))[rest]
        up, width = state[f"{layer}.lora_B.weight"], net.get_submodule(layer.partition(".")[2]).in_features
        assert rows is None or len(up) == rows[1] * width


# A UNet's layers in ComfyUI's map: `lora_unet_` and diffusers' path with underscores, where the path ends in one of these
UNET_BLOCK = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
              "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")  # fmt: skip


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_comfyui_finds_every_layer_of_a_unet(load, tmp_path, kind):
    net = shaken(load(kind).unet, (*adapters.TARGETS[:4], "ff.net.2", "conv1"))
    state = exported(net, tmp_path, "comfyui", "unet")
    known = set()
    for path, _ in net.named_modules():
        _, _, layer = path.partition(".transformer_blocks.")
        if (layer and layer.partition(".")[2] in UNET_BLOCK) or path.endswith((".conv1", ".conv2", ".time_emb_proj")):
            known.add("lora_unet_" + path.replace(".", "_"))
    layers = {key.partition(".")[0] for key in state}
    assert layers <= known and len(layers) == len(list(adapters.lora_layers(net)))
    assert all(float(state[f"{layer}.alpha"]) == len(state[f"{layer}.lora_down.weight"]) for layer in layers)


@pytest.mark.parametrize("builder", [kinds.lumina2, kinds.cogview4, kinds.sana], ids=lambda f: f.__name__)
def test_what_comfyui_would_leave_out_is_refused(tmp_path, builder):
    net = shaken(builder().transformer)
    with pytest.raises(UsageError, match=f"ComfyUI may not know the layer names of a {type(net).__name__}"):
        exported(net, tmp_path, "comfyui")
