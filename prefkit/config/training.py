"""Training, offline and online."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefkit.config.content import free


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
    #: continue the start's only adapter against a frozen copy of itself, instead of stacking a new one; rank, alpha and
    #: targets must then be the adapter's own
    resume: bool = False


@dataclass(frozen=True)
class Online:
    """Sample, score, learn, again: `train.NAME.online`."""

    #: score alias -> weight of the reward; a scorer for which less is better counts negatively
    rewards: dict[str, float] = field(default_factory=dict)
    #: none | batch | centred | zscore: how each score is normalised before it is weighted
    normalise: str = "none"
    #: rounds of sampling and learning
    rounds: int = 100
    #: requests per round, each answered by a group of `samples`
    requests: int = 8
    samples: int = 8
    #: the entry of `generate` whose settings are sampled with; null = the first
    generator: str | None = None
    #: denoising steps in training; null = the generator's
    steps: int | None = None
    #: null | ddim | sde | dance | cps: the noise of a step; null = ddim, for flow models sde
    noise: str | None = None
    #: eta of ddim, a of sde and cps, eta of dance; null = 1, 0.7, 0.8, 0.3
    noise_level: float | None = None
    #: stochastic steps per chain, the others being deterministic; 0 = all
    window: int = 0
    #: rounds after which the window moves on by one step; 0 = drawn anew for every group and round
    window_every: int = 0
    #: running | global | group | grouped: what a reward is compared with
    statistics: str = "running"
    #: running: rewards remembered per request, and how many it must have before its own statistics are used
    buffer: int = 16
    minimum: int = 16
    #: advantages are held within plus and minus this
    advantage_clip: float = 5.0
    #: optimizer steps per pass over a round's samples: 1 = the score-function estimate of DDPO
    updates: int = 1
    #: passes over a round's samples
    epochs: int = 1
    #: share of each sample's steps that is learned from, drawn anew per sample and pass, as in DDPO. Flow-GRPO's setting of
    #: this name keeps the first steps of every chain instead: its 0.99 always leaves the last one out, this one any of them
    timestep_fraction: float = 1.0
    #: an entry of `pair` that says how pairs are chosen (objectives on pairs); null = best against worst
    pair: str | None = None
    #: score alias whose aspects box_left, box_top, box_right, box_bottom (shares of the image) bound what counts (oft)
    mask: str | None = None
    #: rounds after which the reference becomes the policy as it is; 0 = never
    refresh: int = 0
    #: share of the old value that the moving average of the weights keeps at an update; 0 = none. It is what is exported
    ema: float = 0.0
    #: largest difference of log-probability between sampling and training before the first update
    max_drift: float = 1e-5
    #: score aliases beside the reward, on requests that are not trained on
    watch: list[str] = field(default_factory=list)
    #: requests of the split `train` that are kept aside for that, and for the pictures
    watch_requests: int = 8
    #: rounds between looks at them; 0 = never. The first process looks, the others wait until it has
    watch_every: int = free(10)
    #: stop when the watched scores have fallen by this many of their deviations at two looks in a row while the reward
    #: rose; 0 = never
    stop_drop: float = 0.5
    #: samples generated at once; null = as many as a micro-batch of training holds
    sample_batch: int | None = free(None)
    #: seconds after which an answer of the scorers counts as failed
    reward_timeout: float = free(600.0)
    #: share of failed rewards in a round above which training stops
    max_failed: float = free(0.5)
    #: rounds between checkpoints
    checkpoint_every: int = free(1)
    #: rounds whose images stay on disk; 0 = all
    keep_rounds: int = free(0)


@dataclass(frozen=True)
class Train:
    #: a name under `pair`, a folder, or a datasets id; left out = the run's only pair set, in the recipe or on disk
    pairs: str = ""
    #: which objective, with its options (beta, ...)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    #: null (learn from pairs that are there), or how to sample, score and learn in rounds
    online: Online | None = None
    #: null (full weights) or the adapter's shape
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
    #: adamw | adamw8bit (bitsandbytes; a quarter of the states' memory) | adafactor | any torch optimizer as
    #: package.module:Class (torchao.optim:AdamW8bit, prodigyopt:Prodigy) or file.py:Class; and what it is given beside lr
    #: and weight_decay
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    #: no (float32, exact on CUDA too) | tf32 (CUDA: float32 whose products keep 10 bits) | bf16 | fp16: autocast of the
    #: denoiser; errors are always float32
    precision: str = "no"
    #: null | uniform | logit_normal: how t is drawn; null = uniform for epsilon and v, logit_normal for flow
    time_sampling: str | None = None
    #: arguments of the generation's call that the denoiser must see in training (embedded guidance)
    guidance: float | None = None
    #: imported images: bring those of a request to one size of about resolution x resolution pixels near their aspect
    #: (scaled, then cropped around the centre); null = images as they are, both of a pair of one size
    resolution: int | None = None
    #: half of the visits see both images of a pair mirrored; off, because words that say left or right, letters and logos
    #: are then wrong
    flip: bool = False
    #: key of extra (the candidate's or, where that is null, its request's) that says what counts in the errors: a box [left,
    #: top, right, bottom] in shares of the image, or the `inputs` id of a mask image (white counts); null = everything
    mask: str | None = None
    #: of order, draws (t, noise, mirroring), the adapter's start, dropout and the control's flips.
    #: measurements (held-out pairs, preflight) draw the same whatever the seed, so that curves of seeds are comparable
    seed: int = 0
    #: full (all conditions on disk before the first step; no text encoder in memory while training) | off (encoded at every
    #: step; the text encoders stay on the device). The result is the same
    text_cache: str = free("full")
    #: pairs kept aside to measure margins by timestep; 0 = none
    validation: int = 16
    #: stop when the implicit accuracy on those pairs has reached no new best at so many measurements in a row, and take
    #: the best measured weights as the result; 0 = never
    patience: int = 0
    #: score aliases that look at images of requests that are not trained on (of the pairs kept aside, or without a pair):
    #: an alarm where they fall, or the images' diversity by a quarter, while the implicit accuracy rises; empty = no looks
    watch: list[str] = field(default_factory=list)
    #: how many of those requests, by hash, two images each at fixed seeds
    watch_requests: int = 8
    #: optimizer steps between looks, each of which loads VAE, text encoders and scorers for its while
    watch_every: int = free(100)
    #: how many of their deviations is a fall of the watched scores; stop at the second alarm in a row, and take the best
    #: look's weights as the result; 0 = alarm at 0.5, never stop
    stop_drop: float = 0.5
    #: also SFT on the winners and DPO on randomly flipped pairs, as `train --controls`
    controls: bool = free(False)
    #: keep the frozen reference's errors on disk; a sweep (of beta, rate, objective) looks them up, with the same result
    cache_reference: bool = free(False)
    #: none (every process holds the model) | fsdp2 (weights, gradients and optimizer states are sharded across the
    #: processes, a block's weights being gathered when it computes). The result is the same
    shard: str = free("none")
    #: recompute activations in the backward pass instead of keeping them: less memory, about a third slower, the same
    #: result. null = on for a transformer on CUDA, off elsewhere
    gradient_checkpointing: bool | None = free(None)
    #: torch.compile the denoiser's repeated blocks (the whole where it names none); not online
    compile: bool = free(False)
    #: a back end of diffusers' attention (flash, xformers, _native_cudnn, ...), for networks that go through its dispatcher;
    #: null = torch's own choice
    attention: str | None = free(None)
    #: optimizer steps between checkpoints, and between measurements on the fixed held-out pairs
    checkpoint_every: int = free(100)
    validate_every: int = free(50)
    device: str | None = free(None)
    #: none | tensorboard
    report_to: str = free("none")
