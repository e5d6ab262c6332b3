"""What a generator may return, and what it may do to the requests that it is given."""

from __future__ import annotations

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
        ("return {p: Image.new('RGB', (8, 8)) for p in prompts}", "returned dict for 3 requests"),
        ("return set(prompts)", "returned set for 3 requests"),
        ("yield from [Image.new('RGB', (8, 8))] * 3", "returned generator for 3 requests"),
        ("return 'abc'", "returned str for 3 requests"),
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
