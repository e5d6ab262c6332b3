"""An exported adapter, loaded by diffusers alone in another process, gives the prediction that it gave here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefkit.errors import TrainingError, UsageError
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions
from prefkit.models.lora import adapters
from prefkit.models.predict import predict
from prefkit.testing import TINY_KINDS

ALONE = """
import json, sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for base, folder, denoiser in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    given = load_file(folder + "/in.st")
    added = {k.removeprefix("added."): given.pop(k) for k in list(given) if k.startswith("added.")}
    if added:
        given["added_cond_kwargs"] = added
    with torch.no_grad():
        out = getattr(pipe, denoiser)(**given, return_dict=False)[0]
    save_file({"out": out.contiguous()}, folder + "/out.st")
assert "prefkit" not in sys.modules
"""


class Model:
    """A pipeline with one fixed input of its denoiser."""

    def __init__(self, load, kind, **options):
        self.pipe = load(kind, **options)
        self.wiring = capture(self.pipe, height=64, width=64)
        self.net = getattr(self.pipe, self.wiring.denoiser)
        (self.condition,) = capture_conditions(self.pipe, self.wiring, ["a cat"], height=64, width=64)
        shape = (1, 16, 16) if kind == "flux" else (1, 4, 8, 8)
        self.x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.time = torch.tensor([0.5 if self.wiring.prediction == "flow" else 500])

    def __call__(self):
        with torch.no_grad():
            return predict(self.net, self.wiring, self.x, self.time, self.condition)

    def flat_inputs(self):
        from prefkit.models.capture.maps import CLOCK

        given = {k: v for k, v in self.condition.items() if isinstance(v, torch.Tensor)}
        added = {f"added.{k}": v for k, v in (self.condition.get("added_cond_kwargs") or {}).items()}
        time = CLOCK[self.wiring.clock](self.time, self.wiring.train_steps)
        return given | added | {self.wiring.sample: self.x, self.wiring.time: time}


def shake(net, name, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapters.lora_state(net, name).values():
        tensor.data.add_(torch.randn(tensor.shape, generator=generator) * scale)


@pytest.fixture
def adapter_folder(load, tmp_path):
    """An SD adapter with alpha unlike its rank."""
    model = Model(load, "sd")
    adapters.add_lora(model.net, rank=4, alpha=12)
    shake(model.net, "policy")
    adapters.export_adapter(model.net, "unet", tmp_path / "first")
    return str(tmp_path / "first")


def test_exports_load_in_a_fresh_process_with_diffusers_alone(load, tiny, tmp_path):
    jobs, tuned = [], {}
    for kind in TINY_KINDS:
        model = Model(load, kind)
        base = model()
        count = adapters.add_lora(model.net, rank=2, alpha=7)
        assert count == sum(p.numel() for p in model.net.parameters() if p.requires_grad) > 0
        torch.testing.assert_close(model(), base, rtol=0, atol=0)
        shake(model.net, "policy")
        tuned[kind] = model()
        assert (tuned[kind] - base).abs().max() > 1e-2 * base.abs().max()
        adapters.export_adapter(model.net, model.wiring.denoiser, tmp_path / kind)
        save_file(model.flat_inputs(), tmp_path / kind / "in.st")
        jobs.append((str(tiny[kind]), str(tmp_path / kind), model.wiring.denoiser))
    subprocess.run([sys.executable, "-c", ALONE, json.dumps(jobs)], check=True, capture_output=True)
    for kind, ours in tuned.items():
        theirs = load_file(tmp_path / kind / "out.st")["out"].float()
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5, msg=kind)


def test_an_adapter_trained_with_dropout_gives_one_answer(load, tiny, tmp_path):
    from diffusers import DiffusionPipeline
    from safetensors import safe_open

    model = Model(load, "sd")
    adapters.add_lora(model.net, rank=4, alpha=4, dropout=0.5)
    shake(model.net, "policy")
    assert not torch.equal(model(), model())  # in training
    path = adapters.export_adapter(model.net, "unet", tmp_path)
    model.net.eval()
    tuned = model()
    model.pipe = DiffusionPipeline.from_pretrained(tiny["sd"])
    model.pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    model.net = model.pipe.unet
    assert torch.equal(model(), model())
    torch.testing.assert_close(model(), tuned, rtol=1e-4, atol=1e-5)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["lora_adapter_metadata"]) | {"unet.lora_dropout": 0.5}
    save_file(load_file(path), path, metadata | {"lora_adapter_metadata": json.dumps(settings)})
    model.net = load("sd", adapters={str(tmp_path): 1.0}).unet  # as another program may write it
    assert torch.equal(model(), model())
    torch.testing.assert_close(model(), tuned, rtol=1e-4, atol=1e-5)


def test_a_new_adapter_is_stacked_on_weighted_start_adapters_and_exported_with_them(load, adapter_folder, tmp_path):
    model = Model(load, "sd", adapters={adapter_folder: 0.7})
    start = model()
    adapters.add_lora(model.net, rank=3, alpha=5, targets=("to_q", "to_k"))
    assert adapters.active_adapters(model.net) == ["start0", "policy"]
    torch.testing.assert_close(model(), start, rtol=0, atol=0)
    shake(model.net, "policy", seed=1)
    tuned = model()
    with adapters.layers_active([layer for _, layer in adapters.lora_layers(model.net)], ["start0"]):
        torch.testing.assert_close(model(), start, rtol=0, atol=0)
    torch.testing.assert_close(model(), tuned, rtol=0, atol=0)
    adapters.export_adapter(model.net, "unet", tmp_path / "both")
    again = Model(load, "sd", adapters={str(tmp_path / "both"): 1.0})
    torch.testing.assert_close(again(), tuned, rtol=1e-4, atol=1e-5)


def test_two_start_adapters_have_their_own_weights(load, adapter_folder, tmp_path):
    other = Model(load, "sd")
    adapters.add_lora(other.net, rank=2, alpha=2, targets=("to_v",))
    shake(other.net, "policy", seed=5)
    adapters.export_adapter(other.net, "unet", tmp_path / "second")
    both = Model(load, "sd", adapters={adapter_folder: 0.5, str(tmp_path / "second"): -1.5})
    adapters.export_adapter(both.net, "unet", tmp_path / "joined")
    joined = Model(load, "sd", adapters={str(tmp_path / "joined"): 1.0})
    torch.testing.assert_close(joined(), both(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_an_adapter_is_continued_against_a_frozen_copy_of_itself(load, adapter_folder, tmp_path, weight):
    model = Model(load, "sd", adapters={adapter_folder: weight})
    start = model()
    assert adapters.continue_lora(model.net, "start0") > 0
    assert adapters.active_adapters(model.net) == ["policy"]
    torch.testing.assert_close(model(), start, rtol=0, atol=0)
    trainable = {name for name, parameter in model.net.named_parameters() if parameter.requires_grad}
    assert trainable and all(".policy." in name for name in trainable)
    shake(model.net, "policy", seed=2)
    with adapters.layers_active([layer for _, layer in adapters.lora_layers(model.net)], ["start0"]):
        torch.testing.assert_close(model(), start, rtol=0, atol=0)
    adapters.export_adapter(model.net, "unet", tmp_path / "next")
    again = Model(load, "sd", adapters={str(tmp_path / "next"): 1.0})
    torch.testing.assert_close(again(), model(), rtol=1e-4, atol=1e-5)


def test_state_goes_out_and_in(load):
    model = Model(load, "sd")
    adapters.add_lora(model.net, rank=4, alpha=4)
    shake(model.net, "policy")
    saved = {key: value.clone() for key, value in adapters.lora_state(model.net).items()}
    tuned = model()
    shake(model.net, "policy", seed=9)
    adapters.load_lora_state(model.net, saved)
    torch.testing.assert_close(model(), tuned, rtol=0, atol=0)
    with pytest.raises(TrainingError, match="1 keys differ"):
        adapters.load_lora_state(model.net, dict(list(saved.items())[1:]))


def test_new_adapters_are_the_same_for_the_same_seed_and_leave_the_global_one_alone(load):
    states, before = [], torch.random.get_rng_state()
    for seed in (1, 1, 2):
        net = load("sd").unet
        torch.random.set_rng_state(before)
        adapters.add_lora(net, rank=2, alpha=2, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(next(iter(adapters.lora_state(net).values())).clone())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_targets_that_match_nothing_are_an_error(load):
    for wrong in (("nowhere",), ("to_q", "nowhere")):
        with pytest.raises(UsageError, match="ends in 'nowhere'.* linear modules end in .*to_out.0"):
            adapters.add_lora(load("sd").unet, rank=2, alpha=2, targets=wrong)
    with pytest.raises(UsageError, match="Did you mean 'to_q'"):
        adapters.add_lora(load("sd").unet, rank=2, alpha=2, targets=("to_qq",))
    with pytest.raises(UsageError, match="ends in 'norm1' is a LayerNorm, which cannot have"):
        adapters.add_lora(load("sd").unet, rank=2, alpha=2, targets=("norm1",))


def test_adapters_train_in_float32_over_half_precision(load):
    net = load("sd", dtype="bf16").unet
    adapters.add_lora(net, rank=2, alpha=2)
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in net.parameters() if not p.requires_grad} == {torch.bfloat16}
