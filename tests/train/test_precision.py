"""Compiled, with another attention kernel, from pinned memory: the training stays what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefkit.config import Online, Recipe, Train, content
from prefkit.errors import UsageError
from prefkit.models.trees import leaves, map_tensors
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.train import precision as computing
from prefkit.train.run import check_settings


def test_a_back_end_that_is_not_there_or_cannot_train_is_refused_by_name():
    for attention, says in (
        ("quick", r"'quick' is unknown; choose `null` .*flash.*xformers"),
        ("sage", "no backward pass"),
        ("xformers", "xformers cannot be used here: .*xformers"),
    ):
        with pytest.raises(UsageError, match=says):
            check_settings("dpo", Train(attention=attention, device="cpu"))


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(UsageError, match="`tf32` needs a CUDA device, but training runs on cpu; set precision to `no`"):
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
    with computing.numerical_settings(Train(attention="_native_math"), torch.device("cpu")):
        other, two = gradients(loop_of(store, recipe, attention="_native_math"))
    assert calls and config.attention is None and registry.get_active_backend()[0] == before
    assert other["loss"] == pytest.approx(plain["loss"], abs=1e-4)
    assert (two - one).norm() < 1e-4 * one.norm()


def test_a_network_that_asks_for_no_back_end_is_refused(run, loop_of):
    store, recipe = run("sd")
    with pytest.raises(UsageError, match="UNet2DConditionModel does not go through diffusers' dispatcher"):
        loop_of(store, recipe, attention="native")


def told():
    """As Inductor and diffusers read it; torch raises here where newer and older settings were mixed."""
    from torch._inductor.codecache import CacheBase

    CacheBase.get_system()
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_float32_is_exact_or_tf32_inside_and_as_it_was_outside():
    before = told()
    cuda = torch.device("cuda")
    for precision, inside in (("no", ("highest", False, False)), ("tf32", ("high", True, True)), ("bf16", before)):
        with computing.numerical_settings(Train(precision=precision), cuda):
            assert told() == inside
        assert told() == before
    with computing.numerical_settings(Train(), torch.device("cpu")):
        assert told() == before


def test_only_what_is_on_the_cpu_is_pinned(run, loop_of, monkeypatch):
    """Online training may hand over conditions that are on the device: page-locking those raises on CUDA."""
    store, recipe = run()
    (batch,) = loop_of(store, recipe).micro_batches(0)[0]
    there = map_tensors(lambda tensor: tensor.to("meta"), batch.condition)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: tensor.clone() if tensor.device.type == "cpu" else 1 / 0
    )
    copy = replace(batch, condition=there).pinned()
    assert {leaf.device.type for _, leaf in leaves(copy.condition) if isinstance(leaf, torch.Tensor)} == {"meta"}
    assert copy.latents is not batch.latents


def test_a_pinned_batch_is_the_batch_with_every_tensor_pinned(run, loop_of, monkeypatch):
    store, recipe = run(cache_reference=True)
    loop = loop_of(store, recipe)
    loop.accumulate(loop.micro_batches(0))
    loop.reference_cache.flush()
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


@pytest.mark.parametrize(("bf16", "online", "means"), [(True, False, "bf16"), (False, False, "no"), (True, True, "no")])
def test_auto_is_bf16_where_the_device_has_it(tmp_path, monkeypatch, bf16, online, means):
    monkeypatch.setattr(computing, "has_bf16", lambda device: bf16)
    config = Train(online=Online() if online else None)
    recipe = Recipe(train={"a": config, "b": Train(precision="fp16")})
    settled = computing.settled(Store(tmp_path), computing.settled(Store(tmp_path), recipe, "a"), "b")
    assert (config.precision, settled.train["a"].precision, settled.train["b"].precision) == ("auto", means, "fp16")


def test_a_training_that_has_begun_keeps_its_precision(tmp_path, monkeypatch):
    store, recipe = Store(tmp_path), Recipe(train={"a": Train(), "b": Train()})
    monkeypatch.setattr(computing, "has_bf16", lambda device: True)
    write_json(store.train("a") / "spec.json", {"train": {}})  # written before `auto` existed, or on a CPU
    write_json(store.train("b") / "spec.json", {"train": {"precision": "bf16"}})
    assert computing.settled(store, recipe, "a").train["a"].precision == "no"
    monkeypatch.setattr(computing, "has_bf16", lambda device: False)
    assert computing.settled(store, recipe, "b").train["b"].precision == "bf16"


def test_float32_is_not_part_of_a_fingerprint_as_before():
    assert computing.stored(content(Train(precision="no"))) == {}
    assert computing.stored(content(Train(precision="bf16"))) == {"precision": "bf16"}


def test_the_cpu_has_no_bf16_by_default():
    assert not computing.has_bf16("cpu")
