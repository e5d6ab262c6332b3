"""Tiers of prompt tuples: RI against numbers by hand, groups, missing tiers, and a whole evaluation on drawn images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from prefkit.config import Eval
from prefkit.errors import UsageError
from prefkit.evaluate import tiers
from prefkit.evaluate.summary import improvement, tier_rows
from prefkit.evaluate.tiers import relative_improvement, tier_report
from prefkit.store import Store
from prefkit.types import Request

LAWS = {"r0": "rust", "r1": "rust", "r2": "melting", "r3": None}
REQUESTS = [Request(name, name, "test", {"law": law} if law else {}) for name, law in LAWS.items()]


def frame(*values, index=0):
    return pd.DataFrame({"request_id": [f"r{i}" for i in range(len(values))], "index": index, "value": values})


def test_published_numbers():
    """FLUX.1-dev by SciScore on Science-T2I-S and -C (arXiv 2504.13129): base, tuned, explicit, and RI in percent."""
    rows = [(23.56, 27.43, 32.85, 41.66), (27.26, 29.49, 34.70, 29.97), (23.56, 28.52, 32.85, 53.39), (27.26, 30.11, 34.70, 38.31)]  # fmt: skip
    for *values, published in rows:
        result = relative_improvement(*(np.array([value]) for value in values))
        assert result["value"] == pytest.approx(published / 100, abs=1e-4)
        assert result["low"] is None and "1 requests are too few" in result["reason"]


def test_a_ratio_of_means_and_not_a_mean_of_ratios():
    base, tuned, explicit = (frame(1.0, 2.0, 3.0, 4.0), frame(2.0, 2.0, 3.0, 8.0), frame(2.0, 6.0, 4.0, 8.0))
    twice = pd.concat([tuned, tuned.assign(value=tuned.value + 2, index=1), frame(99.0, index=2)])
    cfg = Eval(seeds=2, by="law", explicit="x")
    result = tier_report(cfg, {"base": base, "tuned": twice, "explicit": explicit}, REQUESTS, True)
    # tuned means over seeds: 3, 3, 4, 9; the third seed is beyond `seeds`
    assert result["means"] == {"base": 2.5, "tuned": 4.75, "explicit": 5.0}
    assert result["relative_improvement"]["value"] == pytest.approx(2.25 / 2.5)
    found = {law: (part["n_requests"], part["relative_improvement"]["value"]) for law, part in result["by"].items()}
    assert found == {"melting": (1, 1.0), "rust": (2, pytest.approx((2 + 1) / (1 + 4))), "unknown": (1, 5 / 4)}
    lower = {name: table.assign(value=-table.value) for name, table in (("base", base), ("tuned", twice))}
    turned = tier_report(cfg, lower | {"explicit": explicit.assign(value=-explicit.value)}, REQUESTS, False)
    assert turned["relative_improvement"] == result["relative_improvement"] and turned["means"]["base"] == -2.5


def test_requests_without_a_tier_are_left_out_and_undefined_ratios_say_why():
    cfg = Eval(seeds=1, by="law", explicit="x")
    tables = {"base": frame(1.0, 2.0, np.nan), "tuned": frame(2.0, 2.0, 3.0), "explicit": frame(0.0)}
    result = tier_report(cfg, tables, REQUESTS, True)
    assert result["n_requests"] == 1 and result["left_out"] == 3
    assert result["relative_improvement"]["value"] is None
    assert "score no higher than the base (-1)" in improvement(result["relative_improvement"])
    empty = result["by"]["melting"]
    assert empty["means"]["base"] is None and "no request has scores" in empty["relative_improvement"]["reason"]
    floor = tier_report(Eval(by="law"), {"base": frame(1.0), "tuned": frame(2.0)}, REQUESTS, True)
    assert floor["relative_improvement"] is None and improvement(None) == "-"
    json.dumps(result, allow_nan=False)


def test_the_interval_covers_the_truth_and_is_refused_without_a_gap():
    rng, hits = np.random.default_rng(0), 0
    for n in range(60):
        base = rng.normal(0, 1, 40)
        explicit, tuned = base + rng.normal(2, 1, 40), base + rng.normal(1, 1, 40)
        found = relative_improvement(base, tuned, explicit, samples=200, seed=n)
        hits += found["low"] <= 0.5 <= found["high"]
    assert 51 <= hits <= 59  # nominal 57 of 60
    noise = rng.normal(0, 1, 40)
    found = relative_improvement(base, base + 1, base + noise - noise.mean() + 0.05)
    assert found["value"] == pytest.approx(20) and found["low"] is None and "too uncertain" in found["reason"]


def test_texts_of_lists_and_missing_columns(capsys):
    requests = [
        Request("a", "p", extra={"explicit": ["first", "second"], "x": 1}),
        Request("b", "q", extra={"explicit": []}),
    ]
    cfg = Eval(explicit="explicit")
    assert (
        tiers.prompts(cfg, "base-explicit", requests) == {"a": "first"} and tiers.prompts(cfg, "dpo", requests) is None
    )
    tiers.check("e", cfg, {"held": requests})
    assert "1 of 2 requests" in capsys.readouterr().err
    for key in ("explicit", "superficial", "by"):
        with pytest.raises(UsageError, match=f"eval.e.{key}: no request of set 'held'.*'other'.*explicit, x"):
            tiers.check("e", replace(Eval(), **{key: "other"}), {"held": requests})


SCORER = """
import numpy as np


def light(images, prompts):
    for prompt in prompts:
        assert prompt.startswith("implicit"), prompt  # a prompt of a tier must not reach the scorer
    return [float(np.asarray(image).mean()) for image in images]
"""
RECIPE = """
run: RUN/run
model: {base: SD}
requests: {source: RUN/requests.jsonl, test_share: 1.0, prompt_column: implicit}
generate: {own: {n: 1, steps: 1, height: 16, width: 16, batch_size: 16}}
score: {light: {use: "RUN/scorer.py:light"}}
eval:
  science: {seeds: 1, explicit: explicit, superficial: superficial, by: law, bootstrap: 200, base_steps: [2]}
"""


def test_a_whole_evaluation(tmp_path, cli, sd, monkeypatch):
    from prefkit.evaluate import images

    made = {}

    def recorded(folder, *arguments, requests, **options):
        made[folder.folder.name] = {r.prompt.split()[0] for r in requests}
        return original(folder, *arguments, requests=requests, **options)

    original = images.run_generate
    monkeypatch.setattr(images, "run_generate", recorded)
    rows = [
        {tier: f"{tier} {i}" for tier in ("implicit", "explicit", "superficial")} | {"law": ("rust", "melting")[i % 2]}
        for i in range(7)
    ]
    del rows[0]["explicit"]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "scorer.py").write_text(SCORER)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("RUN", str(tmp_path)).replace("SD", str(sd)))
    code, _, err = cli("eval", "-r", recipe)
    assert code == 0, err
    assert made == {"base": {"implicit"}, "base-s2": {"implicit"}} | {
        f"base-{t}": {t} for t in ("explicit", "superficial")
    }
    assert "RI: (tuned - base)" in err and "1 of 7 requests" in err
    place = tmp_path / "run" / "eval" / "science"
    result = json.loads((place / "result.json").read_text())
    models = result["sets"]["held_out"]
    assert set(models) == {"base-s2", "base-explicit", "base-superficial"}
    assert "tiers" not in models["base-explicit"]["light"]
    part = models["base-s2"]["light"]["tiers"]
    assert part["n_requests"] == 6 and part["left_out"] == 1
    assert {law: p["n_requests"] for law, p in part["by"].items()} == {"melting": 3, "rust": 3}
    values = Store(place / "held_out" / "base-explicit").scores("light").frame().value
    assert len(values) == 6 and part["means"]["explicit"] == pytest.approx(values.mean())
    assert part["means"]["explicit"] != pytest.approx(part["means"]["base"])
    assert [row["group"] for row in tier_rows([result])] == ["all", "melting", "rust"]
    assert cli("eval", "-r", recipe, "--dry-run")[0] == 0
    code, _, err = cli("report", tmp_path / "run")
    assert code == 0 and "relative improvement" in (tmp_path / "run" / "report.html").read_text()
    code, _, err = cli("eval", "-r", recipe, "--science.by", "lore")
    assert code == 2 and "no request of set 'held_out' has a text in the column 'lore'" in err
