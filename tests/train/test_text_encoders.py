"""LoRA on text encoders: its gradient, what the reference is, the file, resuming, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from torch.func import functional_call

from prefkit.config import Choice, Lora, Model
from prefkit.errors import TrainingError, UsageError
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.load.trained import trained_model
from prefkit.models.lora import adapters
from prefkit.models.lora.files import export_as
from prefkit.models.lora.text_encoders import check_text_encoders
from prefkit.train.data import text_encoding
from prefkit.train.run import checked, run_train
from prefkit.train.trainer import Trainer

FILE = "pytorch_lora_weights.safetensors"
TEXT = Lora(rank=2, alpha=3.0, text_encoder=True)


def shake(loop):
    """Give every trained matrix numbers: B is zero at the start, and A would have no gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loop.policy.text_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def weights(store, name="dpo"):
    return safetensors.torch.load_file(store.train(name) / "final" / FILE)


def lines(store, name="dpo"):
    found = [json.loads(line) for line in (store.train(name) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in found]


def by_hand(folder, prompts, layers, batch, beta):
    """Gradient of the DPO loss by A and B of each layer, in float64, without peft and prefkit: W + alpha / rank B A."""
    pipe = DiffusionPipeline.from_pretrained(folder).to(dtype=torch.float64)
    encoder, unet = pipe.text_encoder.requires_grad_(False), pipe.unet.requires_grad_(False)
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True)
    ids = torch.tensor(ids.input_ids)
    merged = {}
    for path, (a, b) in layers.items():
        weight = encoder.get_submodule(path).weight
        merged[f"{path}.weight"] = (weight + 1.5 * b.double() @ a.double()).requires_grad_()
    x, noise, time = batch.latents.double(), batch.draw.noise.double(), batch.draw.time
    abar = pipe.scheduler.alphas_cumprod.double()[time].view(-1, 1, 1, 1)

    def errors(changed):
        text = functional_call(encoder, changed, (ids,))[0]
        predicted = unet(abar.sqrt() * x + (1 - abar).sqrt() * noise, time, text.repeat(2, 1, 1)).sample
        return ((predicted - noise) ** 2).mean((1, 2, 3)).chunk(2)

    (win, lose), (win_ref, lose_ref) = errors(merged), errors({})
    margin = 0.5 * beta * ((win_ref - win) - (lose_ref - lose))
    (-torch.nn.functional.logsigmoid(margin)).mean().backward()
    gradients = {}
    for path, (a, b) in layers.items():
        whole = merged[f"{path}.weight"].grad
        gradients[path] = 1.5 * b.double().T @ whole, 1.5 * whole @ a.double().T
    return gradients, win_ref, lose_ref


def test_the_gradient_is_that_of_the_formula(run, loop_of):
    store, recipe = run(lora=TEXT)
    loop = loop_of(store, recipe)
    shake(loop)
    encoder = loop.policy.text_encoders["text_encoder"]
    own = {
        path: (layer.lora_A["policy"].weight, layer.lora_B["policy"].weight)
        for path, layer in adapters.lora_layers(encoder)
    }
    assert len(own) == 8
    (batch,) = loop.micro_batches(0)[0]
    prompts = [group.prompt for group in batch.members]
    expected, *reference = by_hand(recipe.model.base, prompts, {p: (a.detach(), b.detach()) for p, (a, b) in own.items()}, batch, 2000.0)  # fmt: skip
    loop.accumulate([[batch]])
    for path, (a, b) in own.items():
        for ours, theirs in zip((a.grad, b.grad), expected[path], strict=True):
            assert (ours - theirs).norm() < 2e-3 * theirs.norm(), path
    found = loop.reference_errors(batch)["image"].mean
    torch.testing.assert_close(found.double(), torch.cat(reference), rtol=1e-4, atol=1e-6)


def embeddings(pipe, prompts):
    """What pipe.encode_prompt returns, without the empty prompts."""
    with torch.no_grad():
        found = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_file_is_read_by_diffusers_alone_and_by_others(run, loop_of, kind):
    store, recipe = run(kind, lora=TEXT, steps=2, learning_rate=1e-2)
    run_train(store, recipe, "dpo")
    loop = loop_of(store, recipe)
    loop.resume()
    (batch,) = loop.micro_batches(0)[0]
    prompts = [group.prompt for group in batch.members]
    with torch.no_grad():
        inside = text_encoding.encoded(loop.family, loop.data, batch)
    assert not torch.allclose(inside["encoder_hidden_states"], batch.condition["encoder_hidden_states"], atol=1e-3)
    wanted = [inside["encoder_hidden_states"]]
    wanted += [inside["added_cond_kwargs"]["text_embeds"]] if kind == "sdxl" else []
    final = store.train("dpo") / "final"
    export_as(final, store.folder / "kohya", "kohya")
    for path in (store.folder / "kohya" / "dpo.safetensors", final):
        pipe = DiffusionPipeline.from_pretrained(recipe.model.base)
        pipe.load_lora_weights(path)
        for ours, theirs in zip(wanted, embeddings(pipe, prompts), strict=True):
            torch.testing.assert_close(theirs, ours[: len(prompts)], rtol=1e-4, atol=1e-5)
    model = trained_model(store.folder, recipe.model, "dpo")
    images = []
    for tuned in (pipe, load_pipeline(model.base, adapters=model.adapters)):  # diffusers alone, and generate
        seed = torch.Generator().manual_seed(0)
        images.append(tuned("a red cat", num_inference_steps=1, generator=seed, output_type="pt").images)
    assert torch.equal(*images)
    keys = set(safetensors.torch.load_file(store.folder / "kohya" / "dpo.safetensors"))
    starts = {"lora_te", "lora_unet"} if kind == "sd" else {"lora_te1", "lora_te2", "lora_unet"}
    assert {"_".join(key.split("_")[:2]) for key in keys} == starts


def beside(recipe, **changes):
    """The recipe with a second training `other`, which shares the caches of the first."""
    return replace(recipe, train=recipe.train | {"other": replace(recipe.train["dpo"], **changes)})


def test_a_rate_of_zero_is_a_training_without_it(run):
    # the norm that is clipped is that of all gradients
    store, recipe = run(lora=Lora(rank=2), max_grad_norm=1e9, steps=2)
    recipe = beside(recipe, lora=Lora(rank=2, text_encoder=True, text_encoder_learning_rate=0.0))
    run_train(store, recipe, "dpo")
    run_train(store, recipe, "other")
    alone, both = weights(store), weights(store, "other")
    assert all(torch.equal(alone[key], both[key]) for key in alone)
    text = [key for key in both if key not in alone]
    assert text and all(key.startswith("text_encoder.") for key in text)
    assert not any(both[key].any() for key in text if "lora_B" in key)
    assert lines(store)[0]["loss"] == lines(store, "other")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_it_resumes_exactly_after_a_kill(run, monkeypatch):
    lora = replace(TEXT, dropout=0.2, text_encoder_learning_rate=5e-3)
    store, recipe = run(lora=lora, steps=3, checkpoint_every=1, validation=1, validate_every=3, patience=9, ema=0.5)
    recipe = beside(recipe)
    run_train(store, recipe, "other")
    step = Trainer.update

    def dies(loop, metrics):
        if loop.step == 2:
            raise SystemExit("killed here")
        return step(loop, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", dies)
        with pytest.raises(SystemExit):
            run_train(store, recipe, "dpo")
    run_train(store, recipe, "dpo")
    ours, theirs = weights(store), weights(store, "other")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs) and lines(store) == lines(store, "other")
    assert theirs["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"].any()
    assert lines(store)[1]["text_encoder_lr"] == 5 * lines(store)[1]["lr"]


def test_a_second_training_continues_both_networks(run, loop_of):
    store, recipe = run(lora=replace(TEXT, alpha=None), steps=2, learning_rate=1e-2)
    first = recipe.train["dpo"]
    second = replace(first, start="first", lora=Lora(rank=2, text_encoder=True))
    recipe = replace(recipe, train={"first": first, "dpo": second})
    run_train(store, recipe, "first")
    with pytest.raises(TrainingError, match="also changes text_encoder.*lora.text_encoder: true"):
        run_train(store, replace(recipe, train=recipe.train | {"dpo": replace(second, lora=Lora(rank=2))}), "dpo")
    run_train(store, recipe, "dpo")
    begin = lines(store)[0]
    assert begin["loss"] == pytest.approx(math.log(2), abs=1e-6) and begin["margin"] == 0
    before, after = weights(store, "first"), weights(store)
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert before.keys() == after.keys() and {key.split(".")[0] for key in moved} == {"unet", "text_encoder"}


def test_two_adapters_with_text_encoders_load_without_a_false_warning(run, capfd, caplog, recwarn):
    store, recipe = run(lora=TEXT, steps=1, learning_rate=1e-2)
    run_train(store, recipe, "dpo")
    final = store.train("dpo") / "final"
    shutil.copytree(final, store.folder / "copy")
    capfd.readouterr(), caplog.clear(), recwarn.clear()
    pipe = load_pipeline(recipe.model.base, adapters={str(final): 1.0, str(store.folder / "copy"): 0.5})
    assert adapters.active_adapters(pipe.text_encoder) == ["start0", "start1"]
    printed = capfd.readouterr().err + caplog.text
    assert "LOAD REPORT" not in printed and "newly initialized" not in printed
    assert not [warning for warning in recwarn if "peft_config" in str(warning.message)]


def test_it_starts_from_an_adapter_with_and_one_without_text_encoders(run, loop_of):
    store, recipe = run(lora=TEXT, steps=1, learning_rate=1e-2)
    recipe = beside(recipe, lora=Lora(rank=2))
    run_train(store, recipe, "dpo")
    run_train(store, recipe, "other")
    model = replace(recipe.model, adapters={str(store.train(name) / "final"): 1.0 for name in ("dpo", "other")})
    loop = loop_of(store, replace(recipe, model=model))
    assert adapters.active_adapters(loop.policy.text_encoders["text_encoder"]) == ["start0", "policy"]
    assert adapters.active_adapters(loop.policy.net) == ["start0", "start1", "policy"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_cache": "off"}, "text_cache is off, and the reference needs the cached embeddings"),
        ({"shard": "fsdp2"}, "shard is fsdp2, which is untested with text encoders"),
        ({"objective": Choice("ddpo")}, "online training does not encode the prompts"),
        ({"lora": Lora(text_encoder_learning_rate=1e-4)}, "but text encoders are not trained"),
        ({"lora": replace(TEXT, text_encoder_learning_rate=-1.0)}, "it must be at least 0"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(run, settings, words):
    store, recipe = run(**({"lora": TEXT} | settings))
    with pytest.raises(UsageError, match=words):
        checked(store, recipe, "dpo")


def test_a_model_without_a_clip_encoder_is_refused_before_anything_is_loaded(run, tmp_path):
    """PixArt, whose only text encoder is T5."""
    index = {"_class_name": "PixArtSigmaPipeline", "text_encoder": ["transformers", "T5EncoderModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"PixArtSigmaPipeline has no CLIP .* text_encoder \(T5EncoderModel\)"):
        check_text_encoders(Model(base=str(tmp_path)))
