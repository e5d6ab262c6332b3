"""The port of ImageReward against its definition, worked out in float64 from a checkpoint as the original names it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.types import Candidate

SIDE, PATCH, WIDE, TEXT = 32, 8, 128, 32  # two heads of 64 in the image encoder, four of 8 in the text encoder
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "hat", "boot", "on", "the", "table", "with"]
MED = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": TEXT,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "architectures": ["BertModel"],
    "add_cross_attention": True,
}
PROMPTS = ["a red hat", "a blue boot on the table", "hat " * 60, "never seen words"]
SIZES = [(40, 60), (70, 41), (32, 32), (64, 33)]


def random_state():
    """Every weight of the published checkpoint by its name there, at small sizes."""
    shapes = {"blip.visual_encoder.cls_token": (1, 1, WIDE), "blip.visual_encoder.pos_embed": (1, 17, WIDE)}
    linear = {"blip.visual_encoder.patch_embed.proj": (WIDE, 3, PATCH, PATCH), "blip.vision_proj": (16, WIDE)}
    linear |= {"blip.text_proj": (16, TEXT)}
    norms = {"blip.visual_encoder.norm": WIDE, "blip.text_encoder.embeddings.LayerNorm": TEXT}
    for i in range(2):
        at = f"blip.visual_encoder.blocks.{i}."
        norms |= {at + "norm1": WIDE, at + "norm2": WIDE}
        linear |= {at + "attn.qkv": (3 * WIDE, WIDE), at + "attn.proj": (WIDE, WIDE)}
        linear |= {at + "mlp.fc1": (256, WIDE), at + "mlp.fc2": (WIDE, 256)}
        at = f"blip.text_encoder.encoder.layer.{i}."
        for name, source in (("attention", TEXT), ("crossattention", WIDE)):
            linear |= {f"{at}{name}.self.query": (TEXT, TEXT), f"{at}{name}.output.dense": (TEXT, TEXT)}
            linear |= {f"{at}{name}.self.{part}": (TEXT, source) for part in ("key", "value")}
            norms[f"{at}{name}.output.LayerNorm"] = TEXT
        linear |= {at + "intermediate.dense": (48, TEXT), at + "output.dense": (TEXT, 48)}
        norms[at + "output.LayerNorm"] = TEXT
    for at, (a, b) in zip((0, 2, 4, 6, 7), ((TEXT, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))):
        linear[f"mlp.layers.{at}"] = (b, a)
    shapes |= {"blip.text_encoder.embeddings.word_embeddings.weight": (MED["vocab_size"], TEXT)}
    shapes |= {"blip.text_encoder.embeddings.position_embeddings.weight": (40, TEXT)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(*shape, generator=generator) * (1.5 / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }
    for name, size in norms.items():
        state[name + ".weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
        state[name + ".bias"] = 0.1 * torch.randn(size, generator=generator)
    return state | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(random_state(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder / "bert")
    return folder


class Reference:
    """The published forward pass on plain tensors, one candidate at a time, without padding."""

    def __init__(self, state):
        self.state = {name: value.double() for name, value in state.items()}

    def linear(self, name, x):
        return x @ self.state[name + ".weight"].flatten(1).T + self.state[name + ".bias"]

    def norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return unit * self.state[name + ".weight"] + self.state[name + ".bias"]

    def attend(self, q, k, v, heads):
        q, k, v = (t.view(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(0, 1).reshape(q.shape[1], -1)

    def image(self, pixels):
        name, gelu = "blip.visual_encoder.", torch.nn.functional.gelu
        patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).reshape(16, -1)
        x = torch.cat([self.state[name + "cls_token"][0], self.linear(name + "patch_embed.proj", patches)])
        x = x + self.state[name + "pos_embed"][0]
        for i in range(2):
            at = f"{name}blocks.{i}."
            q, k, v = self.linear(at + "attn.qkv", self.norm(at + "norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(at + "attn.proj", self.attend(q, k, v, 2))
            x = x + self.linear(at + "mlp.fc2", gelu(self.linear(at + "mlp.fc1", self.norm(at + "norm2", x, 1e-6))))
        return self.norm(name + "norm", x, 1e-6)

    def text(self, ids, seen):
        name = "blip.text_encoder."
        x = self.state[name + "embeddings.word_embeddings.weight"][ids]
        x = x + self.state[name + "embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(name + "embeddings.LayerNorm", x, 1e-12)
        for i in range(2):
            at = f"{name}encoder.layer.{i}."
            for part, source in (("attention", None), ("crossattention", seen)):
                of = x if source is None else source
                q = self.linear(f"{at}{part}.self.query", x)
                k, v = (self.linear(f"{at}{part}.self.{which}", of) for which in ("key", "value"))
                out = self.linear(f"{at}{part}.output.dense", self.attend(q, k, v, 4))
                x = self.norm(f"{at}{part}.output.LayerNorm", x + out, 1e-12)
            inner = torch.nn.functional.gelu(self.linear(at + "intermediate.dense", x))
            x = self.norm(at + "output.LayerNorm", x + self.linear(at + "output.dense", inner), 1e-12)
        return x[0]

    def reward(self, image, prompt):
        words = [WORDS.index(w) if w in WORDS else 1 for w in prompt.split()][:33]  # 35 with the two around them
        x = self.text(torch.tensor([2, *words, 3]), self.image(pixels(image)))
        for at in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{at}", x)
        return (float(x) - 0.16717362830052426) / 1.0333394966054072


def pixels(image):
    """Shortest side to SIDE by Pillow's bicubic, centre crop, CLIP's statistics."""
    w, h = image.size
    w, h = (SIDE, int(SIDE * h / w)) if w <= h else (int(SIDE * w / h), SIDE)
    left, top = round((w - SIDE) / 2), round((h - SIDE) / 2)
    small = image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.tensor((np.asarray(small) / 255 - mean) / std).permute(2, 0, 1)


def batch():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)) for w, h in SIZES]
    return [Candidate(str(i), "r", i, i, prompt=p, decoded=x) for i, (p, x) in enumerate(zip(PROMPTS, pictures))]


def scorer_of(folder):
    return make_scorer("imagereward", {"model": str(folder), "tokenizer": str(folder / "bert")})


def test_imagereward_is_its_definition(published):
    scorer, reference = scorer_of(published), Reference(random_state())
    scorer.load("cpu", "float32")
    found = [score.value for score in score_batch(scorer, batch())]
    expected = [reference.reward(c.pil(), c.prompt) for c in batch()]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected) > 0.1
    alone = [score_batch(scorer, [c])[0].value for c in batch()]
    np.testing.assert_allclose(alone, expected, atol=2e-5)
    spec = scorer.spec()
    assert spec.licence == "that of the weights" and not spec.verified and len(spec.revision.split()) == 3


@pytest.mark.parametrize(
    "drop, add", [("blip.visual_encoder.blocks.1.mlp.fc2.bias", None), (None, "blip.itm_head.weight")]
)
def test_weights_of_something_else_are_refused(published, tmp_path, drop, add):
    """The original loads its checkpoint non-strictly, so that missing weights would be random ones."""
    import shutil

    shutil.copytree(published, tmp_path / "m")
    state = {k: v for k, v in random_state().items() if k != drop} | ({add: torch.ones(1)} if add else {})
    torch.save(state, tmp_path / "m" / "ImageReward.pt")
    with pytest.raises(
        UsageError, match=r"is not a BLIP checkpoint.*layers\.1\.mlp\.fc2\.bias" if drop else "does not have: itm_head"
    ):
        scorer_of(tmp_path / "m").load("cpu", "float32")
