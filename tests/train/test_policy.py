"""Adapters that start from adapters: whose dropout is on, and which shapes can be continued."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from prefkit.config import Lora, Train
from prefkit.errors import UsageError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.lora import adapters
from prefkit.train import policy as policies
from prefkit.train.policy import make_policy


@pytest.fixture(scope="module")
def start(tmp_path_factory, folders):
    """A function giving a fresh network with an adapter of rank 4, alpha 6, that says it was trained with dropout."""

    def make():
        net = load_pipeline(folders["sd"]).unet
        targets = ["to_q", "to_k"]
        net.add_adapter(LoraConfig(r=4, lora_alpha=6, lora_dropout=0.5, target_modules=targets), adapter_name="start0")
        generator = torch.Generator().manual_seed(0)
        for tensor in adapters.lora_state(net, "start0").values():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        return net.eval()

    return make


def answer(net):
    generator = torch.Generator().manual_seed(1)
    given = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 7, 32, generator=generator),
    )
    with torch.no_grad():
        return net(*given, return_dict=False)[0]


def shaken(net):
    with torch.no_grad():
        for tensor in adapters.lora_state(net).values():
            tensor.add_(0.1)
    return net


@pytest.mark.parametrize("lora", [Lora(rank=2, dropout=0.5), Lora(rank=4, dropout=0.5, resume=True)])
def test_dropout_is_on_in_the_policy_alone(start, lora):
    expected = answer(start())
    policy = make_policy(start(), Train(lora=lora), frozen=True)
    shaken(policy.net)
    with policy.reference() as net:
        assert torch.equal(answer(net), expected) and torch.equal(answer(net), expected)
    assert not torch.equal(answer(policy.net), answer(policy.net))


def test_a_continued_adapter_has_the_dropout_that_is_asked_for(start):
    policy = make_policy(start(), Train(lora=Lora(rank=4, resume=True)), frozen=True)
    shaken(policy.net).train()
    assert torch.equal(answer(policy.net), answer(policy.net))


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"rank": 32}, "rank is 4, not 32"),
        ({"rank": 4, "alpha": 64.0}, "alpha is 6, not 64"),
        ({"rank": 4, "targets": ["to_q"]}, "first to differ: .*to_k"),
        ({"rank": 4, "targets": ["to_q", "to_k", "to_v"]}, "first to differ: to_v"),
    ],
)
def test_a_continued_adapter_keeps_its_shape(start, shape, words):
    with pytest.raises(UsageError, match=words):
        make_policy(start(), Train(lora=Lora(resume=True, **shape)), frozen=True)


def test_its_own_shape_may_be_said(start):
    lora = Lora(rank=4, alpha=6.0, targets=["to_k", "to_q"], resume=True)
    policy = make_policy(start(), Train(lora=lora), frozen=True)
    assert sum(parameter.numel() for parameter in policy.parameters()) > 0


def test_a_start_with_dora_is_refused_before_anything_is_trained(start):
    net = start()
    net.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True), adapter_name="magnified")
    with pytest.raises(UsageError, match="magnified is a DoRA adapter"):
        make_policy(net, Train(lora=Lora(rank=4)), frozen=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["sd", "sd3"])
@pytest.mark.parametrize("asked", [None, True, False])
def test_gradient_checkpointing_is_on_for_transformers_on_cuda_unless_set(folders, monkeypatch, kind, device, asked):
    monkeypatch.setattr(policies, "device_of", lambda name: device)
    pipe = load_pipeline(str(folders[kind]))
    net = pipe.unet if kind == "sd" else pipe.transformer
    make_policy(net, Train(gradient_checkpointing=asked), frozen=False)
    default = (kind, device) == ("sd3", "cuda")
    assert net.is_gradient_checkpointing is (default if asked is None else asked)
