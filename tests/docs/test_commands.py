"""The commands of README.md and docs/ work as written, in order; only models and sizes are replaced."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import shutil
from pathlib import Path
from types import CodeType

import answers
import numpy as np
import pytest
from PIL import Image

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
    "--model Qwen/Qwen3-VL-4B-Instruct --most 4": "--model tiny --most 1 --limit 4",
    "prefkit push runs/x": "prefkit push runs/x --dry-run",
}
#: pages whose commands all run, in this order, in the folder that README's commands have filled
PAGES = ["docs/data.md", "docs/people.md", "docs/push.md", "docs/scorers.md", "docs/evaluation.md"]
#: start of a command -> why it is only parsed
PARSED = {
    "prefkit run demo": "takes minutes; tests/tiny/test_demo.py runs it",
    "accelerate launch": "needs GPUs; tests/train/test_launch.py starts two processes on the CPU",
    "prefkit score --serve": "does not end; tests/score/test_serve.py runs it",
    "prefkit serve": "does not end; tests/human/test_live.py runs it",
    "prefkit generate runs/x --shard": "one of eight workers; tests/docs/test_workers.py runs such workers",
    "prefkit generate runs/x --engine": "needs Ray; tests/engines/test_ray.py",
    "prefkit run -r recipe.yaml --engine": "needs Ray; tests/engines/test_ray.py",
    "prefkit sync": "needs an object store; tests/hub/test_sync.py syncs with folders",
    "prefkit push fitted/": "needs a fitted scorer; tests/hub/test_push_fit.py",
    "prefkit score runs/x --use vbpr": "needs a scorer on the Hub; tests/hub/test_push_fit.py",
    "prefkit fit vbpr": "takes minutes; run by the slow test below",
    "prefkit fit outfit_compat": "takes minutes; run by the slow test below",
    "prefkit import Science-T2I-Fullset/": "needs 90 GB; tests/hub/test_science_t2i.py imports a small copy",
    "prefkit fit clip_preference": "needs weights from the Hub; tests/fit/test_clip_preference.py",
    "python pipelines/": "studies of minutes to hours; each has a fast test of its own",
    "prefkit run -r pipelines/": "takes minutes; tests/score/test_compose.py runs its parts",
    "prefkit train -r pipelines/": "studies of minutes to hours",
    "prefkit eval -r pipelines/": "studies of minutes to hours",
    "python -m prefkit.fit.wardrobe": "run by the slow test below",
    "pip install": "changes the environment; .ci/run installs",
    "pytest": "the tests themselves",
}
STARTS = ("prefkit ", "accelerate ", "python ", "pip ", "pytest ")
PROMPTS = "\n".join(
    f"a {colour} {thing}" for colour in ("red", "blue", "green", "white") for thing in ("hat", "dress", "boot")
)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the (language, text) of the code blocks of a page."""
    return re.findall(r"```(\w*)\n(.*?)```", text, re.S)


def commands(text: str) -> list[str]:
    """Return the command lines of the code blocks without a language; continued lines are joined."""
    lines = [line for language, code in blocks(text) if not language for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(STARTS)]


def only_parsed(line: str) -> bool:
    return line.startswith(tuple(PARSED))


def fast(text: str, sd: Path) -> str:
    for shown, small in (SIZES | {MODEL: str(sd)}).items():
        text = text.replace(shown, small)
    return text


def read(name: str, sd: Path) -> list[list[str]]:
    """Write the recipe and the scorer of a page to the working directory; return the arguments of its prefkit commands."""
    text = fast((ROOT / name).read_text(), sd)
    Path("prompts.txt").write_text(PROMPTS)
    for language, code in blocks(text):
        if "def muted" in code:
            Path("taste.py").write_text(code)
        elif language == "yaml" and code.count("\n") > 9:
            Path("recipe.yaml").write_text(code)
    return [shlex.split(line, comments=True)[1:] for line in commands(text) if not only_parsed(line)]


def perform(cli, lines: list[list[str]]) -> None:
    for words in lines:
        code, out, err = cli(*words)
        assert code == 0, f"prefkit {shlex.join(words)}\n{out}\n{err}"


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_the_commands_of_a_first_page_work_in_order(cli, sd, name, tmp_path_factory, monkeypatch):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.getbasetemp() / f"page {name.replace('/', '-')}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lines = read(name, sd)
    assert len(lines) >= 3
    perform(cli, lines)
    run = re.search(r"^run: (\S+)", Path("recipe.yaml").read_text(), re.M)[1]
    assert Path(run, "report.html").is_file()
    (snippet,) = [line for line in (ROOT / name).read_text().splitlines() if "load_lora_weights" in line]
    pipe = StableDiffusionPipeline.from_pretrained(sd)
    exec(snippet)  # the page's own line, on `pipe`
    assert pipe.unet.peft_config


def test_the_commands_of_the_other_pages_work_in_order(cli, sd, tmp_path_factory, monkeypatch):
    """Runs after the README's test, in its folder, as a user would."""
    folder = tmp_path_factory.getbasetemp() / "page README.md"
    if not (folder / "runs" / "x").exists():
        pytest.skip("the README's test did not run")
    monkeypatch.chdir(folder)
    sources()
    for name in PAGES:
        if name == "docs/data.md":  # the page's two exports are alternatives
            perform(cli, read(name, sd)[:-1])
            shutil.rmtree("out")
            perform(cli, read(name, sd)[-1:])
        elif name == "docs/people.md":
            vote, collect, report = read(name, sd)
            perform(cli, [vote])
            answers.write(Path("runs/x"), Path("answers"), people=2)
            perform(cli, [collect, report])
        elif name == "docs/evaluation.md":  # of runs that share requests
            shutil.rmtree("runs/y")
            shutil.copytree("runs/x", "runs/y")
            perform(cli, read(name, sd))
        else:
            perform(cli, read(name, sd))
    assert Path("runs/x/agreement.json").exists() and len(list(Path("runs/x/push").iterdir())) == 2
    assert "People chose" in Path("runs/x/report.html").read_text()


def sources() -> None:
    """Write what docs/data.md imports."""
    module("tests/hub/import_layouts.py").pickapic(Path("pickapic_v2"))
    rng = np.random.default_rng(0)
    for name in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(f"{name}.png")
    tables = {
        "votes.csv": [["text", "left", "right", "best"], ["a hat", "0.png", "1.png", "l"]],
        "prefs.csv": [["text", "good", "bad"], ["a boot", "2.png", "3.png"]],
    }
    for name, rows in tables.items():
        with open(name, "w", newline="") as file:
            csv.writer(file).writerows(rows)


def module(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


ALL = [path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]]


@pytest.mark.parametrize("name", ALL)
def test_every_command_of_a_page_runs_in_a_test_or_can_be_parsed(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands((ROOT / name).read_text()):
        assert only_parsed(line) or name in (*PAGES, "README.md", "docs/quickstart.md"), f"{name}: nothing runs {line}"
        parse(shlex.split(line, comments=True))


def test_python_in_a_page_is_python():
    found = [
        (name, code) for name in ALL for language, code in blocks((ROOT / name).read_text()) if language == "python"
    ]
    assert found and all(isinstance(compile(code, name, "exec"), CodeType) for name, code in found)


def parse(words: list[str]) -> None:
    """Check that the program, its files and its flags exist."""
    from prefkit.cli.main import parse as parsed
    from prefkit.config.resolve import resolve

    if words[0] == "accelerate":
        words = words[words.index("-m") + 1 :]
    if words[0] == "prefkit":
        known, flags = parsed(words[1], words[2:])
        if known.recipe and Path(known.recipe).exists():
            resolve(None, known.recipe, words[1], flags)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, words
    elif words[0] == "python":
        text = Path(words[1]).read_text()
        assert not [word for word in words if word.startswith("--") and f'"{word}"' not in text], words
    elif "-r" in words:
        assert Path(words[words.index("-r") + 1]).exists(), words


@pytest.mark.slow
def test_the_fits_of_a_page_work(cli, tmp_path, monkeypatch):
    from prefkit.fit import wardrobe

    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands((ROOT / "docs/results/fit.md").read_text()) if line.startswith("prefkit fit")]
    assert len(lines) == 2
    wardrobe.main(["w"])
    monkeypatch.chdir(tmp_path / "w")
    perform(cli, [shlex.split(line, comments=True)[1:] for line in lines])
