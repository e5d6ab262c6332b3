"""Shared parts of the programs: the command line, the published questions, and scoring item by item."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from reward import TOKEN, RewardModel, Unusable

Item = dict[str, Any]


def arguments(doc: str | None, checkpoint: str | None, base: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--checkpoint", default=checkpoint, required=not checkpoint, help="file, folder or Hub id")
    found.add_argument("--base", default=base, required=not base, help="folder or Hub id of the base model")
    found.add_argument("--texts", type=Path, default=Path(sys.prefix) / "texts.json", help="file that build.py wrote")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16, and float32 on the CPU")
    found.add_argument("--batch", type=at_least_one, default=4, help="number of images per forward pass")
    return found


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def load(args: argparse.Namespace, files: Sequence[str], heads: Sequence[str]) -> RewardModel:
    """Load the model. files: names of the checkpoint in a folder or Hub repository. Raises Unusable."""
    dtype = getattr(torch, args.dtype or ("float32" if args.device == "cpu" else "bfloat16"))
    return RewardModel(args.base, checkpoint_file(args.checkpoint, files), heads, args.device, dtype)


def checkpoint_file(given: str, names: Sequence[str]) -> Path:
    """Return the path of a checkpoint: `given` itself, or the first of `names` in that folder or Hub repository."""
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise Unusable(f"--checkpoint {path} contains none of {', '.join(names)}.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(given, names[0]))
    except Exception as error:  # the client's own types, and those of the network
        reason = " ".join(str(error).split())[:300]
        raise Unusable(
            f"--checkpoint {given} does not exist, and {names[0]} of that Hub id was not found: {reason}"
        ) from error


def read_texts(path: Path, names: Sequence[str]) -> list[str]:
    """Return the published questions that `build.py` stored. Raises Unusable if one is missing."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
        found = [str(texts[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"--texts {path} does not contain the questions ({error!r}). Run build.py.") from error
    for text in found:
        if text.count("{text_prompt}") != 1 or text.count(TOKEN) != 1:
            raise Unusable(f"--texts {path}: each question must contain {{text_prompt}} and {TOKEN} once.")
    return found


def hello(
    model: RewardModel, name: str, checkpoint: str, texts: Sequence[str], requires: Sequence[str], formula: str
) -> Item:
    """Return the program's description. Its scores depend on the checkpoint, the questions, the formula and the dtype."""
    path = Path(checkpoint).expanduser()
    question = hashlib.sha256("".join(texts).encode()).hexdigest()[:12]
    spec = {
        "name": name,
        "version": "1",
        "weights": path.resolve().name if path.exists() else checkpoint,
        "revision": model.revision,
        "preprocessing": "RGB, resized to about 256 x 28 x 28 pixels; the base model's own processor",
        "formula": f"{formula}; question {question}",
        "dtype": str(model.dtype).removeprefix("torch."),
        "licence": "that of the weights",
    }
    return {"spec": spec, "requires": ["image", "prompt", *requires], "scope": "absolute"}


def scores(
    items: Sequence[Item], batch: int, ask: Callable[[Item], Any], values: Callable[[list[Any]], list[Item]]
) -> list[Item]:
    """Return one score per item. ask: makes the question of an item, or raises ValueError; values: scores questions."""
    asked: dict[int, Any] = {}
    found: dict[int, Item] = {}
    for number, item in enumerate(items):
        try:
            asked[number] = ask(item)
        except ValueError as error:
            found[number] = {"value": None, "error": str(error)}
    numbers = list(asked)
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        found |= dict(zip(some, values([asked[number] for number in some]), strict=True))
    return [found[number] for number in range(len(items))]
