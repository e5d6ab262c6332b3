"""Compiled, with another attention kernel, from pinned memory: the training stays what it is."""

from __future__ import annotations

import pytest
import torch

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.models.trees import leaves
from prefkit.train import computing
from prefkit.train.run import check_settings


def test_a_back_end_that_is_not_there_or_cannot_train_is_refused_by_name():
    for attention, says in (
        ("quick", r"'quick' is not known; choose null .*flash.*xformers"),
        ("sage", "no backward pass"),
        ("xformers", "xformers cannot be used here: .*xformers"),
    ):
        with pytest.raises(UsageError, match=says):
            check_settings("dpo", Train(attention=attention, device="cpu"))


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(UsageError, match="tf32 is for CUDA devices, and this is cpu; give no"):
        check_settings("dpo", Train(precision="tf32", device="cpu"))


def test_a_back_end_is_used_in_training_and_changes_nothing(run, loop_of, gradients, monkeypatch):
    from diffusers.models import attention_dispatch

    store, recipe = run("flux")
    plain, one = gradients(loop_of(store, recipe))
    registry, name = attention_dispatch._AttentionBackendRegistry, attention_dispatch.AttentionBackendName._NATIVE_MATH
    kernel, calls = registry._backends[name], []
    monkeypatch.setitem(registry._backends, name, lambda **given: calls.append(1) or kernel(**given))
    config = recipe.train["dpo"]
    before = registry.get_active_backend()[0]
    with computing.computing(Train(attention="_native_math"), torch.device("cpu")):
        other, two = gradients(loop_of(store, recipe, attention="_native_math"))
    assert calls and config.attention is None and registry.get_active_backend()[0] == before
    assert other["loss"] == pytest.approx(plain["loss"], abs=1e-4)
    assert (two - one).norm() < 1e-4 * one.norm()


def test_a_network_that_asks_for_no_back_end_is_refused(run, loop_of):
    store, recipe = run("sd")
    with pytest.raises(UsageError, match="UNet2DConditionModel does not go through diffusers' dispatcher"):
        loop_of(store, recipe, attention="native")


def test_float32_is_exact_or_tf32_inside_and_as_it_was_outside():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    cuda = torch.device("cuda")
    for precision, inside in (("no", ("ieee", "ieee")), ("tf32", ("tf32", "tf32")), ("bf16", before)):
        with computing.computing(Train(precision=precision), cuda):
            assert (matmul.fp32_precision, conv.fp32_precision) == inside
        assert (matmul.fp32_precision, conv.fp32_precision) == before
    with computing.computing(Train(), torch.device("cpu")):
        assert (matmul.fp32_precision, conv.fp32_precision) == before


def test_a_pinned_batch_is_the_batch_with_every_tensor_pinned(run, loop_of, monkeypatch):
    store, recipe = run(keep_reference=True)
    loop = loop_of(store, recipe)
    loop.accumulate(loop.micro_batches(0))
    loop.kept.flush()
    (batch,) = loop_of(store, recipe).micro_batches(0)[0]
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    copy = batch.pinned()
    mine, theirs = ([dict(leaves(vars(part))) for part in (b, b.draw, b.groups)] for b in (batch, copy))
    tensors = [value for found in mine for value in found.values() if isinstance(value, torch.Tensor)]
    assert batch.reference and {id(tensor) for tensor in tensors} == {id(tensor) for tensor in pinned}
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(other[key], value, rtol=0, atol=0, equal_nan=True)
