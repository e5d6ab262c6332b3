"""Small real runs that many tests start from."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: cuda: all tests run on the stand-in for a GPU (tests/standin.py); standin: it is there for those that ask for `cuda`
DEVICE = os.environ.get("PREFKIT_TEST_DEVICE", "")
FORKS = pytest.StashKey[Any]()
sys.path.insert(0, str(Path(__file__).parent))
if DEVICE:
    import standin

    standin.install()
    if DEVICE == "cuda":
        from prefkit import distributed

        distributed.device_of = lambda wanted: "cuda:0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The stand-in patches torch for good, so its tests run in a process of their own."""
    for item in items:
        if item.get_closest_marker("standin") and not DEVICE and item.path.name == "test_on_standin.py":
            item.add_marker(pytest.mark.skip(reason="run by tests/core/test_standin.py, in a process of its own"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """The template of tests/forks.py is forked before the first test has computed anything."""
    gc.collect()
    gc.freeze()  # the libraries are never freed: each gc.collect() of the tests would walk through them
    if any("forks" in getattr(item, "fixturenames", ()) for item in getattr(session, "items", ())):
        import forks

        session.config.stash[FORKS] = forks.Forks()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (made := session.config.stash.get(FORKS, None)) is not None:
        made.close()


@pytest.fixture(scope="session")
def forks(request: pytest.FixtureRequest) -> Any:
    """forks.run("generate", "-r", path) and forks.start(...): command lines in processes that start at once."""
    return request.config.stash[FORKS]


PROMPTS = [f"a {colour} {item}" for colour in ("red", "blue", "green") for item in ("dress", "hat", "boot", "coat")]
TASTE = '''
import numpy as np

def muted(images, prompts):
    """Minus the mean saturation."""
    return [-float(np.asarray(image.convert("HSV"))[..., 1].mean()) / 255 for image in images]
'''
RECIPE = """
run: RUN
model: {base: SD}
requests: {source: PROMPTS, test_share: 0.25}
generate:
  own: {n: 4, steps: 2, guidance: 3.0, height: 64, width: 64, batch_size: 4}
score:
  size: {use: jpeg}
  taste: {use: "TASTE:muted"}
pair:
  main: {use: topk_bottomk, k: 2, weights: {taste: 1.0}}
train:
  dpo: {pairs: main, objective: {use: dpo, beta: 2000}, lora: {rank: 4}, steps: 4, learning_rate: 1e-3, validation: 2, batch_size: 2}
eval:
  held_out: {models: [dpo], scorers: [size, taste], seeds: 2, bootstrap: 200}
"""


class Pipelines(dict[str, Path]):
    """Kind -> folder of the tiny pipeline, made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, kind: str) -> Path:
        from prefkit.testing import tiny_pipeline

        self[kind] = tiny_pipeline(kind, self.root / kind)
        return self[kind]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    """folders[kind]: a tiny pipeline that all tests read and none changes."""
    return Pipelines(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="session")
def sd(folders: Pipelines) -> Path:
    """A tiny Stable Diffusion folder."""
    return folders["sd"]


@pytest.fixture
def recipe(tmp_path: Path, sd: Path) -> Path:
    """The recipe of a whole tiny run under tmp_path/run."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "taste.py").write_text(TASTE)
    text = RECIPE.replace("RUN", str(tmp_path / "run")).replace("SD", str(sd))
    text = text.replace("PROMPTS", str(tmp_path / "prompts.txt")).replace("TASTE", str(tmp_path / "taste.py"))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def drawn(recipe: Path) -> Path:
    """The recipe with a generator of pure Python, so that images cost nothing."""
    import drawing

    shutil.copy(drawing.__file__, recipe.parent / "draw.py")
    text = recipe.read_text().replace("own: {n: 4, steps: 2", f"own: {{use: '{recipe.parent}/draw.py:draw', n: 4")
    recipe.write_text(text)
    return recipe


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """A recipe of generate, score and pair that needs no model: 10 prompts to train on, 4 drawings of each."""
    import drawing

    shutil.copy(drawing.__file__, tmp_path / "draw.py")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "taste.py").write_text(TASTE)
    text = RECIPE.partition("train:")[0].replace("model: {base: SD}\n", "").replace("RUN", str(tmp_path / "run"))
    text = text.replace("own: {n: 4, steps: 2", f"own: {{use: '{tmp_path}/draw.py:draw', n: 4")
    text = text.replace("PROMPTS", str(tmp_path / "prompts.txt")).replace("TASTE", str(tmp_path / "taste.py"))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def cli() -> Callable[..., Any]:
    """cli("generate", "-r", path) in this process -> (exit code, stdout, stderr)."""
    import contextlib
    import io

    from prefkit import output
    from prefkit.cli.main import run

    def call(*arguments: Any) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(a) for a in arguments])
        output.quiet = False  # -q holds for one command
        return code, out.getvalue(), err.getvalue()

    return call


@pytest.fixture
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """torchrun("run", "-r", path): the command line in two processes, by torch's launcher, on the CPU."""

    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
        command = [sys.executable, *launch, "--master_port", port, "-m", "prefkit", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=300)  # processes that wait for each other for ever fail here
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # all of them: one that is left would hold the pipe
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return call
