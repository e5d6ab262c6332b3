"""The demo from the first line to the report, with few images and steps: that it runs, not what it shows."""

from __future__ import annotations

import json

SMALL = {
    "generate.own.n": 2,
    "generate.own.steps": 3,
    "pair.main.k": 1,
    "train.dpo.steps": 2,
    "train.dpo.batch_size": 4,
    "train.dpo.warmup": 0,
    "train.dpo.validation": 4,
    "eval.held_out.seeds": 1,
    "eval.held_out.max_requests": 3,
    "eval.held_out.bootstrap": 50,
}


def test_the_demo_runs(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = [part for key, value in SMALL.items() for part in (f"--{key}", value)]
    code, out, err = cli("run", "demo", *flags)
    assert code == 0, err
    assert "minutes on 2 CPU cores" in err.splitlines()[0]
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["model", "judge"] and lines[-1] == "report: runs/demo/report.html"
    assert {line.split()[0] for line in lines[1:-1]} == {"dpo", "dpo-sft", "dpo-flipped"}
    assert max(map(len, lines)) <= 80
    assert (tmp_path / "runs/demo/report.html").stat().st_size > 10_000
    few = "Warning: eval held_out: set held_out has 3 requests."  # three requests make the test fast
    assert [line for line in err.splitlines() if "Warning" in line and not line.startswith(few)] == []
    result = json.loads((tmp_path / "runs/demo/eval/held_out/result.json").read_text())
    rows = result["sets"]["held_out"]["dpo"]
    assert rows["taste"]["used_for_pairs"] and not rows["palette"]["used_for_pairs"]
    assert {"item", "background"} <= rows["fidelity"]["aspects"].keys()  # after three steps no colour can be read
    code, out, _ = cli("run", "demo", *flags, "--json", "-q")  # nothing is made again
    assert code == 0 and json.loads(out)["generate"]["own"]["made"] == 0


def test_the_judge_is_neither_the_reward_nor_in_the_pairs():
    from prefkit.config import reader as recipe
    from prefkit.config.shipped import shipped_recipes
    from prefkit.score.core import make_scorer
    from prefkit.tiny.source import USER, rows

    demo = recipe.read(shipped_recipes()["demo"])
    used = set(demo.pair["main"].weights)
    judges = [alias for alias in demo.eval["held_out"].scorers if alias not in used]
    assert used and judges[0] == "palette"
    for alias in judges:
        assert demo.score[alias].use not in {demo.score[name].use for name in used}
        if demo.score[alias].use == "attributes":
            assert make_scorer(demo.score[alias].use, demo.score[alias].options).spec().evaluation_only
    train, test = ({r["prompt"] for r in rows() if r["split"] == split} for split in ("train", "test"))
    assert train and test and not train & test
    assert {r["user"] for r in rows()} == {USER}
