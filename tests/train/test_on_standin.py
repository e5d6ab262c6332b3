"""Training on the stand-in for a GPU (tests/standin.py): planted faults raise, and every answer to out of memory is run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import standin
import torch

from prefkit.config import Generate, Score
from prefkit.errors import TrainingError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.train import run as training
from prefkit.train import setup as building
from prefkit.train.data import batches as data
from prefkit.train.families.diffusers import DiffusersFamily
from prefkit.train.monitor import sample_monitor as watch
from prefkit.train.monitor.validation import Validation
from prefkit.train.run import run_train
from prefkit.train.trainer import Trainer
from prefkit.types import Candidate

pytestmark = pytest.mark.standin
BIG = {"batch_size": 2, "device": "cuda", "steps": 2}


def convolutions(above):
    """Of more than so many images at once."""
    return lambda name, shape: name in ("convolution", "conv2d") and shape[0] > above


def always(name, shape):
    return name in ("convolution", "conv2d")


# -- tensors that were left on the CPU --------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_batch_that_is_not_moved_is_found(run, monkeypatch, where):
    store, recipe = run(**BIG, validation=2 if where == "validation" else 0)
    seen = []
    measured = Validation.errors

    def errors(self, *args):
        monkeypatch.setattr(data.Batch, "to", lambda batch, device: batch)
        seen.append("validation")
        return measured(self, *args)

    if where == "training":
        monkeypatch.setattr(data.Batch, "to", lambda batch, device: batch)
    monkeypatch.setattr(Validation, "errors", errors)
    with pytest.raises(RuntimeError, match="same device"):
        run_train(store, recipe, "dpo")
    assert seen == ["validation"] * (where == "validation")


def test_a_metric_that_is_made_on_the_cpu_is_found(run, monkeypatch):
    store, recipe = run(**BIG)
    losses = Trainer.losses

    def on_the_cpu(self, batch):
        loss, metrics = losses(self, batch)
        return loss, {**metrics, "made": torch.ones(len(loss))}

    monkeypatch.setattr(Trainer, "losses", on_the_cpu)
    with pytest.raises(RuntimeError, match="same device"):
        run_train(store, recipe, "dpo")


def test_every_setting_that_looks_at_the_device_trains(run):
    """tf32 switches its products, watch frees its memory, and prompts are encoded beside the denoiser."""
    store, recipe = run(**BIG, precision="tf32", watch=["size"], watch_requests=2, validation=2, cache_reference=True)  # fmt: skip
    recipe = replace(
        recipe,
        generate={"own": Generate(steps=2, guidance=3.0, device="cuda")},
        score={"size": Score(use="jpeg", device="cuda")},
    )
    standin.CALLS.clear()
    assert run_train(store, recipe, "dpo")["done"]
    assert {"empty_cache"} <= set(standin.CALLS)
    store, recipe = run(**BIG, where="bf16", precision="bf16", text_cache="off")
    assert run_train(store, recipe, "dpo")["done"]


# -- out of memory ----------------------------------------------------------------------------------------------------
def test_encoding_and_decoding_go_on_with_smaller_batches(folders, png, capsys):
    """The latents are those of a whole batch, bit for bit, and the smaller size is remembered."""
    family = DiffusersFamily()
    family.load({"base": str(folders["sd"]), "device": "cuda"})
    images = [Candidate(str(i), "r", i, i, image=png(np.random.default_rng(i))) for i in range(8)]
    whole = family.latents(images)
    with standin.run_out(convolutions(above=2)):
        parts = family.latents(images)
    assert family.encoding.most == 2
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    latents = torch.stack(whole)
    pictures = family.decode(latents)
    with standin.run_out(convolutions(above=3)):
        again = family.decode(latents)
        family.decode(latents)
    assert family.decoding.most == 2 and [p.tobytes() for p in pictures] == [p.tobytes() for p in again]
    said = capsys.readouterr().err
    assert said.count("encoding by the VAE: out of memory with 8 images at once. Continuing with 4") == 1
    assert said.count("decoding by the VAE: out of memory with 8") == 1
    with (
        standin.run_out(always),
        pytest.raises(TrainingError, match=r"even with a single image.*train\.NAME\.resolution"),
    ):
        family.latents(images)
    with standin.run_out(always), pytest.raises(TrainingError, match="even with a single image"):
        family.decode(latents)


def test_the_caches_of_a_training_are_filled_in_smaller_batches(run, monkeypatch, capsys):
    store, recipe = run(**BIG)
    fill = data.fill_latents

    def full(*args):
        with standin.run_out(convolutions(above=3)):
            return fill(*args)

    monkeypatch.setattr(data, "fill_latents", full)
    assert run_train(store, recipe, "dpo")["done"]
    assert "encoding by the VAE: out of memory" in capsys.readouterr().err


def failing(owner, name, at):
    """The function, with a full card."""
    inner = getattr(owner, name)

    def full(*args, **kwargs):
        with standin.run_out(at):
            return inner(*args, **kwargs)

    return full


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (Trainer, "accumulate", r"ran out of memory in step 1\. Try, in this order: batch_size 1 with accumulation 2"),
        (Trainer, "measure", r"ran out of memory in step 1\. Try"),
        (training, "preflight", "ran out of memory in the preflight"),
        (building, "make_policy", "ran out of memory while loading the denoiser"),
        (data, "fill_conditions", "ran out of memory while encoding the pairs' candidates and prompts"),
    ],
)
def test_what_cannot_be_halved_is_explained(run, monkeypatch, owner, name, said):
    store, recipe = run(**BIG, validation=2, gradient_checkpointing=False)
    everything = name in ("preflight", "make_policy", "fill_conditions")
    if everything:

        def out(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(owner, name, out)
    else:
        monkeypatch.setattr(owner, name, failing(owner, name, always))
    with pytest.raises(TrainingError, match=said):
        run_train(store, recipe, "dpo")


def test_looks_sample_smaller_batches_and_say_what_does_not_fit(run, monkeypatch, capsys):
    settings = {"watch": ["size"], "watch_requests": 2, "watch_every": 2, "validation": 2}
    found = []
    for where, at in (("free", None), ("full", convolutions(above=2))):
        store, recipe = run(**BIG, where=where, **settings)
        score, generate = {"size": Score(use="jpeg")}, {"own": Generate(steps=2, guidance=3.0)}
        recipe = replace(recipe, generate=generate, score=score)
        if at is not None:
            monkeypatch.setattr(watch.SampleMonitor, "evaluate", failing(watch.SampleMonitor, "evaluate", at))
        assert run_train(store, recipe, "dpo")["done"]
        rows = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
        found.append([row["watch"]["size"]["mean"] for row in rows if "watch" in row])
    assert "sample evaluation: out of memory with 2 images at once. Continuing with 1" in capsys.readouterr().err
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    monkeypatch.undo()
    monkeypatch.setattr(watch.SampleMonitor, "evaluate", failing(watch.SampleMonitor, "evaluate", always))
    store, recipe = run(**BIG, where="none", **settings)
    with pytest.raises(TrainingError, match=r"sample evaluation: out of memory.*generate\.NAME\.height"):
        run_train(store, replace(recipe, generate=generate, score=score), "dpo")
    monkeypatch.undo()

    def out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("prefkit.train.monitor.sample_eval.load_pipeline", out)
    store, recipe = run(**BIG, where="loading", **settings)
    with pytest.raises(TrainingError, match="in the sample evaluation. The evaluation loads the VAE"):
        run_train(store, replace(recipe, generate=generate, score=score), "dpo")


def test_a_full_card_while_decoding_samples_costs_no_second_sampling(folders, capsys):
    from prefkit.models.sample import Sampler

    pipe = load_pipeline(str(folders["sd"]), device="cuda")
    sampler = Sampler(pipe, steps=2, guidance=3.0, height=64, width=64)
    whole = sampler.sample(["a hat"] * 4, [1, 2, 3, 4])

    def full(z, *args, **kwargs):
        with standin.run_out(convolutions(above=1)):
            return type(pipe.vae).decode(pipe.vae, z, *args, **kwargs)

    pipe.vae.decode = full
    parts = sampler.sample(["a hat"] * 4, [1, 2, 3, 4])
    for one, other in zip(whole, parts, strict=True):  # a convolution of another batch size rounds otherwise
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
    assert "decoding by the VAE: out of memory with 4" in capsys.readouterr().err and pipe.vae.decode is full
