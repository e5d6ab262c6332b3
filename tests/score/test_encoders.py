"""Scorers on CLIP and SigLIP: formulas in float64, preprocessing against Pillow, embeddings made once.

The networks are tiny random instances of the real classes, saved to disk and read back as published ones are.
"""

from __future__ import annotations

import gc
import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import decode, make_scorer, score_batch
from prefkit.score.embed import encoder as encoders
from prefkit.score.embed import networks
from prefkit.types import Candidate

SIDE, MEAN, STD = 32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ["a red hat", "Boots", "a red hat", "a very long prompt " * 20]
SIZES = [(40, 60), (70, 41), (32, 32), (31, 90)]


def picture(seed, size):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def batch():
    return [
        Candidate(str(i), "r", i, i, prompt=p, image=picture(i, s), extra={"implicit": p[::-1]})
        for i, (p, s) in enumerate(zip(PROMPTS, SIZES))
    ]


@pytest.fixture(scope="module")
def open_clip_checkpoint(tmp_path_factory):
    """A small architecture made known to open_clip, and its weights as HPSv2 saves them: under `state_dict`, in a .pt."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / "prefkit-test.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    torch.manual_seed(3)
    model = open_clip.create_model("prefkit-test", pretrained=None).eval()
    torch.save({"state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    return folder, model


def test_a_checkpoint_that_is_missing_is_no_tag(open_clip_checkpoint, tmp_path):
    for path in (tmp_path / "gone", "gone.safetensors", "weights/gone.pt", "./gone"):
        with pytest.raises(UsageError, match="`pretrained` is .*gone.*, which is not a file"):
            make_scorer("clip", {"model": "prefkit-test", "pretrained": str(path)})
    with pytest.raises(UsageError, match="nor a tag of open_clip"):
        make_scorer("clip", {"model": "prefkit-test", "pretrained": "gone"})


def normalised(image):
    """[3, H, W] float64 of an RGB image."""
    return torch.tensor((np.asarray(image) / 255.0 - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1)


def cropped(image):
    """Shortest side to SIDE, the other rounded down, centre crop: CLIP's own preprocessing, by Pillow alone."""
    w, h = image.size
    w, h = (SIDE, int(SIDE * h / w)) if w <= h else (int(SIDE * w / h), SIDE)
    left, top = (w - SIDE) // 2, (h - SIDE) // 2
    return image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))


def letterboxed(image):
    """Longest side to SIDE, black around it."""
    scale = SIDE / max(image.size)
    small = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return canvas


def squashed(image):
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def cosine(a, b):
    return (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)


def clip_cosines(folder, batch, texts):
    """Cosines in float64, from the parts of the model."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = (
        CLIPModel.from_pretrained(folder, dtype=torch.float64).eval(),
        CLIPTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        seen = model.vision_model(torch.stack([normalised(cropped(c.pil())) for c in batch])).pooler_output
        read = [tokenizer(t, truncation=True, max_length=20, return_tensors="pt").input_ids for t in texts]
        said = torch.cat([model.text_model(ids).pooler_output for ids in read])  # one by one: no padding at all
        return cosine(model.visual_projection(seen), model.text_projection(said)).numpy()


def values(scorer, batch, dtype="float32"):
    scorer.load("cpu", dtype)
    return np.array([score.value for score in score_batch(scorer, batch)])


def test_pickscore_is_the_scaled_cosine(clip, batch):
    scorer = make_scorer("pickscore", {"model": str(clip), "processor": str(clip)})
    expected = 100 * clip_cosines(clip, batch, PROMPTS)
    np.testing.assert_allclose(values(scorer, batch), expected, atol=2e-4)
    assert np.ptp(expected) > 1  # the comparison could have failed
    alone = [score_batch(scorer, [c])[0].value for c in batch]
    np.testing.assert_allclose(alone, expected, atol=2e-4)
    spec = scorer.spec()
    assert spec.licence == "that of the weights" and not spec.verified and spec.revision


def test_the_scale_keeps_its_digits_in_bfloat16(clip, batch):
    scorer = make_scorer("pickscore", {"model": str(clip), "processor": str(clip)})
    values(scorer, batch, "bfloat16")
    assert scorer.encoder.scale == pytest.approx(100, rel=1e-6)


def test_sciscore_reads_the_column_that_holds_the_implicit_prompt(clip, batch):
    scorer = make_scorer("sciscore", {"model": str(clip), "text": "implicit"})
    expected = 100 * clip_cosines(clip, batch, [p[::-1] for p in PROMPTS])
    np.testing.assert_allclose(values(scorer, batch), expected, atol=2e-4)
    assert scorer.requires == {"image", "implicit"}
    plain = make_scorer("sciscore", {"model": str(clip)})
    np.testing.assert_allclose(values(plain, batch), 100 * clip_cosines(clip, batch, PROMPTS), atol=2e-4)


def test_clip_reads_transformers_weights(clip, batch):
    scorer = make_scorer(
        "clip", {"model": str(clip), "library": "transformers", "scaling": "clipscore", "prefix": "a b "}
    )
    expected = 2.5 * np.maximum(clip_cosines(clip, batch, ["a b " + p for p in PROMPTS]), 0)
    np.testing.assert_allclose(values(scorer, batch), expected, atol=5e-6)


@pytest.mark.parametrize("scaling", ["cosine", "logit", "sigmoid"])
def test_siglip_in_its_scalings(siglip, batch, scaling):
    from transformers import AutoTokenizer, SiglipModel

    model = SiglipModel.from_pretrained(siglip, dtype=torch.float64).eval()
    ids = AutoTokenizer.from_pretrained(siglip)(
        [p.lower() for p in PROMPTS], padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    ).input_ids
    assert ids.shape == (4, 16) and (ids[1] == 0).sum() > 8  # short prompts are padded to the context, with <pad>
    with torch.no_grad():
        seen = model.vision_model(torch.stack([normalised(squashed(c.pil())) for c in batch])).pooler_output
        cosines = cosine(seen, model.text_model(ids).pooler_output).numpy()
    logits = 110 * cosines - 12.5
    expected = {"cosine": cosines, "logit": logits, "sigmoid": 1 / (1 + np.exp(-logits))}[scaling]
    scorer = make_scorer("siglip", {"model": str(siglip), "scaling": scaling})
    np.testing.assert_allclose(values(scorer, batch), expected, atol=3e-4 if scaling == "logit" else 3e-6, rtol=1e-3)
    shouted = [Candidate(c.id, "r", 0, 0, prompt=c.prompt.upper(), image=c.image) for c in batch]
    np.testing.assert_array_equal(values(scorer, shouted), values(scorer, batch))


@pytest.mark.parametrize("given", ["folder", "file"])
def test_hpsv2_is_the_plain_cosine_of_the_letterboxed_image(open_clip_checkpoint, batch, given):
    import open_clip

    folder, model = open_clip_checkpoint
    path = folder if given == "folder" else folder / "HPS_v2.1_compressed.pt"
    scorer = make_scorer("hpsv2", {"checkpoint": str(path), "model": "prefkit-test"})
    with torch.no_grad():
        wide = model.double()
        seen = wide.encode_image(torch.stack([normalised(letterboxed(c.pil())) for c in batch]))
        expected = cosine(seen, wide.encode_text(open_clip.tokenize(PROMPTS))).numpy()
        model.float()
    np.testing.assert_allclose(values(scorer, batch), expected, atol=3e-6)
    assert scorer.spec().revision and "2.1" in scorer.spec().weights
    with pytest.raises(UsageError, match=r"has no file HPS_v2_compressed\.pt"):
        make_scorer("hpsv2", {"version": "2.0", "checkpoint": str(folder)}).spec()


def head_state(width, seed=4):
    generator = torch.Generator().manual_seed(seed)
    widths, state = [width, 1024, 128, 64, 16, 1], {}
    for at, (a, b) in zip((0, 2, 4, 6, 7), pairwise(widths)):
        state[f"layers.{at}.weight"] = torch.randn(b, a, generator=generator) / a**0.5
        state[f"layers.{at}.bias"] = torch.randn(b, generator=generator)
    return state


def through_head(state, x):
    for at in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{at}.weight"].double().T + state[f"layers.{at}.bias"].double()
    return x[:, 0].numpy()


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_aesthetic_is_the_linear_head_on_the_unit_embedding(clip, batch, tmp_path, form):
    from safetensors.torch import save_file
    from transformers import CLIPModel

    state = head_state(24)
    (torch.save if form == "pth" else save_file)(state, tmp_path / f"model.{form}")
    scorer = make_scorer(
        "aesthetic", {"head": str(tmp_path / "model.pth" if form == "pth" else tmp_path), "model": str(clip)}
    )
    model = CLIPModel.from_pretrained(clip, dtype=torch.float64).eval()
    with torch.no_grad():
        pooled = model.vision_model(torch.stack([normalised(cropped(c.pil())) for c in batch])).pooler_output
        seen = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)
    np.testing.assert_allclose(values(scorer, batch), through_head(state, seen), atol=1e-5)
    other = [Candidate(c.id, "r", 0, 0, prompt="else", image=c.image) for c in batch]
    np.testing.assert_array_equal(values(scorer, other), values(scorer, batch))


def test_heads_that_do_not_fit_are_refused(clip, tmp_path):
    torch.save(head_state(25), tmp_path / "wide.pth")
    with pytest.raises(UsageError, match="needs embeddings of width 25; .* has 24"):
        make_scorer("aesthetic", {"head": str(tmp_path / "wide.pth"), "model": str(clip)}).load("cpu", "float32")
    torch.save({k: v for k, v in head_state(24).items() if "7" not in k}, tmp_path / "short.pth")
    with pytest.raises(UsageError, match="no linear head.*layers.7.bias"):
        make_scorer("aesthetic", {"head": str(tmp_path / "short.pth"), "model": str(clip)}).load("cpu", "float32")


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def test_weights_that_would_run_code_are_refused(tmp_path, clip, capsys):
    torch.save({"layers.0.weight": Code()}, tmp_path / "bad.pth")
    with pytest.raises(UsageError, match="could not be read as weights"):
        make_scorer("aesthetic", {"head": str(tmp_path / "bad.pth"), "model": str(clip)}).load("cpu", "float32")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [*SIZES, (33, 65), (200, 7)])
def test_preprocessing_is_pillows_to_the_pixel(clip, siglip, open_clip_checkpoint, size):
    image = Image.open(io.BytesIO(picture(9, size)))
    folder, _ = open_clip_checkpoint
    short, square = (networks.Transformers(str(f), str(f), "cpu", "float32").processor for f in (clip, siglip))
    long = networks.OpenClip("prefkit-test", str(folder / "HPS_v2.1_compressed.pt"), "longest", "cpu", "float32")
    found = {
        "cropped": short(images=[image], return_tensors="pt").pixel_values[0],
        "squashed": square(images=[image], return_tensors="pt").pixel_values[0],
        "letterboxed": long.transform(image),
    }
    wanted = {"cropped": cropped(image), "squashed": squashed(image), "letterboxed": letterboxed(image)}
    for name, pixels in found.items():
        levels = pixels.double().permute(1, 2, 0).numpy() * STD + np.array(MEAN)
        np.testing.assert_allclose(levels * 255, np.asarray(wanted[name]), atol=1e-3, err_msg=name)


@pytest.fixture
def counted(monkeypatch):
    """How many images and texts each call of a transformers network embedded."""
    calls = {"images": [], "texts": []}
    for name in calls:
        inner = getattr(networks.Transformers, name)

        def outer(self, items, inner=inner, name=name, **how):
            calls[name].append(len(items))
            return inner(self, items, **how)

        monkeypatch.setattr(networks.Transformers, name, outer)
    return calls


def test_scorers_of_one_encoder_share_network_and_embeddings(clip, batch, counted, tmp_path):
    torch.save(head_state(24), tmp_path / "head.pth")
    ahead = decode(batch)
    scorers = [
        make_scorer("pickscore", {"model": str(clip), "processor": str(clip)}),
        make_scorer("clip", {"model": str(clip), "library": "transformers"}),
        make_scorer("aesthetic", {"head": str(tmp_path / "head.pth"), "model": str(clip)}),
    ]
    found = [values(scorer, ahead) for scorer in scorers]
    # aesthetic prepares its images as OpenAI does, the two others as the processor does; one empty text on opening tells the width; a prompt is twice
    assert counted == {"images": [4, 4], "texts": [1, 3]}
    assert scorers[0].encoder.network is scorers[1].encoder.network is scorers[2].encoder.network
    np.testing.assert_allclose(found[0], 100 * found[1], rtol=1e-6)
    values(make_scorer("clip", {"model": str(clip), "library": "transformers"}), ahead[:2])
    assert counted["images"] == [4, 4]


def test_another_dtype_or_other_weights_are_another_encoder(clip, batch, counted, tmp_path):
    import shutil

    options = {"library": "transformers"}
    one = make_scorer("clip", {"model": str(clip), **options})
    values(one, batch)
    half = make_scorer("clip", {"model": str(clip), **options})
    values(half, batch, "bfloat16")
    shutil.copytree(clip, tmp_path / "copy")
    copy = make_scorer("clip", {"model": str(tmp_path / "copy"), **options})
    values(copy, batch)
    assert counted["images"] == [4, 4, 4]


def test_an_encoder_is_closed_with_its_last_scorer(clip, batch):
    scorer = make_scorer("clip", {"model": str(clip), "library": "transformers"})
    values(scorer, batch)
    gc.collect()
    before = len(encoders._OPEN)
    del scorer
    gc.collect()
    assert before and len(encoders._OPEN) < before


def test_what_is_kept_is_bounded_and_never_mixed_up():
    made = []

    def make(at):
        made.append([keys[i] for i in at])
        return torch.tensor([[float(keys[i])] for i in at])

    kept = encoders.EmbeddingCache(3)
    for keys in (["1", "2", "1"], ["3", "2"], ["5", "4", "6", "7"], ["2", "7"]):
        assert kept.rows(keys, make)[:, 0].tolist() == [float(key) for key in keys]
        assert len(kept.entries) <= 3
    assert [sorted(part) for part in made] == [["1", "2"], ["3"], ["4", "5", "6", "7"], ["2"]]


def test_equal_pixels_are_one_image_and_others_are_not():
    image = picture(1, (8, 8))
    ahead = decode([Candidate("a", "r", 0, 0, image=image, sha256="x"), Candidate("b", "r", 1, 1, image=image)])
    other = decode([Candidate("c", "r", 2, 2, image=picture(2, (8, 8)), sha256="x")])
    keys = [encoders.image_key(c) for c in [*ahead, *other]]
    assert keys[0] == keys[1] != keys[2]  # what the table claims of them does not matter
    raw = [encoders.image_key(Candidate(str(i), "r", i, i, image=picture(i, (8, 8)), sha256="x")) for i in (1, 2)]
    assert raw[0] != raw[1]


def test_missing_weights_are_not_left_random(clip, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(clip, tmp_path / "part")
    state = {k: v for k, v in load_file(clip / "model.safetensors").items() if k != "visual_projection.weight"}
    save_file(state, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks weights: visual_projection\.weight"):
        make_scorer("sciscore", {"model": str(tmp_path / "part")}).load("cpu", "float32")


def test_what_cannot_be_loaded_is_said(tmp_path, siglip):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="could not be loaded"):
        make_scorer("siglip", {"model": str(tmp_path)}).load("cpu", "float32")
    from transformers import BertConfig, BertModel

    body = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=10, **body)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a BertModel; it must be a CLIP or SigLIP model"):
        make_scorer("pickscore", {"model": str(tmp_path), "processor": str(siglip)}).load("cpu", "float32")
    with pytest.raises(UsageError, match="`pretrained` is not set"):
        make_scorer("clip", {"model": "ViT-B-32", "pretrained": None}).load("cpu", "float32")
