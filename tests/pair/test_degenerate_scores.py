"""Scores with hardly any information (constant, binary, huge, tiny, missing) through every stage and page."""

from __future__ import annotations

import collections
import re
import warnings

import numpy as np
import pytest

from prefkit.config import Pair, plugin_options
from prefkit.pair.choose import choose_by
from prefkit.pair.normalise import NORMALISATIONS
from prefkit.pair.pool import add_scores, read_pool
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request, digest
from tests import drawing

#: a number from the image's first pixel, 0 to 255
SCORES = {
    "constant": "0.1",
    "binary": "float(v > 127)",
    "two_valued": "0.7 if v > 200 else 0.3",
    "rounding": "0.1 + 0.2 if v > 200 else 0.3",
    "huge": "(v - 128) * 1e306",
    "tiny": "v * 5e-324",
    "missing": "None",
    "rarely": "float(v) if v < 60 else None",
    "infinite": "float('inf') if v > 60 else float(v)",
}
STRATEGIES = ["all_pairs", "margin", "threshold_all", "per_scorer", "pareto"]
#: (strategy, score): one strategy on all scores, all strategies on those with the least to go by
TRIED = [*(("topk_bottomk", name) for name in SCORES), *((s, n) for s in STRATEGIES for n in ("binary", "missing"))]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run of 24 requests with 7 candidates, scored by each of SCORES."""
    from prefkit.cli.main import run

    folder = tmp_path_factory.mktemp("degenerate")
    (folder / "p.txt").write_text("\n".join(f"a hat {i}" for i in range(24)), encoding="utf-8")
    code = "".join(
        f"def {name}(images, prompts):\n    return [{text} for v in (i.getpixel((0, 0))[0] for i in images)]\n"
        for name, text in SCORES.items()
    )
    (folder / "s.py").write_text(code, encoding="utf-8")
    recipe = [
        f"run: {folder / 'run'}",
        f"requests: {{source: {folder / 'p.txt'}, test_share: 0}}",
        f"generate: {{own: {{use: '{drawing.__file__}:draw', n: 7}}}}",
        "score:",
        *(f"  {name}: {{use: '{folder / 's.py'}:{name}'}}" for name in SCORES),
        "pair:",
        *(f"  {s}_{name}: {{use: {s}, weights: {{{name}: 1.0}}}}" for s, name in TRIED),
        "  both: {use: topk_bottomk, k: 3, weights: {binary: 1.0, tiny: 1.0}}",
    ]
    (folder / "r.yaml").write_text("\n".join(recipe), encoding="utf-8")
    assert run(["generate", "-r", str(folder / "r.yaml"), "-q"]) == 0
    assert run(["score", "-r", str(folder / "r.yaml"), "-q"]) in (0, 1)
    return folder


def test_every_strategy_gives_pairs_or_says_why(scored, cli):
    made = []
    for strategy, name in TRIED:
        code, _, err = cli("pair", "-r", scored / "r.yaml", "--name", f"{strategy}_{name}")
        assert code in (0, 2) and "PREFKIT_DEBUG" not in err and "Warning" not in err, (name, strategy, err)
        if code == 0:
            made.append(name)
            frame = read_pairs(scored / "run" / "pairs" / f"{strategy}_{name}")
            assert np.isfinite(frame.score_gap).all() and frame.p.between(0.5, 1).all()
    assert not {"constant", "rounding", "missing"} & set(made), "nothing tells these candidates apart"
    assert {"binary", "two_valued", "huge", "rarely"} <= set(made)


def read_pairs(folder):
    import pandas as pd

    columns = ["candidate_0", "candidate_1", "label_0", "score_gap", "p"]
    return pd.concat([pd.read_parquet(path, columns=columns) for path in folder.glob("train/*.parquet")])


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_no_normalisation_warns_or_overflows(how):
    from prefkit.pair.normalise import normalise

    groups = np.repeat(np.arange(3), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (
            np.zeros(12),
            np.tile([0.0, 1.0], 6),
            np.full(12, np.nan),
            np.arange(12) * 5e-324,
            np.where(np.arange(12) % 2, 1e308, -1e308),
            np.r_[np.nan, np.arange(11.0)],
        ):
            found = normalise(values, groups, how)
            assert not np.isinf(found).any() and (np.isnan(found) == np.isnan(values)).all(), (how, values, found)


def test_pages_cards_and_exports_of_such_scores(scored, cli, tmp_path):
    assert cli("pair", "-r", scored / "r.yaml", "--name", "both")[0] == 0
    run = scored / "run"
    for arguments in (
        ("report", run),
        ("report", run, "--vote"),
        ("report", run, "--filter", "binary > 0"),
        ("push", run, "--pairs", "both", "--to", "you/x", "--dry-run"),
        ("export", run / "pairs" / "both", tmp_path / "out", "--as", "folders"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            code, _, err = cli(*arguments)
        assert code == 0, (arguments, err)
    text = (run / "report.html").read_text(encoding="utf-8")
    for name in SCORES:
        assert f"<b>{name}</b>" in text
    shown = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"""[>"= ](nan|[-\N{MINUS SIGN}]?inf)[<" ]""", shown.replace("the scorer returned inf", ""))


def test_neither_index_nor_generator_says_who_wins_among_equals(tmp_path):
    """With a binary reward most choices are ties. A thousand requests: 0.05 is three standard deviations."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{r}", "a hat") for r in range(1000)])
    scores = []
    for generator in ("one", "other"):
        made = [Candidate(f"{generator}-{r}-{i}", f"r{r}", i, i) for r in range(1000) for i in range(4)]
        store.candidates(generator).append([candidate_row(c) for c in made])
        scores += [{"id": c.id, "value": float(int(digest(c.id), 16) % 2)} for c in made]
    store.scores("binary").append(scores)
    frame = add_scores(store, read_pool(store, Pair()), ["binary"])[0].frame
    strategy = plugin_options.make("strategy", "topk_bottomk", {"k": 1})
    columns = {"binary": frame.binary.to_numpy()}
    found = choose_by(Pair(), strategy, columns, {"binary": 1.0}, {"binary": 1.0}, frame.request.to_numpy()).pairs
    assert len(found) > 900
    for name in ("index", "generator"):
        win, lose = (frame[name].to_numpy()[found[side]] for side in ("win", "lose"))
        assert abs((win < lose)[win != lose].mean() - 0.5) < 0.05, name


def test_candidates_of_a_request_stand_in_an_order_without_a_pattern(scored):
    pool = read_pool(Store(scored / "run"), Pair())
    assert (np.diff(pool.frame.request) >= 0).all() and len(pool) == 24 * 7
    first = collections.Counter(pool.frame.groupby("request")["index"].first())
    assert len(first) >= 4 and max(first.values()) < 12


def test_top_pairs_take_equals_from_all_requests():
    import pandas as pd

    from prefkit.pair.choose import top_pairs

    pairs = pd.DataFrame({"score_gap": np.ones(100), "agreement": np.ones(100), "win": np.arange(100)})
    kept = top_pairs(pairs, 20, np.random.default_rng(0).permutation(100))
    assert kept.win.is_monotonic_increasing and kept.win.max() > 50
