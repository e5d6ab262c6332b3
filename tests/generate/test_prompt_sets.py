"""Published sets of prompts, and the recipes with published settings that use them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from prefkit.config import Requests
from prefkit.config import reader as recipe
from prefkit.errors import UsageError
from prefkit.generate.prompt_sets import PROMPT_SETS
from prefkit.generate.requests import read_requests

PUBLISHED = sorted((Path(__file__).parents[2] / "pipelines/published").glob("*.yaml"))


def test_a_prompt_set_has_its_own_prompt_column(monkeypatch):
    asked = []

    def load(repo, split):
        asked.append((repo, split))
        return [{"Prompt": "a cat", "Category": "Animals"}, {"Prompt": "a dog", "Category": "Animals"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_requests(Requests(source="partiprompts"))
    assert [(r.prompt, r.extra) for r in found] == [(p, {"Category": "Animals"}) for p in ("a cat", "a dog")]
    assert asked == [("nateraw/parti-prompts", "train")]


def test_a_prompt_set_of_json_files(monkeypatch, tmp_path):
    def download(repo, file, repo_type):
        assert (repo, repo_type) == ("zhwang/HPDv2", "dataset")
        path = tmp_path / file.replace("/", "-")
        path.write_text(json.dumps([f"{file} 1", f"{file} 2"]))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = read_requests(Requests(source="hpdv2"))
    assert len(found) == 8 and found[2].extra == {"style": "concept-art"}


def test_a_set_that_cannot_be_loaded_is_named_with_its_repository(monkeypatch):
    def fails(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(UsageError, match=r"drawbench does not exist as a file.*\(sayakpaul/drawbench\): no network"):
        read_requests(Requests(source="drawbench"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_recipes_are_read_and_say_what_a_step_has(path):
    found, text = recipe.read(path), path.read_text()
    train = found.train["dpo"]
    batch, accumulation, total = map(
        lambda n: int(n.replace(",", "")), re.search(r"8 processes x (\d+) x (\d+) = ([\d,]+) pairs", text).groups()
    )
    assert (train.batch_size, train.accumulation) == (batch, accumulation) and 8 * batch * accumulation == total
    assert {chosen.source for chosen in found.eval["table"].sets.values()} == set(PROMPT_SETS)
    assert f"-r pipelines/published/{path.name}" in text
