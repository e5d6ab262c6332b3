"""On the stand-in for a GPU (tests/standin.py): a whole run equals that of the CPU, bit for bit; what a GPU refuses, it refuses."""

from __future__ import annotations

import copy
import json

import pandas as pd
import pytest
import safetensors.torch
import standin
import torch

from prefkit.api import Run
from prefkit.store.files import read_json

pytestmark = pytest.mark.standin


@pytest.fixture
def on(recipe, tmp_path):
    """on(device) -> the tiny recipe, with a CLIP scorer, every stage on this device."""

    def make(device):
        text = recipe.read_text().replace(f"run: {tmp_path}/run", f"run: {tmp_path}/{device}")
        text = text.replace("batch_size: 4}", f"batch_size: 4, device: {device}}}")
        text = text.replace("score:\n", f"score:\n  align: {{use: clip, model: tiny, device: {device}}}\n")
        text = text.replace("weights: {taste: 1.0}", "weights: {taste: 1.0, align: 1.0}")
        text = text.replace("validation: 2,", f"validation: 2, precision: 'no', device: {device},")
        text = text.replace("scorers: [size, taste],", f"scorers: [align, taste], device: {device},")
        (tmp_path / f"{device}.yaml").write_text(text)
        return tmp_path / f"{device}.yaml"

    return make


def test_a_run_on_the_card_is_that_of_the_cpu(on, cli):
    runs = {}
    for device in ("cpu", "cuda"):
        standin.CALLS.clear()
        code, _, err = cli("run", "-r", on(device))
        assert code == 0, err
        runs[device] = Run(recipe=on(device))
    assert "empty_cache" in standin.CALLS  # between parts of the model, which take turns
    cpu, card = runs["cpu"], runs["cuda"]
    for table in ("candidates", "scores"):
        a, b = (getattr(run, table)().sort_values("id", ignore_index=True) for run in (cpu, card))
        pd.testing.assert_frame_equal(a, b, rtol=1e-5)  # CLIP's own products come within 2e-7
    pd.testing.assert_frame_equal(cpu.pairs("main"), card.pairs("main"), rtol=1e-5)
    for line, other in zip(*((run.folder / "train/dpo/metrics.jsonl").open() for run in (cpu, card)), strict=True):
        mine, theirs = json.loads(line), json.loads(other)
        for row in (mine, theirs):
            del row["crc"]
            row.pop("seconds", None)
        assert mine == theirs
    for place in ("final/pytorch_lora_weights.safetensors", "checkpoints/step-00000004/weights.safetensors"):
        a, b = (safetensors.torch.load_file(run.folder / "train/dpo" / place) for run in (cpu, card))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    results = [read_json(run.folder / "eval/held_out/result.json") for run in (cpu, card)]
    taste = [result["sets"]["held_out"]["dpo"]["taste"] for result in results]
    assert taste[0] == taste[1]


# -- what the stand-in refuses ----------------------------------------------------------------------------------------
def test_it_refuses_what_a_gpu_refuses():
    card, cpu = torch.ones(3, device="cuda"), torch.ones(3)
    assert card.device == torch.device("cuda:0") and (card * 2.0 + torch.tensor(1.0)).tolist() == [3.0] * 3
    refused = {
        "same device": [
            lambda: card + cpu,
            lambda: torch.stack([card, cpu]),
            lambda: torch.nn.functional.linear(card, cpu[None]),
        ],
        "numpy": [card.numpy],
        "cannot pin": [card.pin_memory],
        "generator": [lambda: torch.randn(3, device="cuda", generator=torch.Generator("cpu"))],
    }
    for message, calls in refused.items():
        for call in calls:
            with pytest.raises((RuntimeError, TypeError), match=message):
                call()
    layer = torch.nn.Linear(3, 2).to("cuda")
    layer(card).sum().backward()
    assert layer.weight.grad.device.type == "cuda" and copy.deepcopy(layer).weight.device.type == "cuda"
    assert card[torch.tensor([0, 1])].shape == (2,)  # indices may be on the CPU
    with standin.run_out(lambda name, shape: name == "mul"), pytest.raises(torch.OutOfMemoryError):
        card * 2.0


def test_tokens_left_on_the_cpu_are_found(on, cli, monkeypatch):
    from prefkit.score.embed import networks

    path = on("cuda")
    assert cli("generate", "-r", path, "--limit", "1")[0] == 0
    assert cli("score", "-r", path, "--name", "align")[0] == 0

    def texts(self, given):
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(list(given))).float()

    monkeypatch.setattr(networks.OpenClip, "texts", texts)
    import shutil

    shutil.rmtree(Run(recipe=path).folder / "scores")
    code, _, err = cli("score", "-r", path, "--name", "align")
    assert code == 1 and "same device" in err
