"""Engines without Ray: units in any order, done twice or lost; the pool with a fake Ray; what is refused."""

from __future__ import annotations

import json
import pickle
import socket
import sys
import types
from contextlib import nullcontext

import pandas as pd
import pytest

from prefkit import engines
from prefkit.api import Run
from prefkit.cli import engine
from prefkit.errors import ProcessError, UsageError


class Scattered:
    """Two workers that get one unit per call, the last unit first and one twice, all as copies; `lost` are lost."""

    remote, width = True, 2

    def __init__(self, lost=()):
        self.lost = lost

    def checking(self):
        return nullcontext()

    def close(self):
        pass

    def spread(self, work, units, keep):
        workers = [work.worker(*pickle.loads(pickle.dumps(work.arguments))) for _ in range(2)]
        for number, unit in reversed(list(enumerate(units))):
            if number in self.lost:
                keep([unit], engines.Lost("it ended three workers"))
                continue
            result = workers[number % 2].do(pickle.loads(pickle.dumps([unit])))
            if number == 1:
                workers[0].do([unit])  # by a worker whose answer was lost
            keep([unit], pickle.loads(pickle.dumps(result)))


@pytest.fixture
def scattered(monkeypatch):
    """scattered(lost): --engine ray with this engine in Ray's place."""

    def install(lost=()):
        monkeypatch.setattr(engine, "find_spec", lambda name: True)
        fake = types.ModuleType("prefkit.engines.ray")
        fake.Ray = lambda workers: Scattered(lost)
        monkeypatch.setitem(sys.modules, "prefkit.engines.ray", fake)
        monkeypatch.setattr(engines, "ray", fake, raising=False)

    yield install
    engines.use(None)


@pytest.fixture
def both(light, tmp_path):
    """Two recipes that differ in the run folder: one and many, with a scorer of scope within_request."""
    (tmp_path / "wide.py").write_text(
        "import prefkit\n\n@prefkit.scorer(scope='within_request')\ndef wide(images, prompts):\n"
        "    sums = [sum(image.resize((1, 1)).getpixel((0, 0))) for image in images]\n"
        "    return [value - sum(sums) / len(sums) for value in sums]\n"
    )
    text = light.read_text().replace("score:\n", f"score:\n  wide: {{use: '{tmp_path}/wide.py:wide'}}\n")
    for name in ("one", "many"):
        (tmp_path / f"{name}.yaml").write_text(text.replace(f"run: {tmp_path}/run", f"run: {tmp_path}/{name}"))
    return tmp_path / "one.yaml", tmp_path / "many.yaml"


def test_workers_make_the_tables_of_one_process(both, cli, scattered):
    scattered()
    one, many = both
    for verb, key in (("generate", "made"), ("score", "scored")):
        assert cli(verb, "-r", one)[0] == 0
        code, out, err = cli(verb, "-r", many, "--engine", "ray", "--json")
        assert code == 0, err
        assert {row[key] for row in json.loads(out).values()} == {40}
    runs = Run(one.parent / "one"), Run(one.parent / "many")
    for table in ("candidates", "scores"):
        frames = [getattr(run, table)().sort_values("id", ignore_index=True) for run in runs]
        assert len(frames[0]) == 40
        pd.testing.assert_frame_equal(*frames)


def test_lost_units_become_rows_with_the_reason_and_are_done_by_the_next_command(both, cli, scattered):
    _, many = both
    scattered(lost=[2])
    for verb, tables in (("generate", ["own"]), ("score", ["size", "taste", "wide"])):
        code, out, err = cli(verb, "-r", many, "--engine", "ray", "--json")
        assert code in (0, 3), err
        assert all(row["failed"] == 4 or verb == "score" for row in json.loads(out).values())
        store = Run(many.parent / "many").store
        for name in tables:
            frame = (store.candidates if verb == "generate" else store.scores)(name).frame()
            assert set(frame.error.dropna()) <= {"it ended three workers"}
            assert frame.error.notna().sum() == json.loads(out)[name]["failed"]
        assert json.loads(out)[tables[-1]]["failed"] == 4
        engines.use(None)
        code, out, _ = cli(verb, "-r", many, "--json")
        assert code == 0 and json.loads(out)[tables[-1]]["failed"] == 0
        assert len(store.candidates("own").frame().query("error.isna()")) == 40


def test_an_error_of_one_scorer_does_not_stop_the_others(both, cli, scattered):
    _, many = both
    (many.parent / "taste.py").write_text("def muted(images, prompts):\n    return 'no list'\n")
    scattered()
    assert cli("generate", "-r", many, "--engine", "ray")[0] == 0
    code, _, err = cli("score", "-r", many, "--engine", "ray")
    assert code == 1 and "taste.py:muted returned a str" in err
    scores = Run(many.parent / "many").scores()
    assert scores["size"].notna().sum() == scores["wide"].notna().sum() == 40


@pytest.mark.parametrize(
    ("words", "variables", "text"),
    [
        (["--workers", "2"], {}, "add --engine ray"),
        (["--engine", "ray", "--shard", "0/2"], {}, "cannot be combined with --shard"),
        (["--engine", "ray"], {"RANK": "0", "WORLD_SIZE": "2"}, "belongs to a launch of 2 processes"),
        (["--engine", "ray"], {}, 'pip install "prefkit[ray]"'),
        (["--engine", "spark"], {}, "invalid choice: 'spark'"),
        (["--engine", "ray", "--workers", "0"], {}, "not a whole number above 0"),
    ],
)
def test_what_is_refused(light, cli, monkeypatch, words, variables, text):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    monkeypatch.setattr("prefkit.distributed._connected", None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = cli("generate", "-r", light, *words)
    monkeypatch.undo()
    assert code == 2 and text in err, err
    assert not (light.parent / "run").exists()


def test_a_cluster_that_does_not_answer_is_named():
    from prefkit.engines.ray import check_address

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ProcessError, match=f"RAY_ADDRESS={address}.*Correct the address"):
        check_address(address)
    for other in ("", "auto", "ray://127.0.0.1:1"):  # left to Ray
        check_address(other)


def test_a_check_for_workers_does_not_need_their_gpu_here():
    import torch

    from prefkit import distributed

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with distributed.devices_elsewhere():
        distributed.check_device("cuda")
        assert distributed.device_of(None) == "cuda:0"
    with pytest.raises(UsageError, match="finds no cuda"):
        distributed.check_device("cuda")


# -- the pool, with a fake Ray ----------------------------------------------------------------------------------------
class Ended(Exception):
    pass


class Call:
    """A call of an actor's method, which runs when its result is asked for."""

    def __init__(self, act):
        self.act = act

    def result(self):
        return self.act()


@pytest.fixture
def pool(monkeypatch):
    """pool(units, do, load) -> list of (units, result) of a pool of two workers; `do` and `load` may raise Ended."""
    from prefkit.engines import ray as ray_engine

    class FakeActor:
        def __init__(self, do, load):
            answer = {"warnings": []}
            remote = types.SimpleNamespace
            self.load = remote(remote=lambda *_: Call(lambda: answer | {"value": load()}))
            self.do = remote(remote=lambda units: Call(lambda: answer | {"value": do(units)}))

    fake = types.ModuleType("ray")
    fake.cluster_resources = lambda: {"CPU": 2.0}
    fake.wait = lambda calls, num_returns, timeout: (calls[:1], calls[1:])
    fake.get = lambda call: call.result()
    fake.kill = lambda actor: None
    fake.remote = lambda **options: lambda kind: None
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(ray_engine, "end_errors", lambda: (Ended,))

    def run(units, do, load=lambda: None):
        made = ray_engine.Pool(engines.Work("work", object, (), "cpu"), units, None)
        made.remote = types.SimpleNamespace(remote=lambda: FakeActor(do, load))
        made.start()
        return made, [pair for pair in made.results()]

    return run


def test_a_unit_that_ends_workers_is_lost_alone(pool):
    def do(units):
        if "bad" in units:
            raise Ended("killed\n\tactor_id: 1")
        return list(units)

    units = [f"u{n}" for n in range(50)]
    units[20] = "bad"
    _, results = pool(units, do)
    lost = [(done, result) for done, result in results if isinstance(result, engines.Lost)]
    assert [done for done, _ in lost] == [["bad"]]
    assert lost[0][1].reason == "the worker process ended 3 times during this batch: killed"
    good = [unit for done, result in results if not isinstance(result, engines.Lost) for unit in result]
    assert sorted(good) == sorted(set(units) - {"bad"})
    assert max(len(done) for done, _ in results) > 1  # fast units share a call


def test_a_worker_whose_every_unit_ends_it_ends_the_work(pool):
    def do(units):
        raise Ended("out of memory")

    with pytest.raises(ProcessError, match="again and again.*out of memory"):
        pool([f"u{n}" for n in range(50)], do)


def test_workers_that_never_load_end_the_work_and_one_that_fails_is_replaced(pool):
    left = [4]

    def load():
        left[0] -= 1
        if left[0] >= 0:
            raise Ended("no room")

    _, results = pool(["a", "b", "c"], list, load)
    assert sorted(unit for done, _ in results for unit in done) == ["a", "b", "c"]
    left[0] = 100
    with pytest.raises(ProcessError, match="6 workers in a row ended before.*no room"):
        pool(["a", "b", "c"], list, load)
