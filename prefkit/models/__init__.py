"""Diffusion models. How each pipeline calls its parts is recorded in a short run, not programmed per model.

load/       pipeline: load_pipeline(base, adapters, device, dtype, scheduler, parts, sequential_offload, quantize)
            folder, single_file: checks and formats;  revision: weights_revision, base_revision;  trained: trained_model
capture/    call: capture(pipe, height, width, call) -> Wiring, once per model; JSON in and out (wiring)
            conditions: capture_conditions(pipe, wiring, prompts, height, width, call) -> list[Tree], one per prompt;
            collate(wiring, trees) -> Tree;  signature(wiring, tree) -> str, equal for Trees that may share a batch
            record, maps, prove: record a run, try maps on the recorded numbers, prove the prediction type
lora/       adapters: add_lora, continue_lora, layers_active, export_adapter
            check, files, names: the adapter files of other programs
predict     predict(net, wiring, x_t [B, ...], time [B], condition) -> the scheduler's model_output [B, ...] float32
schedule    Schedule.of(pipe.scheduler, wiring.prediction): draw_time, add_noise, target, x0
latents     encode(pipe, wiring, images) -> [B, ...] float32;  decode(pipe, wiring, latents) -> list[PIL image]
sample      Sampler(pipe, steps, guidance, height, width, negative_prompt, extra_call).sample(prompts, seeds)
meta, offload: load a model without weights, or one part at a time
quantize, memory, precision, trees, long_prompts: helpers

Latents, noise and predictions are in the scheduler's layout: [C, H, W] per image for most pipelines, packed tokens
[N, 4 C] for FLUX. x_t is the denoiser's input. If the scheduler works on x0 + sigma * noise (the Euler family on SD and
SDXL), x_t is the scheduler's sample divided by sqrt(sigma^2 + 1).
"""
