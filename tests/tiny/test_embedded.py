"""The embedded weights as they are shipped: they draw what is asked for, tell it, and load without prefkit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from prefkit import tiny
from prefkit.tiny.captions import asked
from prefkit.tiny.requests import requests
from prefkit.tiny.scene import Scene, render
from prefkit.tiny.truth import read_many

LIMIT = 25 * 2**20  # bytes of everything in prefkit/tiny


def test_the_pipeline_draws_what_complete_prompts_ask_for():
    """64 images of the gate's 256 (20 steps, guidance 3). The gate is item .85, colour .95, background .98; with 64
    images three standard errors are .13, .08 and .05, and the test allows for two."""
    from prefkit.models.load.pipeline import load_pipeline

    pipe = load_pipeline(tiny.NAME)
    wanted = [r.prompt for r in requests("full", 32, 32)]
    images = []
    with torch.inference_mode():
        for start in range(0, 64, 32):
            seeds = [torch.Generator().manual_seed(start + i) for i in range(32)]
            found = pipe(wanted[start : start + 32], num_inference_steps=20, guidance_scale=3.0, generator=seeds)
            images += found.images
    seen = read_many(images)

    def share(name: str) -> float:
        return sum(getattr(asked(text), name) == getattr(s, name) for text, s in zip(wanted, seen)) / 64

    assert share("item") >= 0.85 - 0.09
    assert share("colour") >= 0.95 - 0.055
    assert share("background") >= 0.98 - 0.035


def test_the_clip_tells_items_and_colours_apart():
    """Zero-shot by prompt on fresh renders: the gate is item .9 and colour .95; 60 renders allow two standard errors."""
    from prefkit.score.embed.encoder import Encoder
    from prefkit.tiny.domain import COLOURS, ITEMS

    encoder = Encoder(tiny.NAME, None)
    encoder.load("cpu", "float32")
    asked_for = [asked(r.prompt) for r in requests("full", 30, 30, seed=1)]
    scenes = [Scene(a.item, a.colour, a.background, a.pattern) for a in asked_for]
    images = encoder.images([render(scene, 900 + i) for i, scene in enumerate(scenes)])

    def right(name: str, options: list[str]) -> float:
        hits = 0
        for scene, image in zip(scenes, images):
            texts = [prompt_with(scene, **{name: option}) for option in options]
            hits += options[int((encoder.texts(texts) @ image).argmax())] == getattr(scene, name)
        return hits / len(scenes)

    assert right("item", list(ITEMS)) >= 0.9 - 0.08
    assert right("colour", list(COLOURS)) >= 0.95 - 0.06


def prompt_with(scene: Scene, **changed: str) -> str:
    from dataclasses import replace

    from prefkit.tiny.captions import caption

    return caption(replace(scene, **changed))


@pytest.mark.parametrize(
    "code",
    [
        "from diffusers import StableDiffusionPipeline as P\n"
        "image = P.from_pretrained(folder)('a red dress', num_inference_steps=2).images[0]\nassert image.size == (64, 64)",
        "import open_clip, torch\n"
        "model, _, transform = open_clip.create_model_and_transforms('local-dir:' + folder)\n"
        "text = model.encode_text(open_clip.get_tokenizer('local-dir:' + folder)(['a red dress', 'a blue dress']))\n"
        "assert text.shape == (2, 64) and not torch.equal(text[0], text[1])",
    ],
    ids=["diffusers", "open_clip"],
)
def test_the_folders_load_without_prefkit(code, tmp_path):
    folder = tiny.PIPELINE if "diffusers" in code else tiny.CLIP
    text = (
        f"import sys\nfolder = {str(folder)!r}\n{code}\nassert not [m for m in sys.modules if m.startswith('prefkit')]"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_everything_embedded_stays_small_and_without_pickle():
    files = [path for path in tiny.FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert (tiny.FOLDER / "NOTICE").is_file() and (tiny.PIPELINE / "README.md").is_file()
    assert (tiny.CLIP / "README.md").is_file() and (tiny.JUDGE / "README.md").is_file()
