"""The residual test: what `predict` returns for (x_t, t) of a real step is what scheduler.step was given."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from prefkit.errors import CaptureError
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions, collate
from prefkit.models.capture.maps import STATE
from prefkit.models.capture.prove import noise_level
from prefkit.models.capture.record import record_run
from prefkit.models.capture.wiring import Wiring
from prefkit.models.load.pipeline import denoiser_name
from prefkit.models.predict import predict
from prefkit.testing import TINY_KINDS

PROMPTS = ["a red cat", "a dog in a hat"]
CASES = [
    *((kind, None) for kind in TINY_KINDS),
    ("sd", "PNDMScheduler"),
    ("sd", "DPMSolverMultistepScheduler"),
    ("sd", "EulerAncestralDiscreteScheduler"),
    ("sd", "HeunDiscreteScheduler"),
    ("sd", "UniPCMultistepScheduler"),
    ("sd-v", "EulerDiscreteScheduler"),
    ("sd-v", "DDPMScheduler"),
    ("sdxl", "DDIMScheduler"),
    ("sdxl", "KDPM2DiscreteScheduler"),
    ("sd3", "FlowMatchHeunDiscreteScheduler"),
]


def real_steps(pipe, wiring):
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    size = {"height": 64, "width": 64, "num_inference_steps": 5, "output_type": "pil"}
    return record_run(
        pipe, wiring.denoiser, {"prompt": PROMPTS, "generator": generators, **size, **wiring.no_guidance}
    ).steps


def schedule_time(pipe, wiring, step):
    time = step.time / wiring.train_steps if wiring.prediction == "flow" else step.time
    return torch.full((2,), time)


@pytest.mark.parametrize(("kind", "scheduler"), CASES)
def test_prediction_is_what_the_scheduler_got(load, kind, scheduler):
    pipe = load(kind, scheduler=scheduler)
    wiring = capture(pipe, height=64, width=64)
    condition = collate(wiring, capture_conditions(pipe, wiring, PROMPTS, height=64, width=64))
    steps = real_steps(pipe, wiring)
    assert len(steps) >= 5
    for step in steps:
        x_t = STATE[wiring.state](step.before, noise_level(pipe, wiring.prediction, step))
        with torch.no_grad():
            ours = predict(getattr(pipe, wiring.denoiser), wiring, x_t, schedule_time(pipe, wiring, step), condition)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, step.model_output, rtol=1e-4, atol=1e-5)


def test_expected_wiring_of_the_five_kinds(load):
    found = {kind: capture(load(kind), height=64, width=64) for kind in TINY_KINDS}
    assert {kind: (w.prediction, w.clock, w.layout, w.affine, w.state) for kind, w in found.items()} == {
        "sd": ("epsilon", "index", "plain", "scale", "identity"),
        "sd-v": ("v_prediction", "index", "plain", "scale", "identity"),
        "sdxl": ("epsilon", "index", "plain", "scale", "over_sqrt_sigma2_plus_1"),
        "sd3": ("flow", "steps_sigma", "plain", "scale_shift", "identity"),
        "flux": ("flow", "sigma", "packed", "scale_shift", "identity"),
    }
    assert found["flux"].no_guidance == {"true_cfg_scale": 1.0}  # guidance_scale is an input there and stays
    assert found["sd3"].no_guidance == {"guidance_scale": 1.0}
    for wiring in found.values():
        assert Wiring.from_json(wiring.to_json()) == wiring


def test_capture_leaves_the_pipeline_as_it_was(load):
    pipe = load("sd")
    bar, before = dict(getattr(pipe, "_progress_bar_config", {})), torch.random.get_rng_state()
    capture(pipe, height=64, width=64)
    assert "step" not in vars(pipe.scheduler) and "decode" not in vars(pipe.vae)
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks
    assert dict(pipe._progress_bar_config) == bar
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_of_zeros_is_proven_by_putting_noise_in_its_place(load):
    pipe = load("sd")
    expected = capture(pipe, height=64, width=64)
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    assert capture(pipe, height=64, width=64) == expected


class HalvedInput(StableDiffusionPipeline):
    """Scales what its denoiser sees in a way that no map knows."""

    def prepare_latents(self, *args, **kwargs):
        def halve(net, args, kwargs):
            return (args[0] * 0.5, *args[1:]), kwargs

        self.unet._forward_pre_hooks.clear()
        self.unet.register_forward_pre_hook(halve, with_kwargs=True)
        return super().prepare_latents(*args, **kwargs)


class ChangedOutput(StableDiffusionPipeline):
    """Changes what its denoiser returns before the scheduler gets it."""

    change = staticmethod(lambda out: -0.5 * out)
    handle = None

    def prepare_latents(self, *args, **kwargs):
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.unet.register_forward_hook(lambda net, args, out: (self.change(out[0]),))
        return super().prepare_latents(*args, **kwargs)


class NegatedOutput(ChangedOutput):
    change = staticmethod(torch.neg)


def test_unknown_change_of_input_or_output_is_refused_by_name(load):
    for kind, words in (
        (HalvedInput, "HalvedInput.*scheduler's sample.*none of the known maps"),
        (ChangedOutput, "ChangedOutput.*model_output.*none of the known maps"),
    ):
        pipe = load("sd")
        pipe.__class__ = kind
        with pytest.raises(CaptureError, match=words):
            capture(pipe, height=64, width=64)


def test_negated_output_is_found(load):
    pipe = load("sd")
    pipe.__class__ = NegatedOutput
    assert capture(pipe, height=64, width=64).output == "negated"


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize(("true", "claimed"), [("v_prediction", "epsilon"), ("epsilon", "v_prediction")])
def test_a_wrong_prediction_type_is_caught(load, monkeypatch, scheduler, true, claimed):
    pipe = load("sd", scheduler=scheduler)
    pipe.scheduler.register_to_config(prediction_type=true)
    monkeypatch.setattr("prefkit.models.capture.prove.declared", lambda pipe: claimed)
    with pytest.raises(CaptureError, match=claimed):
        capture(pipe, height=64, width=64)


def test_a_schedule_that_the_sampler_does_not_follow_is_caught(load):
    class Stretched(EulerDiscreteScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas = self.sigmas * 1.2

    pipe = load("sd")
    pipe.scheduler = Stretched.from_config(pipe.scheduler.config)
    with pytest.raises(CaptureError, match="scheduler's sample"):
        capture(pipe, height=64, width=64)


def test_edm_schedulers_and_two_denoisers_are_refused(load):
    with pytest.raises(CaptureError, match="EDM"):
        capture(load("sd", scheduler="EDMEulerScheduler"), height=64, width=64)
    net = WanTransformer3DModel(num_layers=1, num_attention_heads=1, attention_head_dim=12, ffn_dim=8, text_dim=8)
    pipe = WanPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), net, net)
    with pytest.raises(CaptureError, match="WanPipeline has the denoisers transformer, transformer_2"):
        denoiser_name(pipe)


def test_prediction_type_sample_is_refused(load):
    pipe = load("sd")
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(CaptureError, match="'sample'"):
        capture(pipe, height=64, width=64)


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_capture_in_bfloat16(load, kind):
    full, half = capture(load(kind), height=64, width=64), capture(load(kind, dtype="bf16"), height=64, width=64)
    assert half == full


def test_karras_spacing_is_proven(load):
    pipe = load("sd")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    assert capture(pipe, height=64, width=64).state == "identity"
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    assert capture(pipe, height=64, width=64).state == "over_sqrt_sigma2_plus_1"


def test_pipelines_that_make_no_images_from_prompts_are_refused(load):
    class NeedsImage(StableDiffusionPipeline):
        def check_inputs(self, *args, **kwargs):
            raise ValueError("an image is needed")

    pipe = load("sd")
    pipe.__class__ = NeedsImage
    with pytest.raises(CaptureError, match="NeedsImage could not be run on prompts alone.*an image is needed"):
        capture(pipe, height=64, width=64)
    pipe = load("sd")
    pipe.vae = None
    with pytest.raises(CaptureError, match="no VAE"):
        capture(pipe, height=64, width=64)


def test_a_pipeline_that_calls_its_denoiser_twice_a_step_is_refused(load):
    class Twice(StableDiffusionPipeline):
        def prepare_latents(self, *args, **kwargs):
            if not hasattr(self.unet, "again"):
                self.unet.again = False
                self.unet.register_forward_hook(twice, with_kwargs=True)
            return super().prepare_latents(*args, **kwargs)

    def twice(net, args, kwargs, out):
        if not net.again:
            net.again = True
            net(*args, **kwargs)
            net.again = False

    pipe = load("sd")
    pipe.__class__ = Twice
    with pytest.raises(CaptureError, match="Twice.*guidance could not be disabled"):
        capture(pipe, height=64, width=64)


def test_a_controlnet_is_refused_because_its_residuals_depend_on_the_noise(load):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
    from PIL import Image

    pipe = load("sd")
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet)
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):  # zeros in a new network
        torch.nn.init.normal_(layer.weight, std=0.5)
    controlled = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    with pytest.raises(CaptureError, match="down_block_additional_residuals changes from step to step.*ControlNet"):
        capture(controlled, height=64, width=64, call={"image": picture})
