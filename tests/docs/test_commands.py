"""The commands of README.md and docs/quickstart.md work as written, in order; only models and sizes are replaced."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
#: text of a page -> text that makes it fast
SIZES = {
    "n: 8, steps: 20, guidance: 7.5": "n: 4, steps: 2, guidance: 3.0, height: 64, width: 64",
    "clip, model: ViT-B-32, pretrained: laion2b_s34b_b79k": "clip, model: tiny",
    "steps: 300": "steps: 3",
    "seeds: 4": "seeds: 2",
    "--n 8": "--n 4 --steps 2 --height 64 --width 64",
    "--steps 500": "--steps 3",
}
PROMPTS = "\n".join(
    f"a {colour} {thing}" for colour in ("red", "blue", "green", "white") for thing in ("hat", "dress", "boot")
)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the (language, text) of the code blocks of a page."""
    return re.findall(r"```(\w*)\n(.*?)```", text, re.S)


@pytest.fixture
def page(sd, tmp_path, monkeypatch):
    """A folder with the files of a page, and the page's prefkit commands: page("README.md") -> list of arguments."""
    monkeypatch.chdir(tmp_path)

    def read(name: str) -> list[list[str]]:
        text = (ROOT / name).read_text().replace(MODEL, str(sd))
        for shown, fast in SIZES.items():
            text = text.replace(shown, fast)
        Path("prompts.txt").write_text(PROMPTS)
        for language, code in blocks(text):
            if "def muted" in code:
                Path("taste.py").write_text(code)
            elif language == "yaml" and code.count("\n") > 9:
                Path("recipe.yaml").write_text(code)
        lines = [line for language, code in blocks(text) if not language for line in code.splitlines()]
        return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("prefkit ")]

    return read


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_the_commands_of_a_page_work_in_order(page, cli, sd, name):
    from diffusers import StableDiffusionPipeline

    commands = [words for words in page(name) if words != ["run", "demo"]]  # tests/tiny/test_demo.py runs the demo
    assert len(commands) >= 3
    for words in commands:
        code, out, err = cli(*words)
        assert code == 0, f"prefkit {shlex.join(words)}\n{out}\n{err}"
    run = re.search(r"^run: (\S+)", Path("recipe.yaml").read_text(), re.M)[1]
    assert Path(run, "report.html").is_file()
    (snippet,) = [line for line in (ROOT / name).read_text().splitlines() if "load_lora_weights" in line]
    pipe = StableDiffusionPipeline.from_pretrained(sd)
    exec(snippet)  # the page's own line, on `pipe`
    assert pipe.unet.peft_config
