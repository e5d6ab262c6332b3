from __future__ import annotations

import io

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from prefkit.errors import CaptureError, TrainingError, UsageError
from prefkit.models.lora import adapters
from prefkit.models.sample import Sampler
from prefkit.testing import TINY_KINDS
from prefkit.train.families.diffusers import DiffusersFamily
from prefkit.types import Candidate, Draw, Request

torch.set_num_threads(1)
SIZE = {"height": 64, "width": 64}
REQUESTS = [Request("1", "a red cat"), Request("2", "a dog in a hat")]


def family_of(folder, wiring=None, parts=None, **options):
    family = DiffusersFamily(**{"call": SIZE, **options})
    family.load({"base": folder}, parts=parts, wiring=wiring)
    return family


def candidate(number, latents=None, size=(64, 64)):
    noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    payload = None if latents is None else safetensors.torch.save({"latents": latents})
    return Candidate(str(number), "1", number, number, image=buffer.getvalue(), payload=payload)


def a_batch(family, members=2):
    """Latents, a draw spread over groups of `members`, and conditions for two groups."""
    sampler = Sampler(family.pipe, steps=2, height=64, width=64)
    latents = torch.stack([row.latents for row in sampler.sample([r.prompt for r in REQUESTS] * members, range(4))])
    draws = [family.draw(request.request_id, 0, latents[0]) for request in REQUESTS]
    index = torch.arange(2).repeat(members)
    draw = Draw(torch.cat([d.time for d in draws])[index], torch.cat([d.noise for d in draws])[index])
    condition = family.collate(family.conditions(REQUESTS, (64, 64)) * members)
    return latents, draw, condition


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_residuals_against_a_reference_written_out(folders, kind):
    family = family_of(folders[kind])
    latents, draw, condition = a_batch(family)
    with torch.no_grad():
        residual = family.residuals(family.net, latents, draw, condition)["image"]
    assert residual.shape == latents.shape and residual.dtype == torch.float32
    x0, noise = latents.double(), draw.noise.double()
    shape = (-1, *[1] * (x0.ndim - 1))
    if family.wiring.prediction == "flow":
        s = draw.time.view(shape)
        x_t, target, time = (1 - s) * x0 + s * noise, noise - x0, draw.time * (1000 if kind == "sd3" else 1)
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = torch.cumprod(1 - betas, 0)
        if kind == "sd-v":  # zero terminal SNR, arXiv 2305.08891, algorithm 1
            root = abar.sqrt()
            abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        a, s, time = abar[draw.time].sqrt().view(shape), (1 - abar[draw.time]).sqrt().view(shape), draw.time
        x_t, target = a * x0 + s * noise, noise if kind != "sd-v" else a * noise - s * x0
    with torch.no_grad():
        given = {family.wiring.sample: x_t.float(), family.wiring.time: time.float(), **condition}
        expected = family.net(**given, return_dict=False)[0].double() - target
    torch.testing.assert_close(residual.double(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_residuals_do_not_depend_on_the_batch(folders, kind):
    family = family_of(folders[kind])
    latents, draw, condition = a_batch(family)
    with torch.no_grad():
        together = family.residuals(family.net, latents, draw, condition)["image"]
        for i, request in enumerate(REQUESTS * 2):
            own = family.collate(family.conditions([request], (64, 64)))
            alone = family.residuals(
                family.net, latents[i : i + 1], Draw(draw.time[i : i + 1], draw.noise[i : i + 1]), own
            )
            torch.testing.assert_close(alone["image"][0], together[i], rtol=1e-4, atol=1e-5)


def test_draws_are_a_function_of_group_and_visit(folders):
    family, like = family_of(folders["sd"]), torch.zeros(4, 8, 8)
    first = family.draw("pair-7", 3, like)
    torch.manual_seed(123)
    family.draw("pair-8", 0, like)
    again = family.draw("pair-7", 3, like)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.time, again.time)
    assert first.time.shape == (1,) and first.noise.shape == (1, 4, 8, 8) and first.noise.dtype == torch.float32
    others = [family.draw("pair-7", 4, like), family.draw("pair-8", 3, like), family.draw("pair-73", 3, like)]
    assert all(not torch.equal(first.noise, other.noise) for other in others)
    many = torch.cat([family.draw("group", visit, like).time for visit in range(2000)]).double()
    assert abs(many.mean() - 499.5) < 30


def test_latents_come_from_the_payload_or_from_the_image(folders):
    family = family_of(folders["sd"])
    own = torch.randn(4, 8, 8).half()
    stored, encoded, other = family.latents([candidate(1, own), candidate(2), candidate(3, size=(32, 64))])
    assert torch.equal(stored, own.float()) and encoded.shape == (4, 8, 8) and other.shape == (4, 8, 4)
    again = family.latents([candidate(2), candidate(4)])[0]
    torch.testing.assert_close(encoded, again, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="multiples of 8"):
        family.latents([candidate(5, size=(60, 64))])


def test_image_and_payload_of_a_generated_candidate_decode_alike(folders):
    family = family_of(folders["flux"])
    row = Sampler(family.pipe, steps=2, height=64, width=64).sample(["a cat"], [3])[0]
    (image,) = family.decode(row.latents.unsqueeze(0))
    assert np.array_equal(np.asarray(image), np.asarray(row.image))


def test_with_a_wiring_the_denoiser_is_enough(folders):
    whole = family_of(folders["sd"])
    latents, draw, condition = a_batch(whole)
    light = family_of(folders["sd"], wiring=whole.wiring, parts={"denoiser"})
    assert light.pipe.text_encoder is None
    with torch.no_grad():
        a = whole.residuals(whole.net, latents, draw, condition)["image"]
        b = light.residuals(light.net, latents, draw, condition)["image"]
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(CaptureError, match="wiring"):
        family_of(folders["sd"], parts={"denoiser"})


def test_half_precision_networks_give_float32_residuals(folders):
    family = DiffusersFamily(call=SIZE)
    family.load({"base": folders["sd3"], "dtype": "bf16"})
    latents, draw, condition = a_batch(family)
    with torch.no_grad():
        half = family.residuals(family.net, latents.float(), draw, condition)["image"]
    full = family_of(folders["sd3"], wiring=family.wiring)
    condition = full.collate(full.conditions(REQUESTS, (64, 64)) * 2)
    with torch.no_grad():
        exact = full.residuals(full.net, latents.float(), draw, condition)["image"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


def test_gradients_reach_the_adapter_and_nothing_else(folders):
    family = family_of(folders["flux"])
    latents, draw, condition = a_batch(family)
    adapters.add_lora(family.net, rank=2, alpha=2)
    family.residuals(family.net, latents, draw, condition)["image"].square().mean().backward()
    grads = {name for name, p in family.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert grads and all("lora_B" in name for name in grads)  # A waits for B to leave zero


def test_a_start_that_changes_the_text_encoder_is_refused(folders, tmp_path):
    family = family_of(folders["sd"])
    adapters.add_lora(family.net, rank=2, alpha=2)
    path = adapters.export_adapter(family.net, "unet", tmp_path)
    state = safetensors.torch.load_file(path)
    for side, shape in (("A", (2, 32)), ("B", (32, 2))):
        state[f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{side}.weight"] = torch.randn(shape)
    safetensors.torch.save_file(state, path)
    with pytest.raises(TrainingError, match="text_encoder"):
        DiffusersFamily().load({"base": folders["sd"], "adapters": {str(tmp_path): 1.0}})
