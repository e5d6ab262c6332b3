"""Settings of training, offline and online."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefkit.config.content import runtime


@dataclass(frozen=True)
class Choice:
    """A plug-in by name, with its options."""

    use: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lora:
    rank: int = 16
    #: alpha of the adapter; null = rank
    alpha: float | None = None
    #: name endings of the layers that get an adapter; empty = the attention projections (mesh: film, up and down)
    targets: list[str] = field(default_factory=list)
    dropout: float = 0.0
    #: train the model's only adapter further, with a frozen copy as the reference, instead of adding a new one; rank,
    #: alpha and targets must then match the existing adapter
    resume: bool = False
    #: also train an adapter of the same rank on the CLIP text encoders that a LoRA file of diffusers can hold: the only
    #: one of SD, both of SDXL, but no T5. Only for offline training; each step then encodes its prompts
    text_encoder: bool = False
    #: learning rate of the text encoders' adapters; null = learning_rate
    text_encoder_learning_rate: float | None = None


@dataclass(frozen=True)
class Online:
    """Training in rounds of sampling, scoring and learning: `train.NAME.online`."""

    #: score name -> weight in the reward; scores where lower is better are negated
    rewards: dict[str, float] = field(default_factory=dict)
    #: normalisation of each score before weighting: none | batch | centred | zscore
    normalise: str = "none"
    #: number of rounds of sampling and learning
    rounds: int = 100
    #: requests per round, and samples (images) per request; the samples of a request are a group
    requests: int = 8
    samples: int = 8
    #: entry of `generate` whose settings are used for sampling; null = the first with use: diffusers
    generator: str | None = None
    #: denoising steps per sample; null = the generator's steps
    steps: int | None = None
    #: how denoising steps add noise: ddim | sde | dance | cps; null = ddim, or sde for flow models
    noise: str | None = None
    #: level of this noise: eta of ddim and dance, a of sde and cps; null = 1 (ddim), 0.7 (sde), 0.8 (cps), 0.3 (dance)
    noise_level: float | None = None
    #: number of consecutive denoising steps with noise per sample; the others are deterministic; 0 = all have noise
    window: int = 0
    #: rounds after which the window of steps with noise moves by one step; 0 = a random window per group and round
    window_every: int = 0
    #: advantage = (reward - mean) / std, with the mean and std of: running (the request's last rewards) | global (the
    #: round) | group (the request's samples) | grouped (mean of the group, std of the round)
    statistics: str = "running"
    #: for running: number of rewards remembered per request; with fewer than `minimum`, the round's rewards are used
    buffer: int = 16
    minimum: int = 16
    #: largest absolute value of an advantage, at which it is clipped
    advantage_clip: float = 5.0
    #: optimizer steps per pass over a round's samples; 1 = DDPO's score-function estimator
    updates: int = 1
    #: passes over a round's samples
    epochs: int = 1
    #: fraction of each sample's denoising steps to learn from, drawn at random per sample and pass, as in DDPO
    #: (Flow-GRPO's setting of this name keeps the first steps of every sample instead)
    timestep_fraction: float = 1.0
    #: for objectives on pairs: entry of `pair` that chooses the pairs; null = best against worst
    pair: str | None = None
    #: for objective oft: name of a score whose aspects box_left, box_top, box_right and box_bottom (fractions of the
    #: image) give the box to which the loss is limited
    mask: str | None = None
    #: rounds after which the reference is replaced by the current policy; 0 = never
    refresh: int = 0
    #: decay of a moving average of the weights, which is then exported instead of the weights; 0 = no average
    ema: float = 0.0
    #: largest allowed difference between the log-probabilities in sampling and in training before the first update
    max_drift: float = 1e-5
    #: score names to monitor in addition to the reward, on requests that are not trained on
    watch: list[str] = field(default_factory=list)
    #: number of requests in the split `train` that are held out for monitoring and for sample images
    watch_requests: int = 8
    #: rounds between evaluations of the held-out requests; 0 = never. The other processes wait while rank 0 evaluates
    watch_every: int = runtime(10)
    #: stop if at two evaluations in a row the reward has risen, but the watched scores have fallen by this many
    #: standard deviations; 0 = never
    stop_drop: float = 0.5
    #: images sampled at once; null = train.NAME.batch_size
    sample_batch: int | None = runtime(None)
    #: seconds after which a scorer's answer counts as failed
    reward_timeout: float = runtime(600.0)
    #: fraction of failed rewards per round above which training stops
    max_failed: float = runtime(0.5)
    #: rounds between checkpoints
    checkpoint_every: int = runtime(1)
    #: number of most recent rounds whose images stay on disk; 0 = all
    keep_rounds: int = runtime(0)


@dataclass(frozen=True)
class Train:
    #: pairs to train on: an entry of `pair`, a folder, or a Hub dataset; unset = the run's only pair set
    pairs: str = ""
    #: name of a training in this run whose result this one trains further, with a frozen copy of it as the reference, as
    #: in SFT followed by online training; it must be made first, with the same lora.rank (and alpha and targets, if they
    #: are set). null = start from `model`
    start: str | None = None
    #: learning objective, with its options (beta, ...)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    #: settings of online training, in rounds of sampling, scoring and learning; null = learn from existing pairs
    online: Online | None = None
    #: settings of the LoRA adapter; null = train full weights
    lora: Lora | None = field(default_factory=Lora)
    #: model family: diffusers, or your own as file.py:Class
    family: str = "diffusers"
    #: optimizer steps
    steps: int = 500
    #: pairs (or groups) per micro-batch and process
    batch_size: int = 4
    #: micro-batches per optimizer step
    accumulation: int = 1
    learning_rate: float = 1e-5
    warmup: int = 20
    #: learning rate after the warm-up: constant | cosine | linear
    schedule: str = "constant"
    weight_decay: float = 0.01
    #: adamw | adamw8bit (bitsandbytes, a quarter of the memory for optimizer states) | adafactor | any torch optimizer,
    #: given as package.module:Class (torchao.optim:AdamW8bit, prodigyopt:Prodigy) or file.py:Class. optimizer_options:
    #: the optimizer's arguments besides lr and weight_decay
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    #: decay of a moving average of the weights, which is then measured and exported instead of the weights; 0 = no
    #: average
    ema: float = 0.0
    #: autocast of the denoiser: auto | no (float32) | tf32 (float32, but on CUDA with TF32 matrix products) | bf16 |
    #: fp16; the loss is always computed in float32. auto = bf16 for offline training on a CUDA device that supports it,
    #: else no; a training that has begun keeps its precision
    precision: str = "auto"
    #: distribution of the timestep: uniform | logit_normal; null = uniform for epsilon and v, logit_normal for flow
    time_sampling: str | None = None
    #: for models that take guidance as an input of the denoiser: its value in training
    guidance: float | None = None
    #: for imported images: scale and centre-crop all images of a request to one size of about resolution x resolution
    #: pixels, close to their aspect ratio; null = do not resize (both images of a pair must then have the same size)
    resolution: int | None = None
    #: mirror both images of a pair each time with probability 1/2; off by default, because mirrored images do not match
    #: prompts with left or right, and have mirrored letters
    flip: bool = False
    #: key in `extra` of the candidate or its request that gives the part of the image to which the loss is limited: a
    #: box [left, top, right, bottom] in fractions of the image, or the `inputs` id of a mask image (white counts); null
    #: = whole image
    mask: str | None = None
    #: seed for the order of pairs, timesteps, noise, mirroring, the adapter's initial weights, dropout and the pairs
    #: that `controls` flips. Measurements (held-out pairs, preflight) use fixed seeds, so that runs are comparable
    seed: int = 0
    #: full (encode all prompts first, then free the text encoders) | off (encode prompts at every step; the text
    #: encoders stay on the device). The result is the same
    text_cache: str = runtime("full")
    #: number of pairs held out to measure margins and implicit accuracy; 0 = none
    validation: int = 16
    #: stop after this many measurements in a row without a better implicit accuracy on the held-out pairs, and keep the
    #: best weights; 0 = never
    patience: int = 0
    #: names of scores to evaluate while training, on samples for requests that are not trained on; empty = none. Raises
    #: an alarm if the implicit accuracy rises, but the scores fall or the diversity of the images falls by a quarter
    watch: list[str] = field(default_factory=list)
    #: number of requests to sample for `watch`, with two images each, from fixed seeds
    watch_requests: int = 8
    #: optimizer steps between evaluations for `watch`; each loads the VAE, text encoders and scorers temporarily
    watch_every: int = runtime(100)
    #: optimizer steps between pictures of samples for `watch_requests` requests, at fixed seeds and without scorers, in
    #: train/NAME/watch; 0 = none. An entry with `watch` writes its pictures every `watch_every` steps instead
    sample_every: int = runtime(0)
    #: fall of the watched scores, in standard deviations, that raises the alarm. At the second alarm in a row, training
    #: stops and keeps the weights of the best evaluation; 0 = alarm at 0.5, but never stop
    stop_drop: float = 0.5
    #: also train two controls, like `train --controls`: SFT on the winners, and DPO on randomly flipped pairs
    controls: bool = runtime(False)
    #: cache the frozen reference's prediction errors on disk, to reuse them in a sweep over beta, learning rate or
    #: objective; the result is the same
    cache_reference: bool = runtime(False)
    #: none (every process holds the whole model) | fsdp2 (shard weights, gradients and optimizer states over
    #: processes). The result is the same
    shard: str = runtime("none")
    #: recompute activations in the backward pass: saves memory, is about a third slower, gives the same result. null =
    #: on for transformers on CUDA, else off
    gradient_checkpointing: bool | None = runtime(None)
    #: torch.compile the denoiser's repeated blocks, or the whole denoiser if it has none; only for offline training
    compile: bool = runtime(False)
    #: attention backend of diffusers (flash, xformers, _native_cudnn, ...); null = torch's choice
    attention: str | None = runtime(None)
    #: optimizer steps between checkpoints
    checkpoint_every: int = runtime(100)
    #: optimizer steps between measurements on the held-out pairs, which `patience` counts
    validate_every: int = runtime(50)
    device: str | None = runtime(None)
    #: tracker to which curves, pictures of samples and the settings are logged, in addition to the run folder: none |
    #: tensorboard | wandb | trackio (pip install 'prefkit[wandb]'); the report names its link
    report_to: str = runtime("none")
