"""The work of each row of benchmarks/gpu.py: prefkit's own stages at real sizes, timed.

Every function takes a Row and a Place and returns numbers by name: `seconds` per `unit` (median), `peak` in bytes, `useful`
FLOPs per unit, and what else the row measures. Useful FLOPs are those of the denoiser's forward and backward passes, without
the recomputation of checkpointing.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from on_gpu.models import make_pipeline, random_transformer
from on_gpu.rows import Row
from prefkit.config import Choice, Generate, Lora, Model, Online, Recipe, Requests, Score, Train
from prefkit.distributed.collectives import Processes
from prefkit.models.lora.adapters import POLICY, lora_layers
from prefkit.store import Store
from prefkit.store.tensors import save_tensors
from prefkit.train import precision
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.data.reference_cache import ReferenceErrorCache
from prefkit.train.run import make_trainer
from prefkit.train.setup import Job, ModelLoader, prepare
from prefkit.train.trainer import Trainer

PAIRS = 16
RATES = {"no": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES = {"no": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TINY_SIDE, TINY_STEPS = 64, 2


@dataclass(frozen=True)
class Place:
    """The folder and the device of a measurement. out: folder for files that later rows use. seconds: measured time that is aimed at per row."""

    out: Path
    device: str
    tiny: bool = False
    seconds: float = 6.0

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @contextmanager
    def pipeline(self, row: Row) -> Iterator[str]:
        """Yield the folder of the row's pipeline."""
        folder = make_pipeline(row.model, self.out / "models" / row.model, self.tiny, self.device)
        with random_transformer(self.device) if row.model == "flux" and not self.tiny else nullcontext():
            yield str(folder)

    def side(self, row: Row) -> int:
        return TINY_SIDE if self.tiny else row.side

    def precision(self, row: Row) -> str:
        """The row's precision; TF32 exists on CUDA alone."""
        return "no" if row.precision == "tf32" and not self.cuda else row.precision

    def run(self, row: Row) -> Path:
        """The run folder that rows of the same model and image size share, and so their caches."""
        return self.out / "runs" / f"{row.model}-{self.side(row)}"


# -- measuring --------------------------------------------------------------------------------------------------------
def synchronize(place: Place) -> None:
    if place.cuda:
        torch.cuda.synchronize()


def timed(place: Place, calls: Iterator[Any], warmup: int = 3) -> dict[str, Any]:
    """Take items of `calls`, each of which is one unit of work, until the place's seconds have passed."""
    for _ in itertools.islice(calls, 1 if place.tiny else warmup):
        pass
    synchronize(place)
    reset_peak(place)
    seconds: list[float] = []
    begun = last = time.perf_counter()
    for _ in calls:
        synchronize(place)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if len(seconds) >= (1 if place.tiny else 3) and (place.tiny or now - begun > place.seconds):
            break
    return {"seconds": median(seconds), "counted": len(seconds)} | peak(place)


def reset_peak(place: Place) -> None:
    if place.cuda:
        torch.cuda.reset_peak_memory_stats()


def peak(place: Place) -> dict[str, Any]:
    return {"peak": torch.cuda.max_memory_allocated()} if place.cuda else {}


def flops(call: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def rate(row: Row, place: Place) -> dict[str, Any]:
    """Matrix products per precision, FLOPs per second: the best of several shapes' medians would flatter; this is one."""
    size = 256 if place.tiny else 8192
    found: dict[str, Any] = {}
    for name, dtype in RATES.items():
        if name in ("tf32", "fp16") and not place.cuda:
            continue
        a, b = (torch.randn(size, size, device=place.device).to(dtype) for _ in range(2))
        with precision.float32_products(name == "tf32") if place.cuda else nullcontext():
            result = timed(replace(place, seconds=1.0), ((a @ b) for _ in itertools.count()))
        found[name] = 2 * size**3 / result["seconds"]
    return {"rates": found}


# -- training on pairs ------------------------------------------------------------------------------------------------
def write_pairs(folder: Path, side: int, count: int = PAIRS) -> Path:
    """Pairs of smooth random images, as PNG."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.exists():
        rows = [
            {"jpg_0": png(2 * i, side), "jpg_1": png(2 * i + 1, side), "label_0": 1.0, "label_1": 0.0}
            | {"caption": f"a photo of thing number {i}"}
            for i in range(count)
        ]
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


def png(seed: int, side: int) -> bytes:
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3), np.uint8)
    Image.fromarray(small).resize((side, side)).save(buffer := io.BytesIO(), "PNG", compress_level=1)
    return buffer.getvalue()


def pairs_of(row: Row, place: Place) -> Path:
    side = place.side(row)
    return write_pairs(place.out / f"pairs-{side}", side, 4 if place.tiny else PAIRS)


def open_trainer(row: Row, place: Place, base: str, device: str | None = None, **changes: Any) -> Trainer:
    """A trainer as `prefkit train` makes it, before its first step."""
    options = dict(row.options) | changes
    model = Model(base, quantize=options.pop("quantize", None))
    lora = Lora(rank=16) if options.pop("lora", True) else None
    config = Train(
        pairs=str(pairs_of(row, place)),
        objective=Choice("dpo", {"beta": 2000}),
        lora=lora,
        steps=10**6,
        batch_size=min(row.batch, 2) if place.tiny else row.batch,
        warmup=0,
        validation=0,
        device=device or place.device,
        **{"precision": place.precision(row), **options},
    )
    recipe = Recipe(run=str(place.run(row)), model=model, train={"row": config})
    store = Store.create(recipe.run)
    processes = Processes(config.device)
    source = PairSource.find(store, config.pairs)
    precision.check("row", config)
    loader = ModelLoader(store, recipe, config, store.train("row"))
    data = prepare(loader, read_pairs(source), source, processes)
    return make_trainer(loader, Job("row", config), data, processes)


def dpo(row: Row, place: Place) -> dict[str, Any]:
    """Seconds per optimizer step, batches included."""
    if place.tiny:
        precision.BACKEND = "eager"
    with place.pipeline(row) as base:
        trainer = open_trainer(row, place, base)
        with precision.numerical_settings(trainer.config, trainer.processes.device):
            found: dict[str, Any] = compared(trainer, row, place) if row.model == "sd15" and _comparable(row) else {}
            found["useful"] = useful(trainer, row, place)
            if trainer.reference_cache is not None:
                fill_reference(trainer, 2 if place.tiny else 60, place)
            return found | timed(place, trainer.work(10**6)) | {"unit": "step"}


def _comparable(row: Row) -> bool:
    return row.options.get("lora", True) and not row.options.get("quantize")


def fill_reference(trainer: Trainer, steps: int, place: Place) -> None:
    """Train some steps, so that the reference's errors are stored, and go back to the first step."""
    begun = time.perf_counter()
    for number, _ in enumerate(trainer.work(steps)):
        trainer.step += 1
        if time.perf_counter() - begun > 2 * place.seconds and number > 4:
            break
    cache = trainer.reference_cache
    assert cache is not None
    cache.flush()
    trainer.reference_cache, trainer.step = ReferenceErrorCache(cache.folder), 0


def useful(trainer: Trainer, row: Row, place: Place) -> float | None:
    """FLOPs of a step's forward and backward passes, from the denoiser's FLOPs per image (counted once per size)."""
    count, config = place.out / f"flops-{row.model}-{place.side(row)}", trainer.config
    if not count.exists():
        if config.compile or row.options.get("quantize"):
            return None
        batch = next(iter(trainer.data.batches(trainer.family, [(trainer.data.pairs[0], 0)])))
        batch = batch.to(trainer.processes.device)
        try:
            count.write_text(
                str(flops(lambda: trainer.residuals(trainer.policy.net, batch)) / len(batch.latents)), encoding="utf-8"
            )
        except RuntimeError as error:  # without the count, the row only lacks its share of the rate
            print(f"FLOPs of {row.name}: {error}")
            return None
    passes = 1 + (1 if config.lora is not None else 2) + (0 if config.cache_reference else 1)
    return 2 * config.batch_size * passes * float(count.read_text(encoding="utf-8"))


def compared(trainer: Trainer, row: Row, place: Place) -> dict[str, Any]:
    """Loss of the first pair, and the gradient of its mean error, with a fixed adapter that is not zero.

    The gradient goes to a file, for the comparison with the CPU. The loss's own gradient would not do: it is a small
    difference of two nearly equal gradients, whatever the precision.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [
        layer[POLICY].weight for _, lora in lora_layers(trainer.policy.net) for layer in (lora.lora_A, lora.lora_B)
    ]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    batch = next(iter(trainer.data.batches(trainer.family, [(trainer.data.pairs[0], 0)])))
    if trainer.reference_cache is not None:
        trainer.reference_cache.look_up(batch, trainer.data)
    batch = batch.to(trainer.processes.device)
    loss = trainer.losses(batch)[0].detach().sum().item()
    residuals = trainer.residuals(trainer.policy.net, batch)["image"].float()
    trainer.optimizer.backward(residuals.square().mean())
    scale = trainer.optimizer.scaler.get_scale()
    gradient = torch.cat([weight.grad.flatten().float().cpu() / scale for weight in weights])
    trainer.optimizer.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    file = place.out / "gradients" / f"{row.name.replace(' ', '-')}.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_tensors(file, {"gradient": gradient})
    return {"loss": loss, "gradient": str(file.relative_to(place.out))}


def reference(row: Row, place: Place) -> dict[str, Any]:
    """The same loss and gradient on the CPU in float32, from the caches of the float32 row."""
    with place.pipeline(row) as base:
        return compared(open_trainer(row, place, base, device="cpu"), row, place)


def plain(row: Row, place: Place) -> dict[str, Any]:
    """A loop with the habits of the diffusers script, on the same pairs (plain.py)."""
    from on_gpu.plain import steps

    with place.pipeline(row) as base:
        size = min(row.batch, 2) if place.tiny else row.batch
        work = steps(base, pairs_of(row, place), place, size, place.precision(row), **row.options)
        count = place.out / f"flops-{row.model}-{place.side(row)}"
        passes = {"useful": 2 * size * 3 * float(count.read_text(encoding="utf-8"))} if count.exists() else {}
        return timed(place, work) | passes | {"unit": "step"}


def trajectory(row: Row, place: Place) -> dict[str, Any]:
    """RMS gap of the losses of two trainings: bf16 against float32, and another seed against the same seed."""
    steps = TINY_STEPS if place.tiny else 24
    losses = {}
    with place.pipeline(row) as base:
        for name, changes in {"no": {}, "bf16": {"precision": "bf16"}, "seed": {"seed": 1}}.items():
            trainer = open_trainer(row, place, base, **{"precision": "no", "learning_rate": 1e-4, **changes})
            with precision.numerical_settings(trainer.config, trainer.processes.device):
                losses[name] = np.array([metrics["loss"] for metrics, _ in stepped(trainer, steps)])
            del trainer
    gaps = {name: float(np.sqrt(np.mean((losses[name] - losses["no"]) ** 2))) for name in ("bf16", "seed")}
    return {"gap of bf16": gaps["bf16"], "gap of seeds": gaps["seed"], "last loss": float(losses["no"][-1])}


def stepped(trainer: Trainer, steps: int) -> Iterator[Any]:
    for result in trainer.work(steps):
        yield result
        trainer.step += 1


# -- sampling, scoring, online ----------------------------------------------------------------------------------------
def settings_of(row: Row, place: Place, **changes: Any) -> Generate:
    side = place.side(row)
    steps = TINY_STEPS if place.tiny else 20
    given: dict[str, Any] = {"steps": steps, "guidance": 5.0, "height": side, "width": side, "device": place.device}
    batch = min(row.batch, 2) if place.tiny else row.batch
    return Generate(**(given | {"dtype": DTYPES[row.precision], "batch_size": batch} | row.options | changes))


def generate(row: Row, place: Place) -> dict[str, Any]:
    """Seconds per image of the generator alone: prompts, denoising, decoding."""
    from prefkit.generate.generators import open_generator
    from prefkit.types import Request

    with place.pipeline(row) as base:
        settings = settings_of(row, place)
        call = open_generator(Model(base), settings)
        requests = [Request(str(i), f"a photo of thing number {i}") for i in range(settings.batch_size)]

        def batches() -> Iterator[Any]:
            for number in itertools.count():
                results = call(requests, range(number, number + len(requests)))
                yield [result["image"] for result in results]

        found = timed(place, batches(), warmup=1)
    found["seconds"] /= settings.batch_size
    count = place.out / f"flops-{row.model}-{place.side(row)}"
    if count.exists():
        found["useful"] = settings.steps * (1 if row.model == "flux" else 2) * float(count.read_text(encoding="utf-8"))
    return found | {"unit": "image"}


def curate(row: Row, place: Place) -> dict[str, Any]:
    """`prefkit generate` and `prefkit score` of a small run, from loading to the last row, with CLIP ViT-L/14."""
    from prefkit.generate.run import run_generate
    from prefkit.score.run import run_scores

    with place.pipeline(row) as base:
        recipe = recipe_of(row, place, base, "curate", score={"clip": clip(place)})
        store = Store.create(recipe.run)
        made = run_generate(store, recipe, "own")
        reset_peak(place)
        scored = run_scores(store, recipe, ["clip"])["clip"]
    images = made["made"]
    found = {"seconds": (made["seconds"] + scored["seconds"]) / images, "counted": images, "unit": "image"}
    return found | {"seconds of scoring": scored["seconds"] / images} | peak(place)


def clip(place: Place) -> Score:
    if place.tiny:
        return Score("clip", {"model": "tiny"}, device=place.device)
    import open_clip
    import safetensors.torch

    file = place.out / "clip.safetensors"
    if not file.exists():
        with torch.device(place.device):
            state = open_clip.create_model("ViT-L-14", pretrained=None, device=place.device).state_dict()
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, file)
    return Score("clip", {"model": "ViT-L-14", "pretrained": str(file)}, device=place.device, dtype="float16")


def recipe_of(row: Row, place: Place, base: str, name: str, **stages: Any) -> Recipe:
    """A run of its own, with as many prompts as one or two batches need."""
    folder = place.run(row).with_name(f"{row.model}-{name}")
    prompts = folder.with_suffix(".txt")
    folder.parent.mkdir(exist_ok=True)
    prompts.write_text(
        "\n".join(f"a photo of thing number {i}" for i in range(2 if place.tiny else 16)), encoding="utf-8"
    )
    changes = {"n": 1} if name == "curate" else {"dtype": "float32"}
    own = settings_of(replace(row, options={}) if name != "curate" else row, place, **changes)
    requests = Requests(str(prompts), test_share=0.0)
    return Recipe(run=str(folder), model=Model(base), requests=requests, generate={"own": own}, **stages)


def online(row: Row, place: Place) -> dict[str, Any]:
    """Seconds per round of online training, the second round's, with the images' JPEG size as the reward."""
    from prefkit.store.files import read_lines
    from prefkit.train.run import run_train

    objective = row.options["objective"]
    size = {"requests": 1, "samples": 2} if place.tiny else {"requests": 1, "samples": 8}
    settings = Online(rewards={"size": 1.0}, rounds=2, steps=TINY_STEPS if place.tiny else 10, watch_every=0, **size,
                      statistics=row.options.get("statistics", "group"))  # fmt: skip
    with place.pipeline(row) as base:
        train = Train(objective=Choice(objective), lora=Lora(16), batch_size=2 if place.tiny else row.batch, warmup=0,
                      online=settings, device=place.device, precision=place.precision(row))  # fmt: skip
        stages = {"score": {"size": Score("jpeg", {"direction": "expand"})}, "train": {objective: train}}
        recipe = recipe_of(row, place, base, objective, **stages)
        run_train(store := Store.create(recipe.run), recipe, objective)
    last = [line for line in read_lines(store.train(objective) / "metrics.jsonl") if "seconds/sampling" in line][-1]
    parts = {name: last[f"seconds/{name}"] for name in ("sampling", "waiting for rewards", "learning")}
    return {"seconds": sum(parts.values()), "unit": "round", "counted": 1, "parts": parts} | peak(place)


WORK: dict[str, Callable[[Row, Place], dict[str, Any]]] = {
    "rate": rate,
    "dpo": dpo,
    "reference": reference,
    "plain": plain,
    "trajectory": trajectory,
    "generate": generate,
    "curate": curate,
    "online": online,
}
