from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent


def _module(name: str):
    spec = importlib.util.spec_from_file_location(f"hub_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"hub_{name}"] = module
    spec.loader.exec_module(module)
    return module


hub_server, example = _module("hub_server"), _module("example")
TOKEN = "hf_goodtoken"


@pytest.fixture
def store(tmp_path):
    return example.build(tmp_path / "run")


@pytest.fixture(scope="session")
def server():
    with hub_server.Hub() as running:
        yield running


@pytest.fixture
def hub(server):
    server.reset()
    return server


@pytest.fixture(scope="session")
def outside(server, tmp_path_factory):
    """Python processes that use the local Hub, logged in by a token file. outside.run(*argv) runs the command line and
    outside.code(text, *argv) a script, in one process that stays; outside.start(*argv, **environment) is a fresh one."""
    home = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker = subprocess.Popen([sys.executable, str(HERE / "worker.py")], env=environment, **pipes)

    def ask(job, token):
        (home / "token").write_text(token)
        print(json.dumps(job), file=worker.stdin, flush=True)
        return SimpleNamespace(**json.loads(worker.stdout.readline()))

    def start(*arguments, **more):
        (home / "token").write_text(TOKEN)
        command = [sys.executable, "-m", "prefkit", *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment | more, **streams)

    yield SimpleNamespace(
        run=lambda *argv, token=TOKEN: ask({"argv": list(map(str, argv))}, token),
        code=lambda text, *argv, token=TOKEN: ask({"code": text, "argv": list(map(str, argv))}, token),
        start=start,
    )
    worker.stdin.close()
    worker.kill()
    worker.wait()


@pytest.fixture
def pushed(store, outside):
    """pushed("--public", ...): push the example run."""

    def call(*arguments, to="you/wardrobe", token=TOKEN):
        return outside.run("push", store.folder, "--to", to, "--json", *arguments, token=token)

    return call
