"""Outputs of the published code of HPSv3 and EditReward on the tiny models in tiny_reward.py, kept in reward.json.

    python tests/score/reward_numbers.py hpsv3        needs hpsv3 1.0.0 and transformers 4.45.2
    python tests/score/reward_numbers.py editreward   needs a clone of EditReward (commit edb027e) in PYTHONPATH, and
                                                      transformers 4.57.0

The published model class, processor, image resizing and pooling run; packages that only training needs are replaced by
empty modules. The question is that of tiny_reward.py, since the published wording plays no part in the comparison.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace as Names
from typing import Any

import numpy as np
import tiny_reward
from PIL import Image

KEPT = Path(__file__).with_name("reward.json")
PROMPTS = ["a cat", "a {red} hat, on a chair that is much too small for it"]
TRAINING = "datasets fire matplotlib matplotlib.patches matplotlib.pyplot openai peft tensorboard torch.utils.tensorboard trl wandb"


class Empty(types.ModuleType):
    """A module in which every name is a class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = importlib.machinery.ModuleSpec(name, None, is_package=True), []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def pictures() -> list[Image.Image]:
    """Three images of different sizes, smooth and noisy."""
    found = []
    for number, (width, height) in enumerate(((80, 60), (50, 90), (700, 300))):
        y, x, c = np.mgrid[0:height, 0:width, 0:3]
        found.append(Image.fromarray(((x * (3 + number) + y * 2 + c * 70 + (x * y) % 37) % 256).astype("uint8")))
    return found


def published(name: str, train: str, inference: str, cls: str, base: Path, **model: Any) -> Any:
    """Return the published inferencer with the checkpoint in `base`, in float32 on the CPU."""
    import safetensors.torch

    code = importlib.import_module(inference)
    config = Names(model_name_or_path=str(base), torch_dtype="float32", use_special_tokens=True, reward_token="special")
    vars(config).update(
        {"output_dim": 2, "rm_head_kwargs": None, "model_revision": None, "pooling_strategy": "mean"} | model
    )
    module = importlib.import_module(train)
    module.get_quantization_config = module.get_kbit_device_map = lambda *_: None
    training = Names(disable_flash_attn2=True, bf16=False, fp16=False)
    network, processor, _ = module.create_model_and_processor(config, Names(lora_enable=False), training)
    network.load_state_dict(safetensors.torch.load_file(base / "checkpoint.safetensors"), strict=True)
    judge = object.__new__(getattr(code, cls))
    vars(judge).update({"model": network.eval(), "processor": processor, "device": "cpu", "use_special_tokens": True})
    vars(judge).update({"reward_dim": "overall_detail", "rm_head_type": config.rm_head_type})
    return judge


def hpsv3(folder: Path) -> list[Any]:
    import hpsv3.inference as code

    base = tiny_reward.write(folder, "qwen2_vl", whole=True)
    judge = published("hpsv3", "hpsv3.train", "hpsv3.inference", "HPSv3RewardInferencer", base, rm_head_type="ranknet")
    code.INSTRUCTION, code.prompt_with_special_token = tiny_reward.QUESTION, ""
    return judge.reward(pictures()[:2], PROMPTS).tolist()


def editreward(folder: Path) -> list[Any]:
    import EditReward.inference_edit as code

    base = tiny_reward.write(folder, "qwen2_5_vl", whole=True)
    head = "ranknet_multi_head"
    judge = published(
        "editreward", "EditReward.train_qwen2_5_edit", code.__name__, "EditRewardInferencer", base, rm_head_type=head
    )
    code.INSTRUCTION_EDIT_FOLLOWING, code.INSTRUCTION_EDIT_QUALITY = (
        tiny_reward.QUESTION,
        "Quality. " + tiny_reward.QUESTION,
    )
    code.prompt_with_special_token = ""
    first, second, source = pictures()
    return judge.reward(PROMPTS, [source, source], [first, second]).tolist()


if __name__ == "__main__":
    sys.modules |= {name: Empty(name) for name in TRAINING.split()}
    import torch

    (which,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        found = {"hpsv3": hpsv3, "editreward": editreward}[which](Path(folder))
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.write_text(json.dumps(kept | {which: found}, indent=1) + "\n")
    print(which, found)
