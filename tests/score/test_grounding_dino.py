"""The scorer `grounding_dino` on a tiny Grounding DINO with random weights, against the processor's own boxes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.types import Candidate

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "a", "rusty", "anchor", "gear"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Folder of a Grounding DINO: Swin and BERT with a layer or two, 6 queries."""
    from transformers import BertConfig, BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
    from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor

    folder = tmp_path_factory.mktemp("dino")
    swin = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 2],
        window_size=2,
        out_indices=[2, 3],
    )
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    layers = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 16))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=text, num_queries=6, d_model=32, num_feature_levels=2, max_text_len=16,
        **layers, **heads,
    )  # fmt: skip
    torch.manual_seed(0)
    network = GroundingDinoForObjectDetection(config).eval()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 48}), tokenizer
    )
    for part in (network, processor):
        part.save_pretrained(folder)
    return folder


def candidate(seed: int, subject: str = "A rusty anchor.") -> Candidate:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Candidate(f"c{seed}", "r", seed, 0, "a gear", buffer.getvalue(), extra={"subject": subject})


def scored(detector, batch, **options):
    scorer = make_scorer("grounding_dino", {"model": str(detector), **options})
    scorer.load("cpu", "float32")
    return scorer.score(batch)


def test_the_box_encloses_all_detections_and_is_larger_by_the_margin(detector):
    from transformers import AutoProcessor, GroundingDinoForObjectDetection

    batch = [candidate(1), candidate(2, "gear")]
    processor = AutoProcessor.from_pretrained(detector)
    network = GroundingDinoForObjectDetection.from_pretrained(detector)
    for one, subject, score in zip(
        batch, ("a rusty anchor.", "gear."), scored(detector, batch, threshold=1e-9, margin=0)
    ):
        inputs = processor(images=one.pil(), text=subject, return_tensors="pt")
        with torch.inference_mode():
            [found] = processor.post_process_grounded_object_detection(
                network(**inputs), inputs["input_ids"], threshold=0.0, text_threshold=0.0
            )
        boxes = found["boxes"].clamp(0, 1)
        assert score.value == pytest.approx(float(found["scores"].max()), rel=1e-3)
        expected = [*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist()]
        assert list(score.aspects.values()) == pytest.approx(expected, abs=1e-3)


def test_margin_and_threshold(detector):
    scorer = make_scorer("grounding_dino", {"model": str(detector)})
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.6, 0.5, 0.2, 0.95], [0.1, 0.1, 0.1, 0.1]])
    scores = torch.tensor([0.4, 0.9, 0.2])
    found = scorer._score(scores, boxes)
    assert found.value == pytest.approx(0.9)
    assert list(found.aspects.values()) == pytest.approx([0.35, 0.0, 0.75, 1.0])  # x: .4 to .7, both sides .05 more
    nothing = scorer._score(scores / 10, boxes)
    assert nothing.value == pytest.approx(0.09) and not nothing.aspects  # so that the full image counts


@pytest.mark.parametrize(
    "options, fault", [({"model": "absent/folder/x"}, "cannot be loaded"), ({"threshold": 1.0}, "threshold is 1")]
)
def test_faults(detector, options, fault):
    with pytest.raises(UsageError, match=fault):
        scored(detector, [candidate(1)], **options)
