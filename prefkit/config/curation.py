"""Settings of the model and of the stages generate, score, compare and pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefkit.config.content import runtime


@dataclass(frozen=True)
class Model:
    """The initial model, from which generate, train and eval start; it is also the frozen reference."""

    #: Hub id, pipeline folder, or single .safetensors/.ckpt file
    base: str = ""
    #: Hub revision (branch, tag or commit)
    revision: str | None = None
    #: variant of the weight files, such as fp16; null = the plain files or, in a folder without them, its variant
    variant: str | None = None
    #: LoRA adapters: path or Hub id -> weight
    adapters: dict[str, float] = field(default_factory=dict)
    #: for a single file: pipeline folder or Hub id that provides the configuration
    config: str | None = None
    #: quantization of the denoiser's linear layers: nf4 | int8 | fp8; train then supports only adapters
    quantize: str | None = None
    #: encode and decode large images in tiles: saves memory, but changes pixels and latents slightly
    vae_tiling: bool = False
    #: treatment of prompts beyond CLIP's 77 tokens: cut | chunks (encode them in several parts; SD and SDXL)
    long_prompts: str = "cut"
    #: argument of the pipeline's call -> request field with its value, extra.NAME (an image or a number)
    inputs: dict[str, str] = field(default_factory=dict)
    #: run code that comes with the model
    trust_remote_code: bool = runtime(False)


@dataclass(frozen=True)
class Requests:
    #: file with requests: .txt (one prompt per line), .csv or .tsv (all values are strings), .jsonl, .json, .parquet;
    #: or a Hub dataset (owner/name[:split]), or a published set of prompts: partiprompts | drawbench | hpdv2 |
    #: pickapic_test
    source: str = ""
    #: column with the prompt; further columns become the request's `extra`
    prompt_column: str = "prompt"
    #: column with the split; null = a hash of the prompt decides
    split_column: str | None = None
    #: fraction of requests held out for eval; requests already in the run keep their split
    test_share: float = 0.1
    #: columns that hold images for scorers, such as examples of what the user likes (a path, or a list of paths); the
    #: columns of model.inputs need not be listed
    images: list[str] = field(default_factory=list)


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
    #: seed from which, with the request and the candidate's index, each candidate's seed is derived
    seed: int = 0
    #: name of a training in this run (train/<name>) whose model is sampled; null = the recipe's `model`
    model: str | None = None
    #: further arguments of the pipeline's call
    call: dict[str, Any] = field(default_factory=dict)
    #: store each image's final latents, so that training need not encode the image
    latents: bool = runtime(True)
    #: png | webp (lossless)
    format: str = runtime("png")
    #: splits of requests for which candidates are generated; eval generates those of held-out requests
    splits: list[str] = runtime(factory=lambda: ["train"])
    batch_size: int = runtime(8)
    #: torch.compile the denoiser
    compile: bool = runtime(False)
    #: none | model | sequential: keep the pipeline in CPU memory, and move to the GPU only the part (text encoder,
    #: denoiser, VAE) or the single layer that computes. Saves memory, but is slower, `sequential` much
    offload: str = runtime("none")
    #: cpu | cuda | mps; null = the best available
    device: str | None = runtime(None)
    #: fraction of failed candidates above which the command ends with exit code 3
    max_failed: float = runtime(0.001)


@dataclass(frozen=True)
class Score:
    #: scorer: a name listed by `prefkit plugins`, file.py:function, or package.module:Class
    use: str = ""
    #: options of the scorer; in the recipe, keys next to `use`
    options: dict[str, Any] = field(default_factory=dict)
    #: entries of `generate` whose candidates are scored; empty = all
    generators: list[str] = runtime(factory=list)
    #: images per call of the scorer, halved if the device runs out of memory
    batch_size: int = runtime(32)
    #: dtype of the scorer's networks: float32 | bfloat16 | float16
    dtype: str = "float32"
    device: str | None = runtime(None)
    max_failed: float = runtime(0.001)
    #: names of restrictive licences (non-commercial or copyleft) that you accept because they permit your use
    accept_license: list[str] = runtime(factory=list)


@dataclass(frozen=True)
class Compare:
    #: judge, a scorer that can compare two images: mllm or file.py:Class
    use: str = "mllm"
    #: options of the judge; in the recipe, keys next to `use`
    options: dict[str, Any] = field(default_factory=dict)
    #: pairs of candidates to compare: all | extremes (the best against the worst by the score `by`)
    pairs: str = runtime("all")
    #: name of the score that `pairs: extremes` uses
    by: str = runtime("")
    #: maximum number of pairs per request
    most: int = runtime(4)
    #: aspect to judge; empty = which image is better overall
    aspect: str = ""
    #: question to the judge, with placeholders {prompt}, {aspect} and keys of the request; empty = the judge's default
    template: str = ""
    #: entries of `generate` whose candidates are compared; empty = all
    generators: list[str] = runtime(factory=list)
    #: pairs per call of a local judge
    batch_size: int = runtime(8)
    #: dtype of the judge's network: float32 | bfloat16 | float16
    dtype: str = "float32"
    device: str | None = runtime(None)
    max_failed: float = runtime(0.001)
    #: names of restrictive licences (non-commercial or copyleft) that you accept because they permit your use
    accept_license: list[str] = runtime(factory=list)


@dataclass(frozen=True)
class Pair:
    #: strategy: topk_bottomk | margin | all_pairs | threshold_all | per_scorer | pareto | consensus | one_aspect |
    #: comparisons | file.py:Class
    use: str = "topk_bottomk"
    #: options of the strategy; in the recipe, keys next to `use`
    options: dict[str, Any] = field(default_factory=dict)
    #: score name -> weight (only proportions matter); empty = weight 1 for all scores except evaluation-only scores,
    #: those in `filter`, and those that were added after a model was trained on these pairs
    weights: dict[str, float] = field(default_factory=dict)
    #: normalisation of scores: centred (minus the request's mean, divided by the standard deviation within requests) |
    #: none | minmax | zscore | rank | softmax | winrate (mean sigmoid of differences)
    normalise: str = "centred"
    #: normalise over the candidates of each request, or over all candidates: request | global
    scope: str = "request"
    #: decimals to which raw scores are first rounded (0 = integers); null = no rounding
    decimals: int | None = None
    #: what to leave out if a score is missing: drop_candidate | drop_scorer (use the candidate's other scores) |
    #: drop_request
    missing: str = "drop_candidate"
    #: largest gap between combined scores (weighted means of normalised scores) that counts as a tie; null = 0.1 for
    #: centred and zscore, else 0
    tie: float | None = None
    #: score name -> largest difference between normalised scores that counts as a tie for this scorer; default 0
    ties: dict[str, float] = field(default_factory=dict)
    #: maximum number of pairs: keep those on which most scorers agree, then those with the widest gaps; null = keep all
    top_pairs: int | None = None
    #: entries of `generate` whose candidates are paired; empty = all
    generators: list[str] = field(default_factory=list)
    #: pair only candidates that meet this condition on scores, index, seed or generator, such as "nsfw < 0.5" (false if
    #: a score is missing); empty = pair all
    filter: str = ""
    #: duplicates to drop within a request: near (images that look the same) | exact (equal files) | keep (drop none)
    duplicates: str = "near"
    #: what to do with black images, images of one colour, and images of only pure colours: drop | keep
    degenerate: str = "drop"
    #: also write each request's ranked list of candidates, for listwise objectives
    lists: bool = False
    #: store images in the dataset; false = only ids and scalars, until the dataset is pushed or exported
    embed: bool = True
