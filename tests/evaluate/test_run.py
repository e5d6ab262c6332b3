"""run_eval on a tiny real pipeline: two "trained" models, one of which is the base itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prefkit import distributed
from prefkit.config import Compare, Eval, Generate, Model, Pair, Recipe, Score, Set, Train
from prefkit.errors import FingerprintError, UsageError
from prefkit.evaluate import arena
from prefkit.evaluate.images import make
from prefkit.evaluate.run import assess_scorer, candidates, run_eval
from prefkit.evaluate.summary import flat_rows
from prefkit.models.load.revision import base_revision
from prefkit.models.load.trained import write_trained_on
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.testing import tiny_pipeline
from prefkit.types import Request

SCORERS = '''
import numpy as np


def light(images, prompts):
    """Mean brightness."""
    return [float(np.asarray(image).mean()) for image in images]


def dark(images, prompts):
    """Mean brightness, failing on prompts that say so."""
    return [None if "fail" in p else -float(np.asarray(i).mean()) for i, p in zip(images, prompts)]
'''
JUDGE = """
import numpy as np
from prefkit.score.judge.compare import Verdicts
from prefkit.types import Comparison, Score, ScorerSpec


class Brighter:  # takes the brighter image, but for "rain" the one that is shown first
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options=None): pass
    def spec(self): return ScorerSpec("brighter", "1")
    def judge_spec(self): return {"name": "brighter"}
    def load(self, device, dtype): pass
    def score(self, batch): return [Score(1.0) for _ in batch]
    def compare(self, pairs, template, aspect):
        rows, shown = [], []
        for a, b in pairs:
            light = [np.asarray(image.pil()).mean() for image in (a, b)]
            best = "tie" if light[0] == light[1] else "a" if light[0] > light[1] else "b"
            answers = ("a", "b") if a.prompt == "rain" else (best, best)
            shown += [Comparison(a.id, b.id, o, "j", None, order) for o, order in zip(answers, ("ab", "ba"))]
            both = answers[0] if answers[0] == answers[1] else "tie"
            rows.append(Comparison(a.id, b.id, both, "j", None, "both"))
        return Verdicts(rows, shown, None, None)
"""
PROMPTS = ["a cat", "a dog", "fail here", "a <b>tree</b>", "rain", "a road", "a cup"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Recipe]:
    root = tmp_path_factory.mktemp("eval")
    (root / "scorers.py").write_text(SCORERS)
    (root / "judge.py").write_text(JUDGE)
    (root / "more.txt").write_text("a ship\na horse\n")
    base = tiny_pipeline("sd", root / "base")
    store = Store.create(root / "run")
    store.write_requests(
        [*(Request(f"t{i}", p, "test") for i, p in enumerate(PROMPTS)), Request("x", "a ship", "train")]
    )
    for name in ("same", "other", "other-sft"):
        final = store.train(name) / "final"
        revision = base_revision(Model(base=str(base)))
        write_json(store.train(name) / "spec.json", {"model": revision})
        if name != "other-sft":
            write_trained_on(store.train(name), ["A  horse"], ["light"], Model(), revision["base"])
        if name == "same":
            shutil.copytree(base, final)
        else:
            tiny_pipeline("sd", final, seed=5)
    recipe = Recipe(
        run=str(store.folder),
        model=Model(base=str(base)),
        generate={"own": Generate(n=2, steps=2, height=16, width=16, batch_size=8, device="cpu")},
        score={name: Score(use=f"{root}/scorers.py:{name}", device="cpu") for name in ("light", "dark")},
        compare={"brighter": Compare(use=f"{root}/judge.py:Brighter", device="cpu")},
        pair={"main": Pair(weights={"light": 1.0})},
        train={"same": Train(pairs="main"), "other": Train(pairs="main")},
        eval={
            "held": Eval(
                models=["same", "other"],
                seeds=2,
                best_of=4,
                base_steps=[3],
                judges=["brighter"],
                sets={"own": Set(), "file": Set(source=str(root / "more.txt"))},
                device="cpu",
            )
        },
    )
    return store, recipe


@pytest.fixture(scope="module")
def result(run: tuple[Store, Recipe]) -> dict:
    return run_eval(*run, "held")


def test_written_as_returned_and_without_nan(run, result):
    text = (run[0].eval("held") / "result.json").read_text()
    assert read_json(run[0].eval("held") / "result.json") == json.loads(json.dumps(result))
    assert "NaN" not in text and "Infinity" not in text


def test_every_set_model_and_scorer_has_a_whole_row(run, result):
    assert list(result["sets"]) == ["own", "file"]
    base = Store(run[0].eval("held") / "own" / "base")
    assert set(result["requests"]["own"]) == {r.request_id for r in base.requests()}
    for models in result["sets"].values():
        assert list(models) == ["same", "other", "other-sft", "base-s3"]
        for scorers in models.values():
            assert list(scorers) == ["light", "dark"]
    promised = (
        "base tuned win_rate ci_low ci_high tie_share n_requests used_for_pairs evaluation_only minimum_detectable"
    )
    promised += " best_of_n diversity_base diversity_tuned moved seed_distance verdict"
    assert set(promised.split()) <= set(result["sets"]["own"]["other"]["light"])


def test_the_base_against_itself_has_not_changed(result):
    row = result["sets"]["own"]["same"]["light"]
    assert row["moved"] == 0.0 and row["verdict"] == "nothing changed"
    assert row["win_rate"] == 0.5 and row["tie_share"] == 1.0 and row["base"] == row["tuned"]


def test_another_model_moved_and_is_judged_both_ways(result):
    rows = result["sets"]["own"]["other"]
    assert rows["light"]["moved"] > 0.01 and rows["light"]["n_requests"] == 7
    assert rows["dark"]["n_requests"] == 6 and rows["dark"]["requests_left_out"] == 1
    assert rows["light"]["used_for_pairs"] and not rows["dark"]["used_for_pairs"]
    assert result["correlations"]["light"]["dark"] == pytest.approx(-1.0)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return (
        [rounded(each) for each in value]
        if isinstance(value, list)
        else round(value, 12)
        if isinstance(value, float)
        else value
    )


def test_workers_share_the_images_and_a_later_command_compares(run, result):
    store, recipe = run
    shared = replace(recipe.eval["held"], models=["same"], base_steps=[], sets={"own": Set()})
    recipe = replace(recipe, eval={"shared": shared})
    counts = []
    try:
        for index in (1, 0, 1):
            distributed.use_shard((index, 2))
            counts.append(run_eval(store, recipe, "shared"))
    finally:
        distributed.use_shard(None)
    assert [each["made"] for each in counts] == [counts[0]["made"], 42 - counts[0]["made"], 0] and counts[0]["made"]
    assert sum(each["scored"] for each in counts) == 2 * 42 - 6  # one scorer fails on one prompt
    folder = store.eval("shared")
    parts = sorted(set(folder.rglob("part-*")) - set(folder.rglob("dark/part-*")))  # failed scores are tried again
    assert not (folder / "result.json").exists()
    for model in ("base", "same"):
        tables = [Store(store.eval(name) / "own" / model).candidates("own").frame() for name in ("held", "shared")]
        pd.testing.assert_frame_equal(*(table.sort_values("id", ignore_index=True) for table in tables))
    rows = [found["sets"]["own"]["same"] for found in (run_eval(store, recipe, "shared"), result)]
    assert rounded(rows[0]) == rounded(rows[1])  # the order of images, and thus of sums, differs
    assert sorted(set(folder.rglob("part-*")) - set(folder.rglob("dark/part-*"))) == parts


def test_a_worker_removes_no_images_of_an_earlier_model(run, result, monkeypatch):
    store, recipe = run
    changed = replace(recipe, score=recipe.score | {"dark": replace(recipe.score["dark"], dtype="bfloat16")})
    distributed.use_shard((0, 2))
    try:
        with pytest.raises(FingerprintError, match="Run eval once with --limit 1 and without --shard"):
            run_eval(store, changed, "held")
    finally:
        distributed.use_shard(None)
    assert len(Store(store.eval("held") / "own" / "base").scores("dark").frame()) == 28


def test_win_rate_against_the_images_themselves(run, result):
    store, _ = run
    means = []
    for model in ("base", "other"):
        folder = Store(store.eval("held") / "own" / model)
        images = {(c.request_id, c.index): np.asarray(c.pil()).mean() for c in folder.iter_candidates()}
        means.append({key: value for key, value in images.items() if key[1] < 2})
    assert means[0].keys() == means[1].keys() and len(means[0]) == 14
    wins = np.mean([(means[1][k] > means[0][k]) + 0.5 * (means[1][k] == means[0][k]) for k in means[0]])
    assert result["sets"]["own"]["other"]["light"]["win_rate"] == pytest.approx(wins)


def test_seeds_are_shared_and_best_of_draws_more_of_the_base(run):
    store, _ = run
    frames = {
        model: Store(store.eval("held") / "own" / model).candidates("own").frame(["request_id", "index", "seed"])
        for model in ("base", "other", "base-s3")
    }
    assert len(frames["base"]) == 28 and len(frames["other"]) == 14
    keyed = {m: frame.set_index(["request_id", "index"]).seed.to_dict() for m, frame in frames.items()}
    assert all(keyed["base"][key] == seed for m in ("other", "base-s3") for key, seed in keyed[m].items())


def test_the_arena_ranks_all_models_by_scores_and_by_a_judge(run, result):
    """A judge of brightness ranks as the score does, but for the prompt about which it contradicts itself."""
    found = result["arena"]["own"]
    assert list(found) == ["light", "dark", "brighter"] and list(result["arena"]) == ["own", "file"]
    rows = {judge: {row["model"]: row for row in each["models"]} for judge, each in found.items()}
    models = {"base", "same", "other", "other-sft", "base-s3"}
    assert all(row.keys() == models for row in rows.values())
    assert rows["light"]["same"]["strength"] == pytest.approx(0) and rows["light"]["other"]["games"] == 4 * 14
    won = result["sets"]["own"]["other"]["light"]["win_rate"] - 0.5
    assert np.sign(rows["light"]["other"]["strength"]) == np.sign(won) != 0
    assert rows["dark"]["other"]["games"] == 4 * 12
    assert np.sign(rows["dark"]["other"]["strength"]) == -np.sign(won)
    light, judge = (found[name] for name in ("light", "brighter"))
    assert judge["kind"] == "judge" and judge["failed"] == 0 and judge["games"] == light["games"] == 140
    # three different models have 3 x 14 different pairs of images, 6 of them for "rain"; 8 of 10 pairs of models differ
    assert judge["flips"] == pytest.approx(6 / 42) and judge["ties"] == pytest.approx(light["ties"] + 16 / 140)
    order = [
        [row["model"] for row in each["models"] if row["model"] in ("base", "base-s3", "other")]
        for each in (light, judge)
    ]
    assert order[0] == order[1]


def test_flips_are_those_of_the_pairs_of_this_evaluation(run, result):
    """The judge's table also holds the pairs of an earlier, larger evaluation."""
    store, recipe = run
    folder = store.eval("held")
    opened = {model: Store(folder / "own" / model) for model in ("base", "other")}
    requests = {r.prompt: r.request_id for r in opened["base"].requests()}
    for prompt, flips in (("rain", 1.0), ("a cat", 0.0)):
        images = {model: candidates(part, "own", {requests[prompt]}, 2) for model, part in opened.items()}
        games, found = arena.by_judge(recipe, "brighter", folder / ".judges" / "own" / "brighter", opened, images)
        assert len(games) == 2 and found["flips"] == flips and found["failed"] == 0


def test_an_arena_needs_known_judges(run):
    store, recipe = run
    held = replace(recipe.eval["held"], judges=["critic"])
    with pytest.raises(UsageError, match=r"eval.held.judges: 'critic' is not in the recipe; `compare:` has brighter"):
        run_eval(store, replace(recipe, eval={"held": held}), "held")


def test_controls_and_training_prompts_are_said(result):
    assert (
        not result["controls"]["sft"] and result["controls"]["base_steps"] and not result["controls"]["base_guidance"]
    )
    missing = [line.split(":")[0] for line in result["controls"]["missing"]]
    assert missing[:3] == ["same-sft", "same-flipped", "other-flipped"]
    assert result["settings"]["in_training"] == {"own": 0, "file": 2}
    assert result["settings"]["training_unknown"] == ["other-sft"]


def test_few_requests_show_no_difference(result):
    assert result["sets"]["file"]["other"]["light"]["n_requests"] == 2
    assert result["sets"]["file"]["other"]["light"]["verdict"] == "no difference shown"


def test_running_again_makes_nothing_and_says_the_same(run, result):
    store, recipe = run
    parts = {p: p.stat().st_mtime_ns for p in store.eval("held").rglob("*.parquet") if p.name != "requests.parquet"}
    assert run_eval(store, recipe, "held") == result
    assert {p: p.stat().st_mtime_ns for p in parts} == parts


def test_rows_for_the_terminal(result):
    rows = flat_rows(result)
    assert len(rows) == 16 and all(not isinstance(v, (dict, list)) for row in rows for v in row.values())


def test_the_report_shows_it(run, result):
    from prefkit.report import write_report

    page = write_report(run[0]).read_text()
    assert "Bradley-Terry" in page and "brighter" in page
    assert "nothing changed" in page and "Chosen by hash, not by hand" in page and "data:image/webp" in page


def test_what_is_refused(run):
    store, recipe = run
    held = recipe.eval["held"]

    def changed(**what) -> Recipe:
        return replace(recipe, eval={"held": replace(held, **what)})

    with pytest.raises(UsageError, match="nope"):
        run_eval(store, recipe, "nope")
    with pytest.raises(UsageError, match="missing"):
        run_eval(store, changed(models=["missing"]), "held")
    with pytest.raises(UsageError, match="beauty"):
        run_eval(store, changed(scorers=["beauty"]), "held")
    with pytest.raises(UsageError, match="holds no requests"):
        run_eval(store, changed(sets={"none": Set(split="void")}), "held")
    slower = replace(recipe, generate={"own": replace(recipe.generate["own"], steps=9)})
    with pytest.raises(FingerprintError, match="steps"):
        run_eval(store, slower, "held")


def test_a_changed_prompt_under_its_id_is_refused_before_anything_is_made(run, tmp_path):
    recipe = run[1]
    folder = Store.create(tmp_path / "base")
    folder.write_requests([Request("r0", "a cat", "test")])
    with pytest.raises(UsageError, match="the prompt of request 'r0' in .* changed"):
        wanted = [Request("r0", "a dog", "test")]
        make(folder, recipe, wanted, folder)
    assert not folder.names("candidates")


def test_images_beyond_what_this_evaluation_asks_for_do_not_count():
    def table(size):
        rows = [(f"r{i}", j, float(i + j)) for i in range(8) for j in range(size)]
        return pd.DataFrame(rows, columns=["request_id", "index", "value"])

    distances = {"moved": 0.2, "seed_distance": 0.3}
    cfg = Eval(seeds=2, best_of=3, bootstrap=50)
    rows = [assess_scorer(lambda *_: None, cfg, ("m", "s"), [table(n), table(2)], {}, distances) for n in (3, 9)]
    assert rows[0] == rows[1] and rows[0]["used_for_pairs"] is None


def test_limit_chooses_by_hash_and_keeps_what_is_there(run, result, tmp_path: Path):
    store, recipe = run
    found = run_eval(store, recipe, "held", limit=3)
    assert found["sets"]["own"]["other"]["light"]["n_requests"] == 3
    assert run_eval(store, recipe, "held")["sets"] == result["sets"]


def test_diversity_by_an_encoder(run, result):
    """Mean cosine distance between the images of a request, besides the diversity in pixels, which stays the same."""
    from itertools import combinations

    from prefkit.report import write_report
    from prefkit.score.embed.encoder import Encoder

    store, recipe = run
    held = replace(recipe.eval["held"], encoder="torchvision:resnet18")
    with pytest.raises(UsageError, match="torchvision:resnet18: `pretrained` is not set"):
        run_eval(store, replace(recipe, eval={"held": held}), "held")
    found = run_eval(store, replace(recipe, eval={"held": replace(held, encoder="tiny")}), "held")
    for set_name, models in result["sets"].items():
        for model, rows in models.items():
            assert all("encoder_diversity" not in row for row in rows.values())
            for alias, row in rows.items():
                assert {key: found["sets"][set_name][model][alias][key] for key in row} == row
    encoder = Encoder("tiny")
    encoder.load("cpu", "float32")
    expected = []
    for model in ("base", "other"):
        groups: dict = {}
        for candidate in Store(store.eval("held") / "own" / model).iter_candidates():
            if candidate.index < 2:
                groups.setdefault(candidate.request_id, []).append(candidate.pil())
        rows = [encoder.images(group).double().numpy() for group in groups.values()]
        expected.append(np.mean([1 - a @ b for group in rows for a, b in combinations(group, 2)]))
    diversity = found["sets"]["own"]["other"]["light"]["encoder_diversity"]
    assert diversity["encoder"] == "tiny" and expected[0] > 1e-4
    assert [diversity["base"], diversity["tuned"]] == pytest.approx(expected, abs=1e-6)
    assert "Diversity by tiny: mean cosine distance" in write_report(store).read_text()


def test_distances_to_real_images(run, result, tmp_path: Path, capsys):
    """As computed from the embeddings of the images themselves; a second evaluation gives the same numbers."""
    from prefkit.cli.main import note_distances
    from prefkit.evaluate.set_distances import cmmd, frechet_distance, unit
    from prefkit.report import write_report
    from prefkit.score.embed.encoder import Encoder

    store, recipe = run
    rng = np.random.default_rng(0)
    for i in range(70):
        Image.fromarray(rng.integers(0, 255, (16 + i % 3, 24, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
    held = replace(recipe.eval["held"], encoder="tiny", real=str(tmp_path), sets={"own": Set()}, bootstrap=50)
    recipe = replace(recipe, eval={"held": held})
    found = run_eval(store, recipe, "held")
    assert run_eval(store, recipe, "held") == found
    encoder = Encoder("tiny")
    encoder.load("cpu", "float32")
    sets = [[Image.open(path).convert("RGB") for path in sorted(tmp_path.glob("*.png"))]]
    for model in ("base", "other"):
        folder = Store(store.eval("held") / "own" / model)
        sets.append([candidate.pil() for candidate in folder.iter_candidates() if candidate.index < 2])
    real, base, tuned = (encoder.images(members, normalize=False).double().numpy() for members in sets)
    row = found["sets"]["own"]["other"]["light"]["real_distance"]
    assert (row["n"], row["n_real"], row["n_requests"], row["width"]) == (14, 70, 7, real.shape[1])
    for name, measure, prepared in (("frechet", frechet_distance, np.asarray), ("cmmd", cmmd, unit)):
        expected = [measure(prepared(rows), prepared(real)) for rows in (base, tuned)]
        assert [row[name]["base"], row[name]["tuned"]] == pytest.approx(expected, rel=1e-4)
    assert row["frechet"]["ci_low"] is None and row["cmmd"]["ci_low"] < row["cmmd"]["ci_high"]
    same = found["sets"]["own"]["same"]["dark"]["real_distance"]
    assert same["cmmd"]["difference"] == same["frechet"]["difference"] == 0
    assert found["settings"]["real"]["images"] == 70 and len(found["settings"]["real"]["content"]) == 40
    error = capsys.readouterr().err
    assert error.count("encoding 70 real images") == 1 and "The Fréchet distance is unreliable here (14 gen" in error
    note_distances([found])
    table = capsys.readouterr().err
    assert "distance by tiny" in table and "CMMD" in table and "depend on the encoder" in table
    page = write_report(store).read_text()
    assert "Distance to real images by tiny" in page and "a model that lost variety" in page
    run_eval(*run, "held")  # restores the result of the other tests


def test_people_alone_are_a_judge(run, result):
    """Without a scorer, eval makes the images and says how to have them judged; then it reports the votes."""
    from prefkit.cli.next_step import voting
    from prefkit.human.agreement import assess
    from prefkit.human.ballot import Ballot
    from prefkit.human.page import VoteSettings, make_page
    from prefkit.report import write_report

    store, recipe = run
    entry = replace(recipe.eval["held"], scorers=["people"], sets={"own": Set()})
    alone = replace(recipe, score={}, eval={"held": entry})
    unjudged = run_eval(store, alone, "held")
    assert unjudged["sets"]["own"]["other"] == {} and "brighter" in unjudged["arena"]["own"]
    assert voting(store, "held", unjudged).startswith("nobody has voted on the images of eval held yet. next: prefkit")
    assert "Nobody has voted on these images yet" in write_report(store).read_text()
    page = make_page(store, VoteSettings(models=("base", "other"), set="own", n=12, repeats=2))
    ballot = Ballot(store, page.key)
    for who in ("person-aaaaaaaaaaaa", "person-bbbbbbbbbbbb"):
        for i, item in enumerate(page.key["pairs"]):
            left = item["model_a"] if (order := "ba" if "again" in item else "ab") == "ab" else item["model_b"]
            choice = "tie" if i == 3 else "left" if (left == "other") == (i != 5) else "right"
            ballot.add(who, {"pair": item["pair"], "order": order, "choice": choice, "time": 1 + i})
    row = run_eval(store, alone, "held")["sets"]["own"]["other"]["people"]
    # the control has the weights, and so the images, of the model
    rows = assess(store)["evaluations"]
    human = next(found for found in rows if (found["against"], found["model"]) == ("base", "other"))
    assert row["win_rate"] == pytest.approx(human["win_rate"]["value"]) and 0.7 < row["win_rate"] < 1
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((human["win_rate"]["low"], human["win_rate"]["high"]))
    assert (row["votes"], row["annotators"], row["n_pairs"]) == (24, 2, 12)
    assert row["used_for_pairs"] is False and row["moved"] > 0
    assert row["verdict"] == ("better" if row["ci_low"] > 0.5 else "no difference shown")
    both = run_eval(store, replace(recipe, eval={"held": replace(entry, scorers=[])}), "held")
    assert list(both["sets"]["own"]["other"]) == ["light", "dark", "people"] and list(both["sets"]["own"]["same"]) == [
        "light",
        "dark",
    ]
    assert {r["scorer"]: r["tuned"] for r in flat_rows(both) if r["model"] == "other"}["people"] is None
    assert ">people <" in write_report(store).read_text()


def test_a_judge_with_the_name_of_a_score_or_of_people_has_its_own_standings(monkeypatch):
    frame = pd.DataFrame({"request_id": ["r"], "index": [0], "id": ["i"]})
    games = pd.DataFrame([("r", "dpo", "base", 1.0)], columns=arena.COLUMNS)
    monkeypatch.setattr(arena, "by_judge", lambda *_: (games, {"failed": 0}))
    scores, images = (
        dict.fromkeys(("base", "dpo"), frame.assign(**more)) for more in ({"value": 1.0}, {"error": None})
    )
    images["dpo"] = images["dpo"].assign(id="j")
    votes = pd.DataFrame({"first": ["i"], "second": ["j"], "verdict": [-1], "judge": ["ann"]})
    cfg = Eval(judges=["mllm", "people", "other"])
    found = arena.arena(Recipe(), cfg, Path("x"), dict.fromkeys(images), {"mllm": (scores, True)}, images, votes)
    assert {name: one["kind"] for name, one in found.items()} == {
        "mllm": "score",
        "mllm (compare)": "judge",
        "people (compare)": "judge",
        "other": "judge",
        "people": "people",
    }
    assert [row["model"] for row in found["people"]["models"]] == ["dpo", "base"]


def test_a_model_and_its_controls_are_ranked_in_the_report_only():
    from prefkit.evaluate.arena import rows_of

    row = {"strength": 0.1, "low": 0.0, "high": 0.2, "points": 0.5}

    def shown(kind, *models):
        found = {"kind": kind, "ties": 0.0, "models": [row | {"model": model} for model in models]}
        return [each["model"] for each in rows_of({"held_out": {"align": found}})]

    assert shown("score", "base", "dpo", "dpo-sft", "dpo-flipped") == []
    assert shown("score", "base", "dpo", "nft") == ["base", "dpo", "nft"]
    assert shown("judge", "base", "dpo", "dpo-sft") == ["base", "dpo", "dpo-sft"]
