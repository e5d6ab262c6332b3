"""Conditions on scores compare values; they cannot write files, although pandas evaluates them."""

from __future__ import annotations

import pandas as pd
import pytest

from prefkit.errors import UsageError
from prefkit.store.query import matching

TABLE = pd.DataFrame({"index": [0, 1], "align": [0.1, 0.6], "a.b": [1.0, 2.0], "request_id": ["a.to", "it's"]})


@pytest.mark.parametrize(
    "query",
    [
        'align.to_csv("FILE") == 1',
        'request_id . to_csv("FILE") == 1',
        'index.values.tofile("FILE") == 1',
        r"'\'' == align.to_csv('FILE') + '\''",
        """'''a'b''' == align.to_csv('''FILE''')""",
        """`a.b` == 1 and "'" == align.to_csv("FILE") + "'" """,
        "align < 1 # '\nalign.to_csv('FILE')",
        "align == f'{align.to_csv(\"FILE\")}'",
        "(align + 1.).to_csv('FILE') == 1",
    ],
)
def test_a_condition_writes_nothing(query, tmp_path):
    with pytest.raises(UsageError, match="--filter"):
        matching(TABLE, query.replace("FILE", str(tmp_path / "file")), "--filter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "query, found",
    [
        ("align < .5", [True, False]),
        ("align < 1.e-1 or `a.b` > 1.5", [False, True]),
        ('request_id == "a.to" and align.notna()', [True, False]),
        ("""request_id.str.startswith("it's")""", [False, True]),
    ],
)
def test_dots_in_numbers_names_and_texts(query, found):
    assert matching(TABLE, query, "--filter").tolist() == found
