"""The contact sheet: what it shows, and what it refuses."""

from __future__ import annotations

import pytest
from report_synthetic import candidates, requests, store_rows

from prefkit.errors import UsageError
from prefkit.report import contact_sheet
from prefkit.store import Store
from prefkit.store.summary import score_table


def test_all_candidates_of_a_request_with_ids_and_scores(full):
    frame = full.candidates("own").frame(["id", "request_id"])
    page = contact_sheet(full, ["train0003"]).read_text()
    own = set(frame[frame.request_id == "train0003"].id)
    assert len(own) == 4 and all(f'<span class="id">{name}</span>' in page for name in own)
    assert not any(name in page for name in set(frame.id) - own)
    assert page.count("data:image/webp") == 4 and "4 candidates." in page
    assert "decisions.csv" in page


def test_a_verdict_and_a_failure_are_shown(full):
    page = contact_sheet(full, ["train0000", "train0001"]).read_text()
    assert "CUDA out of memory &lt;b&gt;at" in page and '<span class="tag">reject</span>' in page
    assert "<script>alert" not in page and page.count("<script") == 2  # the sheet's own


def test_filter_picks_what_the_query_says(full):
    scores = score_table(full)
    wanted = set(scores[scores["align"] < 0.5].index)
    page = contact_sheet(full, filter="align < 0.5").read_text()
    every = set(full.candidates("own").frame(["id"]).id)
    assert wanted and {name for name in every if name in page} == wanted


def test_request_and_filter_together(full):
    page = contact_sheet(full, ["train0004"], "index == 2 and generator == 'own'").read_text()
    assert page.count("<img") == 1


@pytest.mark.parametrize(
    "query",
    ["align <", "nothing < 1", "align + 1", "@__import__('os').getcwd() == ''", "__import__('os')", "index = 3"],
)
def test_a_query_that_is_none_is_refused_by_name(full, query):
    with pytest.raises(UsageError, match="filter"):
        contact_sheet(full, filter=query)


def test_what_cannot_be_shown(full):
    with pytest.raises(UsageError, match="did you mean 'train0003'"):
        contact_sheet(full, ["trian0003"])
    with pytest.raises(UsageError, match="no candidate"):
        contact_sheet(full, filter="align > 1e9")
    with pytest.raises(UsageError, match="--request ID"):
        contact_sheet(full)
    with pytest.raises(UsageError):
        contact_sheet(full, [])


def test_a_long_sheet_is_cut_and_says_so(tmp_path):
    from dataclasses import replace

    store = Store.create(tmp_path / "long")
    members = requests(2)
    store.write_requests(members)
    one = candidates(members, 1, "own")[0]
    store_rows(store, "own", [replace(one, id=f"{i:06d}", index=i) for i in range(1003)], part=600)
    page = contact_sheet(store, filter="index >= 0").read_text()
    assert "the first 1,000 of 1,003 candidates" in page and page.count("<img") == 1000


def test_scores_named_as_columns_and_generators_of_equal_settings(tmp_path):
    store = Store.create(tmp_path / "run")
    members = requests(1, "train")
    store.write_requests(members)
    made = candidates(members, 2, "own")
    for generator in ("own", "twin"):  # the same settings under two names: the same candidates
        store_rows(store, generator, made)
    for alias in ("index", "generator"):
        store.scores(alias).append([{"id": c.id, "value": 0.5 + c.index} for c in made])
    page = contact_sheet(store, filter="score_index > 1 and index == 1 and score_generator == 1.5").read_text()
    assert page.count("<img") == 1 and made[1].id in page and "index <b>1.5</b>" in page
