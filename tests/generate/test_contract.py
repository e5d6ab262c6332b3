"""What a generator may return, and what it may do to the requests that it is given."""

from __future__ import annotations

import json

import pytest

from prefkit.config import Generate, Recipe, Requests
from prefkit.errors import PluginError, PrefkitError
from prefkit.generate.run import run_generate
from prefkit.store import Store
from prefkit.types import Request

CLASS = """
from PIL import Image
from prefkit.types import Candidate
class G:
    def generate(self, requests, seeds):
        BODY
"""


@pytest.fixture
def generate(tmp_path):
    """generate(body of a function or class) -> the candidates in the run, by request."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"a hat {i}", extra={"tags": ["a"]}) for i in range(3)])

    def run(text, name="draw", **settings):
        (tmp_path / "g.py").write_text(text)
        entry = Generate(use=f"{tmp_path}/g.py:{name}", n=2, batch_size=3, **settings)
        recipe = Recipe(run=str(tmp_path / "run"), requests=Requests(), generate={"own": entry})
        run_generate(store, recipe, "own")
        return sorted(store.iter_candidates(), key=lambda c: (c.request_id, c.index))

    return run


def function(body):
    return f"import sys\nfrom PIL import Image\ndef draw(prompts, seeds):\n    {body}\n"


@pytest.mark.parametrize(
    "body, said",
    [
        ("return {p: Image.new('RGB', (8, 8)) for p in prompts}", "returned a dict for 3 requests"),
        ("return set(prompts)", "returned a set for 3 requests"),
        ("yield from [Image.new('RGB', (8, 8))] * 3", "returned a generator for 3 requests"),
        ("return 'abc'", "returned a str for 3 requests"),
        ("return [Image.new('RGB', (8, 8))] * 2", "returned 2 items for 3 requests"),
        ("return [b'png'] * 3", "returned a bytes where a PIL image is needed"),
        ("return [[Image.new('RGB', (8, 8))]] * 3", "returned a list where a PIL image is needed"),
        ("sys.exit(0)", "tried to end the program: SystemExit: 0"),
        ("raise GeneratorExit", "tried to end the program: GeneratorExit"),
    ],
)
def test_what_is_no_image_is_refused(generate, body, said):
    with pytest.raises(PluginError, match=said):
        generate(function(body))


def test_a_canvas_that_is_painted_anew_gives_different_images(generate):
    """Images are encoded in another thread, while the generator may paint its next one on the same canvas."""
    text = "from PIL import Image\nn = []\ncanvas = Image.new('RGB', (256, 256))\ndef draw(prompts, seeds):\n" \
           "    n.append(1)\n    canvas.paste((len(n), 0, 0), (0, 0, 256, 256))\n    return [canvas] * len(prompts)\n"  # fmt: skip
    found = generate(text)
    assert sorted(c.pil().getpixel((5, 5))[0] for c in found) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", ["F", "I", "LAB", "HSV", "YCbCr"])
def test_an_image_that_cannot_be_encoded_fails_alone(generate, kind):
    body = f"return [Image.new('{kind}' if p.endswith('1') else 'RGB', (8, 8)) for p in prompts]"
    found = generate(function(body))
    assert len(found) == 6
    assert all((c.error is None) or ("could not be encoded" in c.error and c.request_id == "r1") for c in found)
    assert sum(c.error is None for c in found) >= 4


def test_requests_are_lent_to_a_class(generate):
    body = (
        "found = [Candidate('x', r.request_id, 0, 0, decoded=Image.new('RGB', (8, 8)), extra={'tags': len(r.extra['tags'])})"
        " for r in requests]\n        [r.extra['tags'].append('b') for r in requests]\n        return found"
    )
    assert {c.extra["tags"] for c in generate(CLASS.replace("BODY", body), "G")} == {1}


@pytest.mark.parametrize(
    "body, said",
    [
        ("return [Candidate('x', r.request_id, 0, 0, decoded=Image.new('RGB', (8, 8))) for r in requests[::-1]]", "order of the requests"),
        ("return [Image.new('RGB', (8, 8)) for r in requests]", "where a Candidate is needed"),
        ("return [Candidate('x', r.request_id, 0, 0, extra=['a']) for r in requests]", "extra must be a dict"),
        ("return [Candidate('x', r.request_id, 0, 0, payload='a') for r in requests]", "payload bytes"),
        ("return [Candidate('x', r.request_id, 0, 0) for r in requests]", "holds no image"),
    ],
)  # fmt: skip
def test_candidates_of_a_class_are_checked(generate, body, said):
    with pytest.raises(PrefkitError, match=said):
        generate(CLASS.replace("BODY", body), "G")


#: mode -> the pixel that a viewer shows of an image filled with it, None where it cannot be stored
FILLED = {
    "Image.new('CMYK', (8, 8), (0, 255, 255, 0))": (255, 0, 0),
    "Image.new('HSV', (8, 8), (0, 255, 255))": (255, 0, 0),
    "Image.new('F', (8, 8), 1.0)": (255, 255, 255),
    "Image.new('RGBa', (8, 8), (0, 0, 0, 0))": (255, 255, 255),
    "Image.new('I;16', (8, 8), 65535)": (255, 255, 255),
    "Image.new('F', (8, 8), float('nan'))": None,
    "Image.new('RGB', (0, 0))": None,
}


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("made", FILLED)
def test_images_of_any_mode_are_stored_as_shown_or_counted_as_failed(generate, made, kind):
    body = f"return [{made} if 'hat 1' in p else Image.new('RGB', (8, 8)) for p in prompts]"
    found = generate(function(body), format=kind)
    pixel = FILLED[made]
    assert [c.error is None for c in found] == [True, True, pixel is not None, pixel is not None, True, True]
    assert pixel is None or all(c.pil().getpixel((3, 3)) == pixel for c in found[2:4])


def test_images_that_cannot_be_encoded_are_counted_as_failed(tmp_path, generate, cli):
    with pytest.raises(PrefkitError, match="every candidate of the first batch failed: the image could not be encoded"):
        generate(function("return [Image.new('RGB', (0, 0)) for p in prompts]"))
    (tmp_path / "h.py").write_text(
        function("return [Image.new('RGB', (8, 8) if s % 2 else (0, 0)) for s in range(len(seeds))]")
    )
    (tmp_path / "p.txt").write_text("a\nb\n")
    flags = ["--requests.source", tmp_path / "p.txt", "--requests.test_share", 0, "--n", 2, "--json"]
    code, out, _ = cli("generate", tmp_path / "r", "--generate.own.use", f"{tmp_path}/h.py:draw", *flags)
    counts = json.loads(out)["own"]
    assert code == 3 and (counts["made"], counts["failed"]) == (2, 2)


def test_a_generator_that_cannot_be_created_is_a_sentence(generate):
    text = "class G:\n    def __init__(self):\n        raise ValueError('no \\ud800 here')\n    def generate(self, r, s): pass\n"
    with pytest.raises(PluginError, match=r"g.py:G could not be created: ValueError: no \? here \(.*g.py, line 3\)"):
        generate(text, "G")
