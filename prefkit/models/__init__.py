"""Diffusion models, by looking instead of adapting.

load        load_pipeline(base, revision=None, adapters={}, device, dtype, scheduler, parts, sequential_offload, quantize)
            denoiser_name(pipe) -> "unet" | "transformer"
revision    weights_revision(base, revision=None) -> str
            base_revision(model) -> {"base": ..., "config": ... for a single file that has one, "quantize": ... where it is}
trained     trained_model(run, model, name) -> Model;  trained_on(train/NAME) -> dict | None;  caption_hash(caption)
capture     capture(pipe, height=None, width=None, call={}) -> Wiring           once per model; JSON in and out
conditions  capture_conditions(pipe, wiring, prompts, height, width, call) -> list[Tree]     one per prompt
            collate(wiring, trees) -> Tree;  signature(wiring, tree) -> str     equal signatures may share a batch
predict     predict(net, wiring, x_t [B, ...], time [B], condition) -> [B, ...] float32, as scheduler.step gets it
schedule    Schedule.of(pipe.scheduler, wiring.prediction): draw_time, add_noise, target, x0
latents     encode(pipe, wiring, images) -> [B, ...] float32;  decode(pipe, wiring, latents) -> list[PIL image]
sample      Sampler(pipe, steps, guidance, height, width, negative_prompt, extra_call).sample(prompts, seeds)
adapters    add_lora, adapters_active, export_adapter ...: LoRA in diffusers' file format

Latents, noise and predictions live in the layout that the scheduler works in: [C, H, W] per image for
most pipelines, packed tokens [N, 4 C] for FLUX. x_t is what the denoiser sees: of a scheduler that works
on x0 + sigma * noise (Euler and its kin on SD and SDXL) it is that divided by sqrt(sigma^2 + 1).
"""
