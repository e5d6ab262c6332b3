"""@prefkit.scorer, licences, and plug-ins of other packages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import prefkit
from prefkit import registry
from prefkit.errors import FingerprintError, PluginError, UsageError
from prefkit.score.core import make_scorer
from prefkit.score.embed.weights import verified_as
from prefkit.score.licence import check_licence, licences, restriction
from prefkit.store.table import check_fingerprint, compare_settings
from prefkit.types import Candidate
from prefkit.verified import shown

README = Path(__file__).parents[2] / "README.md"

FILE = '''
import prefkit

@prefkit.scorer(name="kept", version=2, range=(0, 100), higher_is_better=False, requires=["image", "user"],
                licence="MIT", evaluation_only=True, batch=2, scope="absolute")
def width(images, prompts):
    """Width in pixels.

    More about it."""
    return [i.width for i in images]

def bare(images, prompts, user, item=None):
    return [1.0 for _ in images]

@prefkit.scorer(licence="CC-BY-NC-4.0")
def stingy(images, prompts):
    return [1.0 for _ in images]
'''


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_a_function_says_what_it_means(file):
    scorer = make_scorer(f"{file}:width", {})
    spec, code = scorer.spec(), hashlib.sha256(FILE.encode()).hexdigest()[:16]
    assert (spec.name, spec.version, spec.formula) == ("kept", f"2 {code}", "Width in pixels.")
    assert (spec.range, spec.higher_is_better, spec.licence, spec.evaluation_only) == ((0, 100), False, "MIT", True)
    assert scorer.requires == {"image", "user"} and scorer.batch == 2
    file.write_text(FILE + "\n")
    assert make_scorer(f"{file}:width", {}).spec().version != spec.version


def test_a_bare_function_is_as_before(file):
    scorer = make_scorer(f"{file}:bare", {})
    assert scorer.requires == {"image", "prompt", "user"} and scorer.context == ["user", "item"]
    spec = scorer.spec()
    assert spec.name == f"{file}:bare" and spec.version == hashlib.sha256(FILE.encode()).hexdigest()[:16]
    with pytest.raises(UsageError, match="takes no options, but got model"):
        make_scorer(f"{file}:bare", {"model": "x"})


def test_what_cannot_be_meant_is_refused():
    for wrong, said in [
        ({"range": (1, 0)}, "lowest value must come first"),
        ({"scope": "global"}, "choose absolute or within_request"),
        ({"batch": 0}, "at least 1"),
        ({"requires": "image"}, "a list of names"),
    ]:
        with pytest.raises(UsageError, match=said):
            prefkit.scorer(**wrong)


def test_a_function_within_requests_gets_whole_requests(tmp_path):
    from prefkit.api import Run
    from prefkit.config import Recipe, Score
    from prefkit.store import Store
    from prefkit.store.table import candidate_row
    from prefkit.types import Request

    (tmp_path / "mine.py").write_text(
        'import prefkit\n@prefkit.scorer(scope="within_request", batch=2)\ndef share(images, prompts):\n'
        "    return [i.width / sum(j.width for j in images) for i in images]\n"
    )
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", "a hat") for i in range(2)])
    rows = [Candidate(f"c{i}", f"r{i % 2}", i, i, image=png(4 + i)) for i in range(6)]
    store.candidates("own").append([candidate_row(c) for c in rows])
    Run(recipe=Recipe(run=str(tmp_path / "run"), score={"s": Score(f"{tmp_path}/mine.py:share")})).score()
    values = store.scores("s").frame().set_index("id").value
    assert values["c0"] == 4 / (4 + 6 + 8) and values["c5"] == 9 / (5 + 7 + 9)
    assert json.loads((store.scores("s").folder / "spec.json").read_text())["scope"] == "within_request"


def png(width):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, 4)).save(buffer, "PNG")
    return buffer.getvalue()


# ---- licences


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("Apache-2.0", None),
        ("MIT", None),
        ("CC0-1.0", None),
        ("that of the weights", None),
        ("", None),
        ("LGPL-3.0", None),
        ("AGPL-3.0-only", "forces copyleft"),
        ("GPL-3.0-or-later", "forces copyleft"),
        ("GNU GPL v3", "forces copyleft"),
        ("cc-by-nc-4.0", "forbids commercial use"),
        ("CC-BY-NC-ND-3.0", "forbids commercial use"),
        ("PolyForm-Noncommercial-1.0.0", "forbids commercial use"),
        ("S-Lab-1.0", "forbids commercial use"),
        ("SMPL", "forbids commercial use"),
        ("for non-commercial research only", "forbids commercial use"),
    ],
)
def test_the_table_of_licences(licence, said):
    assert restriction(licence) == said


def test_a_restricted_licence_is_refused_before_loading(recipe, cli, file):
    assert cli("generate", "-r", recipe, "-q", "--limit", 1)[0] == 0
    run, use = recipe.parent / "run", f"{file}:stingy"
    code, _, err = cli("score", "-r", recipe, "--score.s.use", use, "--name", "s")
    assert code == 2 and "score.s: the licence of the scorer, CC-BY-NC-4.0, forbids commercial use" in err
    assert '--accept-license "CC-BY-NC-4.0"' in err and not (run / "scores/s").exists()
    given = ("--name", "s", "--score.s.use", use)
    code, _, err = cli("score", "-r", recipe, *given, "--accept-license", "cc-by-nc-4.0")
    assert code == 0, err
    assert json.loads((run / "scores/s/spec.json").read_text())["licence"] == "CC-BY-NC-4.0"
    code, _, err = cli("score", "-r", recipe, *given, "--accept-license", "MIT")
    assert code == 2 and "forbids" in err


def test_weights_of_the_users_choice(clip, tmp_path):
    import shutil

    scorer = make_scorer("clip", {"model": "ViT-B-32", "pretrained": "metaclip_400m"})
    with pytest.raises(UsageError, match="the licence of metaclip_400m, CC-BY-NC-4.0, forbids commercial use"):
        check_licence(scorer, ["AGPL-3.0"], "score.a")
    check_licence(scorer, ["CC-BY-NC-4.0"], "score.a")
    folder = tmp_path / "model"
    shutil.copytree(clip, folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: s-lab-1.0\ntags:\n- x\n---\n# A model\n")
    scorer = make_scorer("clip", {"model": str(folder), "library": "transformers"})
    assert licences(scorer)[str(folder)] == "s-lab-1.0"
    with pytest.raises(UsageError, match="s-lab-1.0, forbids commercial use"):
        check_licence(scorer, [], "score.a")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    check_licence(scorer, [], "score.a")


@pytest.mark.parametrize(
    ("name", "key", "licence"),
    [
        ("pickscore", "model", "MIT"),
        ("sciscore", "model", "Apache-2.0"),
        ("siglip", "model", "Apache-2.0"),
        ("imagereward", "model", "Apache-2.0"),
        ("aesthetic", "head", "Apache-2.0"),
        ("hpsv2", "checkpoint", "Apache-2.0"),
    ],
)
def test_other_weights_have_their_own_licence(name, key, licence, tmp_path, monkeypatch):
    for module in ("prefkit.models.load.revision.weights_revision", "prefkit.score.embed.weights.file_revision"):
        monkeypatch.setattr(module, lambda *_: "1")
    assert make_scorer(name, {}).spec().licence == licence
    spec = json.loads(json.dumps(asdict(make_scorer(name, {key: str(tmp_path)}).spec())))
    assert spec["licence"] == "that of the weights"
    compare_settings(tmp_path, spec | {"licence": licence}, spec, "")  # earlier runs are continued


def test_plugins_shows_licences_and_what_was_verified(cli):
    code, out, _ = cli("plugins", "--json")
    rows = {row["name"]: row for row in json.loads(out) if row["kind"] == "scorer"}
    assert code == 0 and rows["pickscore"]["licence"] == "MIT" and rows["pickscore"]["verified"] == "no"
    assert rows["jpeg"]["verified"] == "needs none" and rows["clip"]["licence"] == "that of the weights"
    assert all(row["licence"] for row in rows.values())
    for name in (
        "hpsv2",
        "imagereward",
        "jpeg",
        "ocr",
        "siglip",
    ):  # what is read from the source is what the class says
        source = registry.facts("scorer", name)
        assert source["licence"] == "Apache-2.0"


def test_the_page_of_scorers_says_what_plugins_says_was_verified(cli):
    rows = {row["name"]: row for row in json.loads(cli("plugins", "--json")[1]) if row["kind"] == "scorer"}
    table = (README.parent / "docs/scorers.md").read_text().split("# Scorers")[1].split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    said = {name: cell[-1] for cell in cells for name in re.findall(r"`(\w+)`", cell[0])}
    assert said == {name: re.sub(r", sha256 [0-9a-f ]+", "", row["verified"]) for name, row in rows.items()}


def test_the_page_of_verified_weights_has_every_claim(cli):
    page = (README.parent / "docs/verification.md").read_text()
    claims = [row["verified"] for row in json.loads(cli("plugins", "--json")[1]) if row["kind"] == "scorer"]
    hashes = {word for claim in claims for word in re.findall(r"\b[0-9a-f]{8}\b", claim)}
    assert hashes and hashes <= set(re.findall(r"`([0-9a-f]{8})`", page))


def test_a_claim_belongs_to_the_files_that_are_loaded(tmp_path):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    first.write_bytes(b"one"), second.write_bytes(b"two")
    known = {"Net, net 1.0": [hashlib.sha256(data).hexdigest() for data in (b"one", b"two")]}
    assert verified_as(known, [second, first]) == "Net, net 1.0, sha256 7692c3ad 3fc4ccfe"
    assert verified_as(known, [first]) == verified_as(known, []) == ""
    second.write_bytes(b"two, tuned")
    assert verified_as(known, [first, second]) == ""


@pytest.mark.parametrize(
    ("claimed", "text"),
    [("", "no"), ("no weights", "needs none"), ("x", "yes: x")],
)
def test_a_claim_as_people_read_it(claimed, text):
    assert shown(claimed) == text


def test_a_claim_does_not_define_a_score(tmp_path):
    path, spec = tmp_path / "spec.json", dataclasses.asdict(make_scorer("jpeg", {}).spec())
    stored = {"scorers": {"size": spec}}
    check_fingerprint(path, stored, "")
    check_fingerprint(path, {"scorers": {"size": spec | {"verified": False}}}, "")
    with pytest.raises(FingerprintError, match="scorers.size.version: stored .*, requested .2."):
        check_fingerprint(path, {"scorers": {"size": spec | {"version": "2"}}}, "")
    check_fingerprint(tmp_path / "options.json", {"verified": 1}, "")
    with pytest.raises(FingerprintError, match="verified: stored 1, requested 2"):  # an option of a plug-in
        check_fingerprint(tmp_path / "options.json", {"verified": 2}, "")


# ---- plug-ins of other packages


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(name, "scorer name = module:Class", files) puts an installed package on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, entry, licence="MIT", **files):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\nSummary: s of {name}\nLicense: {licence}\n")
        (info / "entry_points.txt").write_text(f"[prefkit.scorers]\n{entry}\n")
        for file, text in files.items():
            (tmp_path / f"{file}.py").write_text(text)

    return install


SCORER = """
from prefkit.types import Score, ScorerSpec
class Ones:
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options): pass
    def spec(self): return ScorerSpec("ones", "1")
    def load(self, device, dtype): pass
    def score(self, batch): return [Score(1.0) for _ in batch]
"""


def test_two_plugins_of_one_name_are_an_error_that_names_both(package, cli):
    package("one", "shared = one_mod:Ones\nalone = one_mod:Ones", one_mod=SCORER)
    package("two", "shared = two_mod:Ones\njpeg = two_mod:Ones", two_mod=SCORER)
    with pytest.raises(PluginError, match=r"one_mod:Ones \(package one\) and two_mod:Ones \(package two\)") as caught:
        make_scorer("shared", {})
    assert "Name one as package.module:Name" in str(caught.value)
    with pytest.raises(PluginError, match=r"prefkit.score.scorers.jpeg and two_mod:Ones \(package two\)"):
        make_scorer("jpeg", {})
    assert make_scorer("alone", {}).score([None])[0].value == 1.0
    assert make_scorer("two_mod:Ones", {}).spec().name == "ones"
    assert make_scorer("pickscore", {}).requires  # others are not affected
    code, out, err = cli("plugins", "--json")
    rows = [row for row in json.loads(out) if row["name"] in ("shared", "jpeg")]
    assert code == 0 and len(rows) == 4 and "several plug-ins provide a scorer named 'shared'" in err
    assert {row["licence"] for row in rows if row["from"] == "two_mod:Ones"} == {"MIT"}


def test_a_plugin_that_cannot_be_imported_is_listed_and_fails_only_when_used(package, tmp_path):
    package("bad", "broken = bad_mod:Ones", bad_mod="raise RuntimeError('no such driver')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom prefkit.cli.main import run\nrun(['plugins'])\n"
        "assert 'bad_mod' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "broken" in done.stdout and "s of bad" in done.stdout
    assert make_scorer("jpeg", {})
    with pytest.raises(PluginError, match="broken .bad_mod:Ones. could not be imported: RuntimeError: no such driver"):
        make_scorer("broken", {})
    with pytest.raises(UsageError, match="Did you mean 'broken'"):
        make_scorer("brokn", {})


@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("http://127.0.0.1:8765", "127-0-0-1-8765"),
        ("https://host.example/v1/", "host-example"),
        ("exec:python /some/where/judge.py --fast", "judge"),
        ("exec:./judge", "judge"),
        ("taste.py:muted", "muted"),
        ("package.module:Class", "Class"),
        ("clip", "clip"),
    ],
)
def test_the_name_of_an_entry_that_has_only_a_use(use, name):
    from prefkit.config.resolve import resolve

    assert registry.short_name(use) == name
    if not use.startswith(("taste", "package")):
        assert list(resolve("runs/x", None, "score", [("use", use)]).score) == [name]


def test_a_file_edited_at_once_is_read_again(tmp_path):
    """Python's cached code has the size of the file and the second of its last change."""
    import os

    path, values = tmp_path / "mine.py", []
    for value in "12":
        path.write_text(f"def mine(images, prompts):\n    return [{value}.0] * len(images)\n")
        os.utime(path, (1e9, 1e9))
        scorer = make_scorer(f"{path}:mine", {})
        values.append(scorer.function([0], ["p"]))
    assert values == [[1.0], [2.0]]
