"""A quantised denoiser: what is asked of diffusers (without the libraries), and what comes of it (with torchao)."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import sys
import types

import pytest
import torch

from prefkit.config import Eval, Generate, Model, Recipe, Train, compatibility
from prefkit.config.plugin_options import make
from prefkit.errors import UsageError
from prefkit.generate.generators import generator_spec
from prefkit.models import quantize
from prefkit.models.capture.call import capture
from prefkit.models.load.revision import base_revision

SIZE = {"height": 64, "width": 64}


def present(monkeypatch, *libraries):
    """Only these libraries are installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in libraries else None)


@pytest.mark.parametrize(
    ("name", "libraries", "device", "words"),
    [
        ("int4", (), None, "'int4' is not known; choose nf4, int8, fp8"),
        ("nf4", ("torchao",), "cuda", r'needs bitsandbytes: pip install "prefkit\[quantize\]"'),
        ("int8", ("bitsandbytes",), "cpu", r'needs torchao: pip install "prefkit\[quantize\]"'),
        ("nf4", ("bitsandbytes",), "cpu", "nf4 does not run on cpu; there, choose int8 or fp8"),
        ("fp8", ("torchao",), "mps", "fp8 does not run on mps; there, choose nf4 or int8"),
    ],
)
def test_what_cannot_be_is_said(monkeypatch, name, libraries, device, words):
    present(monkeypatch, *libraries)
    with pytest.raises(UsageError, match=words):
        quantize.check_quantize(name, device)


def test_what_can_be_is_not_refused(monkeypatch):
    present(monkeypatch, "torchao", "bitsandbytes")
    for name, device in ((None, "cpu"), ("nf4", "cuda:0"), ("int8", "cpu"), ("fp8", "cpu"), ("nf4", None)):
        quantize.check_quantize(name, device)


@pytest.mark.parametrize(("kind", "denoiser"), [("sd", "unet"), ("flux", "transformer")])
def test_nf4_is_asked_for_of_the_denoiser_alone(monkeypatch, tiny, kind, denoiser):
    version = importlib.metadata.version
    known = {"bitsandbytes": "0.50.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: known.get(name) or version(name))
    given = quantize.quantized(str(tiny[kind]), None, "nf4", torch.bfloat16)
    (mapping,) = [config.quant_mapping for config in given.values()]
    assert list(given) == ["quantization_config"] and list(mapping) == [denoiser]
    config = mapping[denoiser]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "kind"), [("int8", "Int8WeightOnlyConfig"), ("fp8", "Float8WeightOnlyConfig")])
def test_int8_and_fp8_are_torchaos_weight_only_forms(monkeypatch, name, kind):
    import diffusers

    fake = types.ModuleType("torchao.quantization")
    setattr(fake, kind, lambda: f"one {kind}")
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    sys.modules["torchao"].quantization = fake
    monkeypatch.setattr(diffusers, "TorchAoConfig", lambda config: ("asked", config))
    assert quantize.quantization(name, torch.float32) == ("asked", f"one {kind}")


def test_quantisation_is_part_of_what_a_model_and_its_candidates_are(tiny):
    plain = Model(base=str(tiny["sd"]))
    few, fewer = (dataclasses.replace(plain, quantize=name) for name in ("int8", "nf4"))
    assert base_revision(few) == {**base_revision(plain), "quantize": "int8"} != base_revision(fewer)
    specs = [generator_spec(model, Generate()) for model in (plain, few, fewer)]
    assert "quantize" not in specs[0] and specs[1]["quantize"] == "int8" and specs[2]["quantize"] == "nf4"


@pytest.mark.parametrize(("stage", "entry"), [("generate", Generate()), ("train", Train()), ("eval", Eval())])
def test_a_single_file_is_refused(stage, entry):
    recipe = Recipe(model=Model("model.safetensors", quantize="int8"), generate={"own": Generate()})
    with pytest.raises(UsageError, match="model.quantize is int8, but model.safetensors is a single file"):
        compatibility.check(stage, "own", recipe, entry, make("objective", "dpo", {}))


# -- with torchao ---------------------------------------------------------------------------------------------------
@pytest.fixture
def torchao():
    return pytest.importorskip("torchao")


def weights(module):
    return {type(m.weight).__name__ for m in module.modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize(("name", "tensor", "off"), [("int8", "Int8Tensor", 0.02), ("fp8", "Float8Tensor", 0.08)])
def test_the_denoiser_and_nothing_else_is_in_few_bits(torchao, load, name, tensor, off):
    whole, pipe = load("sd3"), load("sd3", quantize=name)
    assert weights(pipe.transformer) == {tensor}
    others = (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
    assert all(weights(module) == {"Parameter"} for module in others)
    given = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([200.0, 700.0])}
    given |= {"encoder_hidden_states": torch.randn(2, 5, 64), "pooled_projections": torch.randn(2, 64)}
    with torch.no_grad():
        ours, exact = (p.transformer(**given).sample for p in (pipe, whole))
    error = ((ours - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < off


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_the_wiring_is_proven_under_quantisation_too(torchao, load, kind):
    plain = capture(load(kind), **SIZE)
    assert capture(load(kind, quantize="int8"), **SIZE) == plain
    parts = load(kind, quantize="int8", sequential_offload=True)
    seen, bring = {}, parts.sequential_offload.load
    parts.sequential_offload.load = lambda part, dtype: seen.setdefault(part, bring(part, dtype))
    assert capture(parts, **SIZE) == plain
    assert "Int8Tensor" in weights(next(iter(seen["denoiser"].values())))
    assert not any("Int8Tensor" in weights(module) for part in ("text", "vae") for module in seen[part].values())
