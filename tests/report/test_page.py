"""report.html on whole, empty and broken runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from report_synthetic import (
    candidates,
    full_run,
    image_bytes,
    requests,
    score_rows,
    store_rows,
    write_metrics,
    write_pairs,
)

from prefkit.errors import StoreError
from prefkit.report import evidence, status, write_report
from prefkit.report.grids import by_hash
from prefkit.report.html import asset
from prefkit.report.pictures import thumbnail
from prefkit.store import Store
from prefkit.store.files import write_json

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Every tag with its attributes, all text, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text += data


def test_well_formed_and_every_section_is_there(page):
    read = Reader(page)
    assert read.open == []
    sections = [attrs["id"] for tag, attrs in read.tags if tag == "section"]
    assert sections == ["evaluation", "votes", "run", "scores", "pairs", "training", "failures"]
    links = {attrs["href"] for tag, attrs in read.tags if tag == "a"}
    assert links == {f"#{name}" for name in sections}


def test_nothing_of_a_prompt_becomes_markup(page):
    read = Reader(page)
    names = {tag for tag, _ in read.tags}
    assert not names & {"i", "iframe", "link", "object", "form"}
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    assert scripts == [asset("report.js")]
    assert all(not key.startswith("on") for _, attrs in read.tags for key in attrs)
    for shown in (
        '<script>alert("x")</script>',
        '"><img src=x onerror=alert(1)>',
        "CUDA out of memory <b>at</b> step 3",
    ):
        assert shown in read.text
    assert "\N{FOX FACE}" in read.text and "\x00" not in page and "\x07" not in page
    assert "(blank prompt)" in read.text
    assert "word " * 60 not in read.text and "10,000 characters" in read.text


def test_the_page_loads_nothing(page):
    read = Reader(page)
    for tag, attrs in read.tags:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attrs.get(key)
            assert value is None or value.startswith("#") or value.startswith("data:image/webp;base64,"), (tag, value)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert 'src="//' not in page and "http://" not in page
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_picture_and_plot_says_what_it_is(page):
    read = Reader(page)
    assert all(attrs.get("alt") for tag, attrs in read.tags if tag == "img")
    plots = [attrs for tag, attrs in read.tags if tag == "svg"]
    assert plots and all(attrs.get("aria-label") for attrs in plots)


def test_secrets_of_the_recipe_stay_out(page):
    assert "hunter2" not in page and "api_key: (hidden)" in page


def test_verdicts_intervals_and_missing_controls(page):
    text = Reader(page).text
    box = page[page.index('<div class="outcome">') : page.index("</table>")]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in box.split("<tr>")[2:]]
    assert ["dpo", "align", "training", "signal", "▲", "better"] in [row[:6] for row in rows]
    assert ["dpo", "taste", "held", "out", "○", "no", "difference", "shown"] in [row[:8] for row in rows]
    assert all(sum(int(share.rstrip("%")) for share in row[-3:]) in (99, 100, 101) for row in rows if row[-1] != "–")
    assert "win rate 0.68, 95 % interval 0.59 to 0.77" in text
    assert "Missing controls" in text and "dpo-sft: SFT on the winners" in text
    assert "Prompts in held_out that were also trained on: 2." in text
    assert "training signal" in text and "held out" in text
    assert text.count("fell by") >= 1


def test_a_judge_of_which_nobody_knows_is_neither_held_out_nor_used(tmp_path):
    row = dict.fromkeys(
        ["win_rate", "ci_low", "ci_high", "base", "tuned", "minimum_detectable", "tie_share", "best_of_n"], 0.6
    )
    row |= {"n_requests": 9, "best_of_requests": 7, "verdict": "better", "used_for_pairs": None}
    found = {"e": {"sets": {"s": {"dpo": {"align": row}}}, "settings": {"training_unknown": ["dpo"]}}}
    top, section = evidence.outcome(found), evidence.evaluation(Store(tmp_path), found)
    assert "training signal: unknown</span>" in top and ">held out<" not in top
    assert "training signal: unknown</span>" in section and 'held">held out<' not in section
    assert "of 7 requests" in section and "No record of what dpo was trained on" in section


def test_all_failed_scorer_is_said_and_not_drawn(page):
    text = Reader(page).text
    assert re.search(r"broken: all \d+ scores failed", text)
    assert "Histogram of broken" not in page and "Histogram of align" in page


def test_training_curves_hold_the_validation_bins(page):
    text = Reader(page).text
    assert "validation margin by timestep" in text and "0-199" in text and "800-999" in text
    assert "winner and loser advantage" in text


def test_winner_stands_left_whatever_side_it_is_stored_on(page, full):
    shown = re.findall(r'<figure class="thumb (win|lose)"><img src="([^"]+)"', page)
    assert [side for side, _ in shown] == ["win", "lose"] * 22
    rows = pq.read_table(full.pairs("main") / "train").to_pylist()
    assert {row["label_0"] for row in rows} == {0.0, 1.0}
    won = {thumbnail(row["jpg_0" if row["label_0"] else "jpg_1"], 288) for row in rows}
    lost = {thumbnail(row["jpg_1" if row["label_0"] else "jpg_0"], 288) for row in rows}
    assert {uri for side, uri in shown if side == "win"} == won
    assert {uri for side, uri in shown if side == "lose"} == lost


def test_widest_come_first_and_narrowest_last(page):
    gaps = [float(gap) for gap in re.findall(r'<p class="quiet">gap ([0-9.]+)</p>', page)]
    widest, narrowest = gaps[:11], gaps[11:]
    assert widest == sorted(widest, reverse=True) and narrowest == sorted(narrowest)
    assert min(widest) >= max(narrowest)


def test_grid_is_chosen_by_hash_and_not_by_order():
    ids = {f"r{i}" for i in range(50)}
    chosen = by_hash(ids)
    assert chosen == by_hash(set(sorted(ids, reverse=True))) and len(set(chosen)) == 6
    assert chosen != sorted(ids)[:6]
    assert set(by_hash(ids - {chosen[0]})) >= set(chosen[1:])


def test_an_empty_run_says_what_is_missing(tmp_path):
    store = Store.create(tmp_path / "empty")
    text = Reader(write_report(store).read_text()).text
    for said in (
        "No table has a row yet",
        "Nothing has been scored",
        "No pairs",
        "Nothing has been trained",
        "Nothing failed",
    ):
        assert said in text
    assert status(store)["requests"] == {}


def test_an_online_run_is_not_said_to_lack_candidates_scores_and_pairs(tmp_path):
    store = Store.create(tmp_path / "online")
    write_json(store.train("up") / "result.json", {"queries": 16, "rounds": 2})
    page = write_report(store).read_text()
    text = Reader(page).text
    assert "16samples of online training" in re.sub(r"\s+(?=samples)", "", text) and "0candidates" not in text.replace(
        " ", ""
    )
    assert 'id="scores"' not in page and 'id="pairs"' not in page and 'id="training"' in page


def test_a_chart_only_where_there_is_something_to_see(tmp_path):
    store = Store.create(tmp_path / "short")
    rows = [{"step": i, "loss": 1 / (i + 1), "lr": 1e-5, "margin": 0.1 * i if i < 2 else None} for i in range(6)]
    (store.train("dpo")).mkdir(parents=True)
    (store.train("dpo") / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(store).read_text()
    assert re.findall(r"<figcaption><b>(.*?)</b>", page) == ["loss"]
    table = page[page.index("Metrics without a chart: 2") :].partition("</table>")[0]
    cells = [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("<tr>")[2:]]
    assert cells == [["margin", "0", "0.1", "2"], ["lr", "1e-05", "1e-05", "6"]]


def test_sheets_of_a_training_are_shown_first_and_last(tmp_path):
    store = Store.create(tmp_path / "watched")
    folder = store.train("up") / "watch"
    folder.mkdir(parents=True)
    for step in (1, 5, 9):
        (folder / f"round-{step:04d}.png").write_bytes(image_bytes(step))
    page = write_report(store).read_text()
    assert re.findall(r'alt="(up, round[^"]*)"', page) == ["up, round 0001", "up, round 0009"]


def test_only_failures(tmp_path):
    store = Store.create(tmp_path / "failed")
    members = requests(3)
    store.write_requests(members)
    found = candidates(members, 2, "own", failed=6)
    store_rows(store, "own", found)
    store.scores("align").append(score_rows(found, 0, failed=6))
    (store.train("dpo")).mkdir(parents=True)
    (store.pairs("main") / "train").mkdir(parents=True)
    text = Reader(write_report(store).read_text()).text
    assert "all 6 scores failed" in text and "it holds no pair" in text and "No step has been recorded" in text
    assert status(store)["candidates"] == {"own": {"done": 0, "failed": 6}}


def test_nan_infinite_and_equal_scores(tmp_path):
    store = Store.create(tmp_path / "odd")
    members = requests(3)
    store.write_requests(members)
    found = candidates(members, 2, "own")
    store_rows(store, "own", found)
    rows = score_rows(found, 0)
    for row, value in zip(rows, [float("nan"), float("inf"), -float("inf"), 1e30, None, 0.0]):
        row["value"] = value
    store.scores("wild").append(rows)
    store.scores("flat").append([row | {"value": 2.0} for row in rows])
    text = Reader(write_report(store).read_text()).text
    assert "wild: 2 scores, 2 failed" in text and "flat: 6 scores" in text and "nan" not in text


def test_pairs_without_bytes_show_the_candidates_images(tmp_path):
    store = Store.create(tmp_path / "ids")
    members = requests(4)
    store.write_requests(members)
    found = candidates(members, 2, "own")
    store_rows(store, "own", found)
    write_pairs(store, "main", found, {r.request_id: r.prompt for r in members}, with_bytes=False)
    page = write_report(store).read_text()
    assert page.count("data:image/webp") == 8 and "no image" not in page


def test_a_damaged_image_leaves_a_hole_and_not_a_crash(tmp_path):
    from dataclasses import replace

    store = Store.create(tmp_path / "damaged")
    members = requests(2)
    store.write_requests(members)
    found = candidates(members, 2, "own")
    found[0] = replace(found[0], image=found[0].image[:60])
    found[1] = replace(found[1], image=b"no image at all")
    store_rows(store, "own", found)
    write_pairs(store, "main", found, {r.request_id: r.prompt for r in members})
    page = write_report(store).read_text()
    assert page.count('aria-label="no image"') == 2


def test_a_damaged_pair_file_is_named(tmp_path):
    store = Store.create(tmp_path / "bad")
    (store.pairs("main") / "train").mkdir(parents=True)
    (store.pairs("main") / "train" / "part-0.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(StoreError, match="part-0.parquet"):
        write_report(store)


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "kept")
    path = write_report(store)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="No space left"):
        write_report(store)
    assert path.read_bytes() == before and list(store.folder.glob(".*tmp")) == []


def test_same_run_same_page(tmp_path):
    store = full_run(tmp_path / "twice")
    write_metrics(store.train("second"), steps=900)
    assert write_report(store).read_bytes() == write_report(store).read_bytes()
