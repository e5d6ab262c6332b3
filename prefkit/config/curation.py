"""Settings of the model and of the stages from requests to pairs: generate, score, compare and pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefkit.config.content import runtime


@dataclass(frozen=True)
class Model:
    """The model that generate, train and eval start from; it is also the frozen reference."""

    #: Hub id, pipeline folder, or single .safetensors/.ckpt file
    base: str = ""
    #: Hub revision (branch, tag or commit)
    revision: str | None = None
    #: LoRA adapters by path or Hub id -> weight
    adapters: dict[str, float] = field(default_factory=dict)
    #: for a single file: a pipeline folder or Hub id to take the configuration from
    config: str | None = None
    #: nf4 | int8 | fp8: quantization of the denoiser's linear layers in generate, train (adapters only) and eval
    quantize: str | None = None
    #: encode and decode images larger than a tile of the VAE in tiles: less memory, slightly different pixels and
    #: latents
    vae_tiling: bool = False
    #: argument of the pipeline's call -> the request field that supplies it (extra.NAME, an image or a number)
    inputs: dict[str, str] = field(default_factory=dict)
    #: run code that comes with the model
    trust_remote_code: bool = runtime(False)


@dataclass(frozen=True)
class Requests:
    #: table of requests: .txt (one prompt per line), .csv or .tsv (all values are strings), .jsonl, .json, .parquet,
    #: or a Hub dataset (owner/name[:split])
    source: str = ""
    #: column of the prompt; other columns become `extra`
    prompt_column: str = "prompt"
    #: column with each request's split; null = by a hash of the prompt
    split_column: str | None = None
    #: fraction of requests held out for eval; requests that the run already has keep their split
    test_share: float = 0.1


@dataclass(frozen=True)
class Generate:
    #: generator: diffusers, mesh (human meshes from 2D keypoints), or your own as file.py:name
    use: str = "diffusers"
    #: candidates per request
    n: int = runtime(4)
    #: denoising steps
    steps: int = 30
    #: guidance scale; null = the pipeline's default
    guidance: float | None = None
    #: height and width of the images in pixels; null = the pipeline's default
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    #: class name of a diffusers scheduler to use instead of the pipeline's; null = no change
    scheduler: str | None = None
    #: float32 | bfloat16 | float16
    dtype: str = "float32"
    #: seed of the run; each candidate's seed is derived from it, the request and the candidate's index
    seed: int = 0
    #: name of a trained model of this run (train/<name>) to use instead of `model` itself (use: diffusers or mesh)
    model: str | None = None
    #: further arguments of the pipeline's call
    call: dict[str, Any] = field(default_factory=dict)
    #: store the final latents with each image, so that training need not encode the image
    latents: bool = runtime(True)
    #: png | webp (lossless)
    format: str = runtime("png")
    #: splits of requests to generate candidates for; held-out requests get theirs from eval
    splits: list[str] = runtime(factory=lambda: ["train"])
    batch_size: int = runtime(8)
    #: torch.compile the denoiser
    compile: bool = runtime(False)
    #: cpu | cuda | mps; null = the best available
    device: str | None = runtime(None)
    #: fraction of failed items above which the stage ends with exit code 3
    max_failed: float = runtime(0.001)


@dataclass(frozen=True)
class Score:
    #: scorer: a name listed by `prefkit plugins`, file.py:function, or package.module:Class
    use: str = ""
    #: options of the scorer; in the recipe, keys next to `use`
    options: dict[str, Any] = field(default_factory=dict)
    #: entries of `generate` whose candidates are scored; empty = all
    generators: list[str] = runtime(factory=list)
    #: images per call of the scorer; halved if the device runs out of memory
    batch_size: int = runtime(32)
    #: dtype of the networks: float32 | bfloat16 | float16
    dtype: str = "float32"
    device: str | None = runtime(None)
    max_failed: float = runtime(0.001)
    #: names of restrictive licences (non-commercial or copyleft) that you accept because they permit your use
    accept_license: list[str] = runtime(factory=list)


@dataclass(frozen=True)
class Compare:
    #: judge: a scorer that can compare two images (mllm), or file.py:Class
    use: str = "mllm"
    #: options of the judge; in the recipe, keys next to `use`
    options: dict[str, Any] = field(default_factory=dict)
    #: pairs to compare per request: all | extremes (the best against the worst by the score `by`)
    pairs: str = runtime("all")
    #: name of the score that `pairs: extremes` uses
    by: str = runtime("")
    #: maximum number of pairs per request
    most: int = runtime(4)
    #: the only aspect to judge; empty = which image is better overall
    aspect: str = ""
    #: the question, with placeholders {prompt}, {aspect} and keys of the request; empty = the judge's default
    template: str = ""
    #: entries of `generate` whose candidates are compared; empty = all
    generators: list[str] = runtime(factory=list)
    #: pairs per call of a judge that runs in this process
    batch_size: int = runtime(8)
    #: dtype of the judge's network: float32 | bfloat16 | float16
    dtype: str = "float32"
    device: str | None = runtime(None)
    max_failed: float = runtime(0.001)
    #: names of restrictive licences (non-commercial or copyleft) that you accept because they permit your use
    accept_license: list[str] = runtime(factory=list)


@dataclass(frozen=True)
class Pair:
    #: strategy: topk_bottomk | margin | all_pairs | threshold_all | per_scorer | pareto | consensus | comparisons |
    #: file.py:Class
    use: str = "topk_bottomk"
    #: options of the strategy; in the recipe, keys next to `use`
    options: dict[str, Any] = field(default_factory=dict)
    #: score name -> weight (only proportions matter); empty = every score with weight 1, except for evaluation-only
    #: scores and those in `filter`
    weights: dict[str, float] = field(default_factory=dict)
    #: normalisation of scores: centred (per request, divided by the pooled within-request standard deviation) | none
    #: | minmax | zscore | rank | softmax | winrate (mean sigmoid of differences)
    normalise: str = "centred"
    #: candidates over which a score is normalised: request (those of the request) | global (all)
    scope: str = "request"
    #: decimals to which raw scores are rounded before anything else (0 = integers); null = no rounding
    decimals: int | None = None
    #: effect of a missing score: drop_candidate | drop_scorer (the other weights count) | drop_request
    missing: str = "drop_candidate"
    #: largest gap between weighted means of normalised scores that is a tie; null = 0.1 standard deviations
    #: (centred), else 0
    tie: float | None = None
    #: score name -> largest difference of that score, normalised, that is a tie for its scorer; 0 for scores not named
    ties: dict[str, float] = field(default_factory=dict)
    #: maximum number of pairs, preferring those on which more scorers agree, then those with a wider gap; null = all
    top_pairs: int | None = None
    #: entries of `generate` whose candidates are paired; empty = all
    generators: list[str] = field(default_factory=list)
    #: pair only candidates that meet this condition on scores, index, seed or generator, such as "nsfw < 0.5"; candidates
    #: that lack one of its scores are dropped; empty = pair all
    filter: str = ""
    #: duplicates to drop within a request: near (images that look the same) | exact (the same bytes) | keep (none)
    duplicates: str = "near"
    #: drop or keep images of one colour, black images, and images with all colours at their extremes: drop | keep
    degenerate: str = "drop"
    #: also write ranked lists (a row per request), for listwise objectives
    lists: bool = False
    #: store image bytes in the dataset; false = ids and scalars only, until the dataset is pushed or exported
    embed: bool = True
