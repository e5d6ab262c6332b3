"""Published sets of prompts, as `requests.source` or a set of `eval`: partiprompts, drawbench, hpdv2, pickapic_test.

They are loaded from the Hub. Ids, files and column names were taken from public code; no set was downloaded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PromptSet:
    """A data set on the Hub: a split of a table with the column `prompt`, or JSON files that are lists of prompts."""

    repo: str
    about: str
    split: str = "train"
    prompt: str = "prompt"
    files: tuple[str, ...] = ()


PROMPT_SETS = {
    "partiprompts": PromptSet("nateraw/parti-prompts", "PartiPrompts (arXiv 2206.10789), 1,632", prompt="Prompt"),
    "drawbench": PromptSet("sayakpaul/drawbench", "DrawBench (arXiv 2205.11487), 200", prompt="Prompts"),
    "pickapic_test": PromptSet(
        "yuvalkirstain/pickapic_v2_no_images", "Pick-a-Pic v2's test prompts, 500", "test_unique", "caption"
    ),
    "hpdv2": PromptSet(
        "zhwang/HPDv2",
        "HPSv2's benchmark (arXiv 2306.09341), 3,200; the column `style` names the file",
        files=tuple(f"benchmark/{style}.json" for style in ("anime", "concept-art", "paintings", "photo")),
    ),
}


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a prompt set, with its prompt under `prompt`. Raises the errors of the Hub's libraries."""
    known = PROMPT_SETS[name]
    if known.files:
        yield from _files(known)
        return
    import datasets

    for row in datasets.load_dataset(known.repo, split=known.split):
        yield {"prompt": row[known.prompt]} | {key: value for key, value in row.items() if key != known.prompt}


def _files(known: PromptSet) -> Iterator[dict[str, Any]]:
    from huggingface_hub import hf_hub_download

    for file in known.files:
        with open(hf_hub_download(known.repo, file, repo_type="dataset"), encoding="utf-8") as opened:
            for prompt in json.load(opened):
                yield {"prompt": prompt, "style": file.removeprefix("benchmark/").removesuffix(".json")}
