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
    #: names of the layers that get an adapter; empty = the attention projections; in a mesh
    #: model, the layers film, up and down
    targets: list[str] = field(default_factory=list)
    dropout: float = 0.0
    #: continue training the model's only adapter, with a frozen copy of it as the reference, instead of adding an
    #: adapter; rank, alpha and targets must then match the existing one
    resume: bool = False


@dataclass(frozen=True)
class Online:
    """Training in rounds of sampling, scoring and learning: `train.NAME.online`."""

    #: score name -> weight of the reward; a scorer whose lower values are better counts negatively
    rewards: dict[str, float] = field(default_factory=dict)
    #: none | batch | centred | zscore: normalisation of each score before it is weighted
    normalise: str = "none"
    #: rounds of sampling and learning
    rounds: int = 100
    #: requests per round; for each, a group of `samples` images is generated
    requests: int = 8
    samples: int = 8
    #: entry of `generate` whose settings are used for sampling; null = the first with use: diffusers
    generator: str | None = None
    #: denoising steps of each sample; null = those of the generator
    steps: int | None = None
    #: noise added in a denoising step: ddim | sde | dance | cps; null = ddim, or sde for flow models
    noise: str | None = None
    #: level of that noise: eta of ddim and dance, a of sde and cps; null = 1 (ddim), 0.7 (sde), 0.8 (cps), 0.3 (dance)
    noise_level: float | None = None
    #: number of stochastic denoising steps per sample; the remaining steps are deterministic; 0 = all are stochastic
    window: int = 0
    #: rounds after which the window of stochastic steps moves by one; 0 = a random window for every group and round
    window_every: int = 0
    #: mean and std that turn rewards into advantages: running (of the request's last rewards) | global (of the round) |
    #: group (of the request's samples) | grouped (the group's mean, the round's std)
    statistics: str = "running"
    #: for running: rewards remembered per request, and the minimum number for using them instead of the whole round's
    buffer: int = 16
    minimum: int = 16
    #: advantages are clipped to plus and minus this value
    advantage_clip: float = 5.0
    #: optimizer steps per pass over a round's samples: 1 = the score-function estimate of DDPO
    updates: int = 1
    #: passes over a round's samples
    epochs: int = 1
    #: fraction of each sample's steps to learn from, drawn per sample and pass, as in DDPO. Flow-GRPO's setting of
    #: this name keeps the first steps of every chain instead, so its 0.99 always drops the last step; here any step
    #: may be dropped
    timestep_fraction: float = 1.0
    #: entry of `pair` that chooses pairs (objectives on pairs); null = best against worst
    pair: str | None = None
    #: name of a score whose aspects box_left, box_top, box_right, box_bottom (fractions of the image) are a box to
    #: which the loss is limited (only objective oft)
    mask: str | None = None
    #: rounds after which the reference is replaced by the current policy; 0 = never
    refresh: int = 0
    #: decay of a moving average of the weights, which is exported instead of them; 0 = no average
    ema: float = 0.0
    #: largest allowed difference of log-probabilities between sampling and training before the first update
    max_drift: float = 1e-5
    #: score names to monitor in addition to the reward, on requests that are not trained on
    watch: list[str] = field(default_factory=list)
    #: requests of the split `train` held out for monitoring and for the sample images
    watch_requests: int = 8
    #: rounds between evaluations of these requests, which rank 0 runs while the other processes wait; 0 = never
    watch_every: int = runtime(10)
    #: stop when the watched scores have fallen by this many standard deviations at two evaluations in a row while the
    #: reward rose; 0 = never
    stop_drop: float = 0.5
    #: images sampled at once; null = the micro-batch size of training
    sample_batch: int | None = runtime(None)
    #: seconds after which a scorer's answer counts as failed
    reward_timeout: float = runtime(600.0)
    #: fraction of failed rewards in a round above which training stops
    max_failed: float = runtime(0.5)
    #: rounds between checkpoints
    checkpoint_every: int = runtime(1)
    #: rounds whose images stay on disk; 0 = all
    keep_rounds: int = runtime(0)


@dataclass(frozen=True)
class Train:
    #: a name under `pair`, a folder, or a Hub dataset; unset = the run's only pair set, in the recipe or on disk
    pairs: str = ""
    #: the objective and its options (beta, ...)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    #: null (learn from existing pairs), or the settings of sampling, scoring and learning in rounds
    online: Online | None = None
    #: null (full weights), or the settings of the adapter
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
    #: adamw | adamw8bit (bitsandbytes; a quarter of the optimizer states' memory) | adafactor | any torch optimizer as
    #: package.module:Class (torchao.optim:AdamW8bit, prodigyopt:Prodigy) or file.py:Class; optimizer_options: its
    #: arguments in addition to lr and weight_decay
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    #: autocast of the denoiser: no (float32, exact on CUDA too) | tf32 (on CUDA, float32 whose products use 10-bit
    #: mantissas) | bf16 | fp16; errors are always float32
    precision: str = "no"
    #: distribution of the timestep t: uniform | logit_normal; null = uniform for epsilon and v, logit_normal for flow
    time_sampling: str | None = None
    #: guidance value that the denoiser gets as an input in training (for models with embedded guidance)
    guidance: float | None = None
    #: scale and centre-crop all (imported) images of a request to the same size, of about resolution x resolution
    #: pixels and close to their aspect ratio; null = leave them as they are (the two of a pair must have the same
    #: size)
    resolution: int | None = None
    #: mirror both images of a pair in a random half of the visits; off by default, because mirroring breaks prompts
    #: with left or right, letters and logos
    flip: bool = False
    #: key in `extra` of the candidate or its request that limits the loss to a part of the image: a box [left, top,
    #: right, bottom] in fractions of the image, or the `inputs` id of a mask image (white counts); null = whole image
    mask: str | None = None
    #: seed of the order of pairs, of draws (t, noise, mirroring), the adapter's initial weights, dropout and the pairs
    #: flipped by `controls`. Measurements (held-out pairs, preflight) use fixed draws, so that curves of different
    #: seeds are comparable
    seed: int = 0
    #: full (encode all prompts before the first step; no text encoder in memory while training) | off (encode at every
    #: step; the text encoders stay on the device). The result is the same
    text_cache: str = runtime("full")
    #: pairs held out to measure margins by timestep; 0 = none
    validation: int = 16
    #: stop after this many measurements in a row without a new best implicit accuracy on the held-out pairs, and keep
    #: the best weights; 0 = never
    patience: int = 0
    #: score names to evaluate on samples of requests that are not trained on (those of held-out pairs, or without
    #: pairs). An alarm is raised if, while the implicit accuracy rises, the scores fall or the diversity of the
    #: images falls by a quarter; empty = no evaluation
    watch: list[str] = field(default_factory=list)
    #: number of requests to sample for `watch`, chosen by a hash, with two images each from fixed seeds
    watch_requests: int = 8
    #: optimizer steps between these evaluations; each loads the VAE, text encoders and scorers temporarily
    watch_every: int = runtime(100)
    #: fall of the watched scores, in standard deviations, that raises the alarm; training stops at the second alarm
    #: in a row and keeps the weights of the best evaluation; 0 = alarm at 0.5, never stop
    stop_drop: float = 0.5
    #: also train two controls, as `train --controls` does: SFT on the winners, and DPO on randomly flipped pairs
    controls: bool = runtime(False)
    #: cache the frozen reference's errors on disk, for reuse in a sweep (over beta, learning rate, objective); the
    #: result is the same
    cache_reference: bool = runtime(False)
    #: none (every process holds the whole model) | fsdp2 (weights, gradients and optimizer states are sharded over
    #: processes; a block's weights are gathered while it computes). The result is the same
    shard: str = runtime("none")
    #: recompute activations in the backward pass: less memory, about a third slower, the same result. null = on for a
    #: transformer on CUDA, off elsewhere
    gradient_checkpointing: bool | None = runtime(None)
    #: torch.compile the denoiser's repeated blocks, or the whole denoiser if it has none; only for offline training
    compile: bool = runtime(False)
    #: attention backend of diffusers (flash, xformers, _native_cudnn, ...), for networks that use its dispatcher;
    #: null = torch's choice
    attention: str | None = runtime(None)
    #: optimizer steps between checkpoints, and between measurements on the held-out pairs
    checkpoint_every: int = runtime(100)
    validate_every: int = runtime(50)
    device: str | None = runtime(None)
    #: where to log metrics besides the run folder: none | tensorboard
    report_to: str = runtime("none")
