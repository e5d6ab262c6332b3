"""clip_preference: the loss in float64 by hand, a taste for a colour that is learned, folders that scorers load."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prefkit import tiny
from prefkit.cli.main import run as prefkit
from prefkit.errors import UsageError
from prefkit.fit.clip_tune import losses, wording
from prefkit.fit.fitters.clip_preference import ClipPreferenceFit, ClipPreferenceFitter
from prefkit.fit.preferences import read_preferences, split_by_text
from prefkit.fit.statistics import clustered
from prefkit.fit.wording.bag_of_words import predictions
from prefkit.fit.wording.controls import Controls
from prefkit.score.core import make_scorer
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.parquet import Shards
from prefkit.store.table import comparison_row
from prefkit.types import Candidate, Comparison

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def picture(colour, rng, side=32):
    pixels = np.clip(np.asarray(COLOURS[colour]) + rng.integers(-25, 25, (side, side, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(n=160, prompts=40):
    """Red is better, whatever is asked for; side 0 or 1 by chance."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        red = int(rng.integers(2))
        sides = [picture("red" if side == red else "blue", rng) for side in (0, 1)]
        name = "".join(chr(97 + int(d)) for d in f"{i % prompts:03d}")
        found.append(
            {"jpg_0": sides[0], "jpg_1": sides[1], "label_0": float(red == 0), "label_1": float(red == 1)}
            | {"caption": f"hat {name}", "explicit": f"r {name}", "superficial": f"b {name}", "p": 1.0}
        )
    return found


def written(folder, found):
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(found), folder / "train" / "part.parquet")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return written(tmp_path_factory.mktemp("pairs"), rows())


FAST = {"learning_rate": 1e-3, "steps": 60, "warmup": 5, "validate_every": 20, "patience": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def tuned(pairs, clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "mine"
    options = ClipPreferenceFit(pairs=str(pairs), model=str(clip), out=str(out), test_share=0.25, **FAST)
    return options, ClipPreferenceFitter(options).run(), out


def test_pairs_with_a_changed_bit_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    found = rows(4)
    with Shards(tmp_path / "train", pa.Table.from_pylist(found).schema) as shards:
        for row in found:
            shards.put(row)
    assert len(read_preferences("x", str(tmp_path), "", "").rows) == 4
    path = tmp_path / "train" / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[bytes(data).index(b"IDAT") + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="checksum of column jpg"):
        read_preferences("x", str(tmp_path), "", "")


def test_the_loss_by_hand():
    rng = np.random.default_rng(1)
    s, p = rng.normal(0, 3, (5, 2, 3)), np.array([1.0, 0.0, 0.5, 0.8, 0.3])

    def ce(logits, target):
        return -np.log(np.exp(logits[target]) / np.exp(logits).sum())

    for explicit in (0.0, 0.25):
        wanted = []
        for row, q in zip(s, p):
            total = 0.0
            for better, chance in ((0, q), (1, 1 - q)):
                term = ce(row[:, 0], better)  # over the two images, given the implicit prompt
                term += explicit * (ce(row[better, 1:], 0) + ce(row[1 - better, 1:], 1))
                total += chance * term
            wanted.append(total)
        found = losses(torch.tensor(s), torch.tensor(p), explicit)
        assert np.allclose(found.numpy(), wanted, atol=1e-12)


def test_a_planted_preference_is_learned(tuned):
    _, spec, out = tuned
    after, before = spec["validation"]["accuracy"], spec["validation"]["accuracy_before"]
    assert after["n"] == 40 and after["mean"] >= 0.95 and after["low"] > before["mean"]
    assert spec["validation"]["gain"]["mean"] == pytest.approx(after["mean"] - before["mean"])
    assert read_json(out / "spec.json") == spec
    assert spec["counts"]["train"] + spec["counts"]["validation"] + 40 == 160


def test_scorers_load_it_and_give_what_was_measured(tuned, pairs):
    options, spec, out = tuned
    data = read_preferences("x", str(pairs), "", "")
    captions = [row.caption for row in data.rows]
    test = split_by_text("x", captions, options.validation_share, options.test_share, 0)[2]
    scorer = make_scorer("pickscore", {"model": str(out), "processor": str(out)})
    scorer.load("cpu", "float32")
    science = make_scorer("sciscore", {"model": str(out)})
    plain = make_scorer("clip", {"model": str(out), "library": "transformers", "scaling": "logit"})
    right = []
    for n in test:
        row = data.rows[n]
        both = [Candidate(f"{n}-{i}", "r", i, 0, row.caption, data.encoded(row.images[i])) for i in (0, 1)]
        values = [s.value for s in scorer.score(both)]
        right.append(float((values[0] > values[1]) == (row.p > 0.5)))
        if n == test[0]:
            for other in (science, plain):
                other.load("cpu", "float32")
                assert [s.value for s in other.score(both)] == pytest.approx(values, abs=1e-6)
    assert np.mean(right) == spec["validation"]["accuracy"]["mean"]


def test_the_base_is_left_alone_and_a_refit_does_nothing(tuned, clip, capsys):
    options, spec, out = tuned
    stamp = (out / "spec.json").stat().st_mtime_ns
    assert ClipPreferenceFitter(options).run() == spec and (out / "spec.json").stat().st_mtime_ns == stamp
    flags = [
        "--pairs",
        options.pairs,
        "--model",
        str(clip),
        "--out",
        str(out),
        "--test_share",
        "0.25",
        "--device",
        "cpu",
    ]
    flags += [x for k, v in FAST.items() if k not in ("device", "learning_rate") for x in (f"--{k}", str(v))]
    assert prefkit(["fit", "clip_preference", *flags, "--learning_rate", "0.002"]) != 0
    assert "learning_rate: stored 0.001, requested 0.002" in capsys.readouterr().err
    assert prefkit(["fit", "clip_preference", *flags, "--learning_rate", "0.001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation"] == spec["validation"]


def test_the_explicit_term_teaches_prompts(pairs, clip, tmp_path):
    out = tmp_path / "science"
    more = FAST | {"explicit_weight": 0.25, "reduction": "sum", "steps": 40}
    ClipPreferenceFitter(ClipPreferenceFit(pairs=str(pairs), model=str(clip), out=str(out), **more)).run()
    rng = np.random.default_rng(9)
    margins = []
    for model in (clip, out):
        scorer = make_scorer("sciscore", {"model": str(model)})
        scorer.load("cpu", "float32")
        shown = [Candidate(f"{t}{model}", "r", 0, 0, f"{t} aab", picture("red", rng)) for t in ("r", "b")]
        explicit, superficial = (s.value for s in scorer.score(shown))
        margins.append(explicit - superficial)
    assert margins[1] > margins[0] + 1 and margins[1] > 0


def test_open_clip_folders_load_by_path(pairs, tmp_path):
    out = tmp_path / "tiny"
    more = FAST | {"steps": 4, "validate_every": 2, "learning_rate": 1e-4}
    spec = ClipPreferenceFitter(
        ClipPreferenceFit(pairs=str(pairs), model="tiny", library="open_clip", out=str(out), **more)
    ).run()
    assert spec["training"]["best_step"] > 0
    shown = Candidate("0", "r", 0, 0, "a red hat", picture("red", np.random.default_rng(0)))
    values = []
    for model in (str(out), str(tiny.CLIP)):
        scorer = make_scorer("clip", {"model": f"local-dir:{model}"})
        scorer.load("cpu", "float32")
        values.append(scorer.score([shown])[0].value)
    assert abs(values[0] - values[1]) > 1e-4


@pytest.fixture
def voted(tmp_path):
    """A run of six candidates, and votes on them: a win, a probability, a tie, a failure and one on a refused image."""
    from prefkit.store.table import candidate_row
    from prefkit.types import Request

    store, rng = Store.create(tmp_path / "run"), np.random.default_rng(0)
    store.write_requests([Request(f"r{i}", f"hat {'abc'[i]}", extra={"explicit": "x"}) for i in range(3)])
    made = [
        Candidate(f"c{i}", f"r{i // 2}", i % 2, i, image=picture(("red", "blue")[i % 2], rng), sha256=f"{i}")
        for i in range(6)
    ]
    store.candidates("g").append([candidate_row(c) for c in made])
    votes = [
        Comparison("c0", "c1", "a", "me"),
        Comparison("c2", "c3", "b", "me", probability=0.3),
        Comparison("c2", "c3", "tie", "you"),
        Comparison("c0", "c1", None, "you", error="no answer"),
        Comparison("c4", "c5", "a", "me"),
    ]
    store.comparisons("votes").append([comparison_row(v) for v in votes])
    (store.folder / "decisions.csv").write_text("id,verdict,reason,by\nc5,remove,,\n")
    return store


def test_votes(voted):
    data = read_preferences("x", "", str(voted.folder), "votes")
    assert sorted((row.caption, row.p, row.images) for row in data.rows) == [
        ("hat a", 1.0, ("c0", "c1")),
        ("hat b", 0.3, ("c2", "c3")),
        ("hat b", 0.5, ("c2", "c3")),
    ]
    assert data.open("c0").getpixel((3, 3))[0] > 150
    with pytest.raises(UsageError, match="has no text under superficial"):
        read_preferences("x", "", str(voted.folder), "votes", ("explicit", "superficial"))
    with pytest.raises(UsageError, match="has no comparisons 'other'"):
        read_preferences("x", "", str(voted.folder), "other")


def test_sides_ties_and_what_is_refused(tmp_path):
    found = rows(4)
    found[0] |= {"label_0": 1.0, "label_1": 0.0, "p": 0.7}
    found[1] |= {"label_0": 0.0, "label_1": 1.0, "p": 0.7}
    found[2] |= {"label_0": 0.5, "label_1": 0.5}
    found[3] |= {"label_0": 1.0, "label_1": 1.0}
    data = read_preferences("x", str(written(tmp_path / "a", found)), "", "")
    assert [row.p for row in data.rows] == pytest.approx([0.7, 0.3, 0.5, 0.5])
    found[3] |= {"label_0": 2.0}
    with pytest.raises(UsageError, match="row 3.*labels 2.0 and 1.0"):
        read_preferences("x", str(written(tmp_path / "b", found)), "", "")
    with pytest.raises(UsageError, match="no column jpg_0"):
        read_preferences("x", str(written(tmp_path / "c", [{"caption": "x", "jpg_1": b""}])), "", "")
    with pytest.raises(UsageError, match="give --pairs FOLDER, or --run"):
        read_preferences("x", "", str(tmp_path), "")


def test_no_prompt_in_two_parts_and_intervals_over_prompts():
    texts = [f"Hat {i % 20}" if i % 2 else f"hat  {i % 20}" for i in range(200)]
    parts = split_by_text("x", texts, 0.2, 0.3, 0)
    keys = [{texts[n].casefold().replace("  ", " ") for n in part} for part in parts]
    assert [len(k) for k in keys] == [10, 4, 6] and sum(map(len, parts)) == 200
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    with pytest.raises(UsageError, match="2 different prompts are too few"):
        split_by_text("x", ["a", "b"], 0.1, 0.1, 0)
    values = [
        float(int(t.split()[1]) < 10) for t in texts
    ]  # all rows of a prompt alike: 20 independent values, not 200
    wide, naive = clustered(values, texts), clustered(values, [str(i) for i in range(200)])
    assert wide["mean"] == 0.5 and wide["high"] - wide["low"] > 2 * (naive["high"] - naive["low"])


def test_a_linear_bag_of_words_reads_a_condition_but_no_equality():
    """Rust: the wording gives the answer. An object is bright in light of its own colour: an equality is not linear."""
    facts = [(f"a {o} in {c}", f"a {r} {o}", f"a {w} {o}") for o in "abcdefgh" for c, r, w in (("rain", "rusty", "clean"), ("oil", "clean", "rusty"))]  # fmt: skip
    unseen = [(f"a {o} in {c}", f"a {r} {o}", f"a {w} {o}") for o in "xyz" for c, r, w in (("rain", "rusty", "clean"), ("oil", "clean", "rusty"))]  # fmt: skip
    assert predictions(facts, facts[:2], unseen) == [1.0] * 6
    colours = ["red", "green", "blue", "pink"]
    equal = [
        (f"{a} thing in {b} lamp", *(("bright", "dark") if a == b else ("dark", "bright")))
        for a in colours
        for b in colours
    ]
    balanced = [row for row in equal for _ in range(3 if row[1] == "bright" else 1)]
    assert np.mean(predictions(balanced, balanced, balanced)) < 0.8
    assert predictions(facts, [], [("?", "!", "!!")]) == [0.5] and predictions([], [], facts) == [0.5] * 16


@pytest.fixture(scope="module")
def science(tmp_path_factory):
    """A run with tuples of two laws: 40 requests to train on, 10 in split test and 10 in split other. Red is right."""
    from prefkit.store.table import candidate_row
    from prefkit.types import Request

    store, rng = Store.create(tmp_path_factory.mktemp("science") / "run"), np.random.default_rng(0)
    requests, made, votes = [], [], []
    for i in range(60):
        name = "".join(chr(97 + int(d)) for d in f"{i:02d}")
        texts = {
            "explicit": [f"r hat {name}", f"r cap {name}"],
            "superficial": f"b hat {name}",
            "subject": f"hat {name}",
        }
        texts |= {"implicit": [f"x hat {name}", f"y hat {name}"], "law": ("rust", "heat")[i % 2]}
        if i == 59:
            texts = {"explicit": f"r hat {name}", "superficial": f"b {name}", "law": ""}
        split = "train" if i < 40 else "test" if i < 50 else "other"
        requests.append(Request(f"r{i}", f"x hat {name}", split, texts))
        for n, colour in enumerate(("red", "blue")):
            made.append(Candidate(f"c{i}-{n}", f"r{i}", n, n, image=picture(colour, rng, 8), sha256=f"{i}-{n}"))
        votes.append(Comparison(f"c{i}-0", f"c{i}-1", "a", "truth"))
    store.write_requests(requests)
    store.candidates("g").append([candidate_row(c) for c in made])
    store.comparisons("votes").append([comparison_row(v) for v in votes])
    return store


def test_tuples_get_controls_by_law_and_by_split(science, clip, tmp_path, cli):
    flags = {"run": science.folder, "votes": "votes", "model": clip, "out": tmp_path / "out", "by": "law"}
    flags |= {
        "test_splits": "[test, other]",
        "explicit_weight": 0.25,
        "reduction": "sum",
        "steps": 12,
        "validate_every": 6,
    }
    flags |= {"learning_rate": 1e-3, "warmup": 2, "device": "cpu"}
    arguments = [text for key, value in flags.items() for text in (f"--{key}", value)]
    code, out, err = cli("fit", "clip_preference", *arguments)
    assert code == 0, err
    spec = read_json(tmp_path / "out" / "spec.json")
    assert spec["counts"]["test"] == 20 and spec["counts"]["train"] + spec["counts"]["validation"] == 40
    controls = spec["controls"]
    assert controls["chance"] == 0.5 and controls["bag_of_words"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 20}
    assert {
        name: controls[name]["n"] for name in ("explicit", "explicit_before", "bare", "bare_before")
    } == dict.fromkeys(("explicit", "explicit_before", "bare", "bare_before"), 20)
    laws, splits = spec["by"]["law"], spec["by"]["split"]
    assert {law: part["accuracy"]["n"] for law, part in laws.items()} == {"heat": 9, "rust": 10, "unknown": 1}
    assert {name: part["explicit"]["n"] for name, part in splits.items()} == {"other": 10, "test": 10}
    whole = spec["validation"]["accuracy"]["mean"]
    assert whole == pytest.approx(sum(part["accuracy"]["mean"] * part["accuracy"]["n"] for part in laws.values()) / 20)
    assert "law rust: accuracy" in out and "bag_of_words" in out
    for more, text in (
        (("--test_splits", "[novel]"), "no pair is in split 'novel'; the splits are other, test, train"),
        (("--by", "lore"), "no pair has a text under 'lore'"),
        (("--explicit", "clear"), "has no text under clear"),
    ):
        code, _, err = cli("fit", "clip_preference", *arguments, *more, "--out", tmp_path / "other")
        assert code == 2 and text in err


def test_each_control_has_its_text_and_its_reason(science):
    data = read_preferences(
        "x", "", str(science.folder), "votes", (), ("explicit", "superficial", "subject", "implicit")
    )
    rows = {row.images[0]: row for row in data.rows}
    controls = Controls("explicit", "superficial", "subject")
    assert controls.bare(rows["c0-0"]) == "hat aa" and controls.explicit_prompt(rows["c0-0"]) == "r hat aa"
    assert controls.bare(rows["c59-0"]) == "fj"  # the word that all three prompts share
    test = [rows["c0-0"], rows["c2-0"]]
    scores = torch.tensor([[[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]], [[1.0, 3.0, 2.0], [2.0, 2.0, 1.0]]])
    found = controls.measures(test, ([], [], [0, 1]), scores, -scores)
    assert [found[name].tolist() for name in ("accuracy_before", "explicit_before", "bare_before")] == [
        [1, 0],
        [0, 1],
        [0.5, 1],
    ]
    assert found["accuracy"].tolist() == [0, 1] and np.isnan(found["bag_of_words"]).all()
    bare = Controls("none", "none", "none").measures(test, ([], [], [0, 1]), scores, scores)
    part = Controls("none", "none", "none").report(test, bare, None, False)
    assert (
        part["controls"]["explicit"]["mean"] is None and "no explicit prompts" in part["controls"]["explicit"]["reason"]
    )
    assert (
        part["validation"]["accuracy"]["low"] is None
        and "2 prompts are too few" in part["validation"]["accuracy"]["reason"]
    )
    assert "share" in part["controls"]["bare_before"]["reason"] and part["by"] == {}


def test_training_draws_among_wordings(science):
    import random

    data = read_preferences("x", "", str(science.folder), "votes", ("explicit",), ("implicit",))
    row = next(row for row in data.rows if row.images[0] == "c0-0")
    drawn = random.Random(0)
    assert {wording(row, "implicit", drawn) for _ in range(20)} == {"x hat aa", "y hat aa"}
    assert {wording(row, "explicit", drawn) for _ in range(20)} == {"r hat aa", "r cap aa"}
    assert wording(row, "missing", drawn) == row.caption == "x hat aa"
