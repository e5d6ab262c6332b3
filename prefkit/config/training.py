"""Training, offline and online."""

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
    #: null = rank
    alpha: float | None = None
    #: names of the layers that get an adapter; empty = the attention projections
    targets: list[str] = field(default_factory=list)
    dropout: float = 0.0
    #: continue the model's only adapter against a frozen copy of itself, instead of adding a new one; rank, alpha and targets
    #: must then match that adapter
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
    #: requests per round; each gets a group of `samples`
    requests: int = 8
    samples: int = 8
    #: entry of `generate` whose settings are used for sampling; null = the first
    generator: str | None = None
    #: denoising steps in training; null = the generator's
    steps: int | None = None
    #: null | ddim | sde | dance | cps: noise of a step; null = ddim, or sde for flow models
    noise: str | None = None
    #: eta of ddim, a of sde and cps, eta of dance; null = 1, 0.7, 0.8, 0.3
    noise_level: float | None = None
    #: stochastic steps per chain; the other steps are deterministic; 0 = all
    window: int = 0
    #: rounds after which the window moves by one step; 0 = a new random window for every group and round
    window_every: int = 0
    #: running | global | group | grouped: the statistics that a reward is compared with
    statistics: str = "running"
    #: running: rewards remembered per request, and the number that a request needs before its own statistics are used
    buffer: int = 16
    minimum: int = 16
    #: advantages are clipped to plus and minus this value
    advantage_clip: float = 5.0
    #: optimizer steps per pass over a round's samples: 1 = the score-function estimate of DDPO
    updates: int = 1
    #: passes over a round's samples
    epochs: int = 1
    #: fraction of each sample's steps to learn from, drawn per sample and pass, as in DDPO. Flow-GRPO's setting of this name
    #: keeps the first steps of every chain instead, so its 0.99 always drops the last step; here any step may be dropped
    timestep_fraction: float = 1.0
    #: entry of `pair` that chooses pairs (objectives on pairs); null = best against worst
    pair: str | None = None
    #: score whose aspects box_left, box_top, box_right, box_bottom (fractions of the image) limit the loss (oft)
    mask: str | None = None
    #: rounds after which the reference is replaced by the current policy; 0 = never
    refresh: int = 0
    #: decay of the moving average of the weights, which is then exported; 0 = no average
    ema: float = 0.0
    #: largest difference of log-probability between sampling and training before the first update
    max_drift: float = 1e-5
    #: score names to monitor in addition to the reward, on requests that are not trained on
    watch: list[str] = field(default_factory=list)
    #: requests of the split `train` held out for monitoring and for the sample images
    watch_requests: int = 8
    #: rounds between evaluations of these requests, which rank 0 runs while the others wait; 0 = never
    watch_every: int = runtime(10)
    #: stop when the watched scores have fallen by this many standard deviations at two evaluations in a row while the reward
    #: rose; 0 = never
    stop_drop: float = 0.5
    #: samples generated at once; null = the size of a micro-batch of training
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
    #: a name under `pair`, a folder, or a datasets id; unset = the run's only pair set, in the recipe or on disk
    pairs: str = ""
    #: the objective and its options (beta, ...)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    #: null (learn from existing pairs), or the settings of sampling, scoring and learning in rounds
    online: Online | None = None
    #: null (full weights), or the settings of the adapter
    lora: Lora | None = field(default_factory=Lora)
    #: diffusers | file.py:Class
    family: str = "diffusers"
    #: optimizer steps
    steps: int = 500
    #: pairs (groups) per micro-batch and process
    batch_size: int = 4
    #: micro-batches per optimizer step
    accumulation: int = 1
    learning_rate: float = 1e-5
    warmup: int = 20
    #: constant | cosine | linear
    schedule: str = "constant"
    weight_decay: float = 0.01
    #: adamw | adamw8bit (bitsandbytes; a quarter of the optimizer states' memory) | adafactor | any torch optimizer as
    #: package.module:Class (torchao.optim:AdamW8bit, prodigyopt:Prodigy) or file.py:Class; and its arguments in addition to
    #: lr and weight_decay
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    #: no (float32, exact on CUDA too) | tf32 (CUDA: float32 with products of 10 bits) | bf16 | fp16: autocast of the
    #: denoiser; errors are always float32
    precision: str = "no"
    #: null | uniform | logit_normal: distribution of t; null = uniform for epsilon and v, logit_normal for flow
    time_sampling: str | None = None
    #: guidance that the denoiser gets as an input in training (embedded guidance)
    guidance: float | None = None
    #: imported images: scale, then crop around the centre, all images of a request to one size of about resolution x
    #: resolution pixels near their aspect; null = images as they are (both of a pair must have one size)
    resolution: int | None = None
    #: mirror both images of a pair in half of the visits; off, because mirroring breaks prompts with left or right, letters
    #: and logos
    flip: bool = False
    #: key of the candidate's extra, or of its request's, that limits the loss: a box [left, top, right, bottom] in fractions of
    #: the image, or the `inputs` id of a mask image (white counts); null = the whole image
    mask: str | None = None
    #: seed of the order, of draws (t, noise, mirroring), the adapter's start, dropout and the control's flips. Measurements
    #: (held-out pairs, preflight) have fixed draws, so that curves of different seeds are comparable
    seed: int = 0
    #: full (encode all prompts before the first step; no text encoder in memory while training) | off (encode at every
    #: step; the text encoders stay on the device). The result is the same
    text_cache: str = runtime("full")
    #: pairs held out to measure margins by timestep; 0 = none
    validation: int = 16
    #: stop after this many measurements in a row without a new best implicit accuracy on those pairs, and keep the best
    #: measured weights; 0 = never
    patience: int = 0
    #: score names to evaluate on samples of requests that are not trained on (of held-out pairs, or without a pair): an alarm
    #: if the scores, or the images' diversity by a quarter, fall while the implicit accuracy rises; empty = no evaluation
    watch: list[str] = field(default_factory=list)
    #: number of those requests, chosen by hash, with two images each at fixed seeds
    watch_requests: int = 8
    #: optimizer steps between these evaluations; each loads the VAE, text encoders and scorers temporarily
    watch_every: int = runtime(100)
    #: fall of the watched scores, in standard deviations, that raises the alarm; training stops at the second alarm in a row
    #: and keeps the weights of the best evaluation; 0 = alarm at 0.5, never stop
    stop_drop: float = 0.5
    #: also SFT on the winners and DPO on randomly flipped pairs, as `train --controls`
    controls: bool = runtime(False)
    #: cache the frozen reference's errors on disk; a sweep (of beta, rate, objective) reuses them, with the same result
    cache_reference: bool = runtime(False)
    #: none (every process holds the model) | fsdp2 (weights, gradients and optimizer states are sharded over processes; a
    #: block's weights are gathered when it computes). The result is the same
    shard: str = runtime("none")
    #: recompute activations in the backward pass: less memory, about a third slower, the same result. null = on for a
    #: transformer on CUDA, off elsewhere
    gradient_checkpointing: bool | None = runtime(None)
    #: torch.compile the denoiser's repeated blocks, or the whole denoiser if it has none; not online
    compile: bool = runtime(False)
    #: attention backend of diffusers (flash, xformers, _native_cudnn, ...), for networks that use its dispatcher; null =
    #: torch's choice
    attention: str | None = runtime(None)
    #: optimizer steps between checkpoints, and between measurements on the held-out pairs
    checkpoint_every: int = runtime(100)
    validate_every: int = runtime(50)
    device: str | None = runtime(None)
    #: none | tensorboard
    report_to: str = runtime("none")
