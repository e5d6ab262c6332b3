from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from prefkit.config import Generate, Model
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.generate.generators import generator_spec
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.train.data.batches import order
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.monitor.validation import split
from prefkit.train.setup import ModelLoader, prepare
from prefkit.types import Candidate, Request


def read(folder):
    return read_pairs(PairSource.find(Store(folder.parent), str(folder)))


def prepared(store, recipe):
    source = PairSource.find(store, "main")
    pairs = read_pairs(source)
    plan = ModelLoader(store, recipe, recipe.train["dpo"], store.train("dpo"))
    return plan, prepare(plan, pairs, source, Processes("cpu"))


def test_winner_and_loser_follow_the_labels(tmp_path, pair_rows, write_pairs):
    rows = pair_rows(4)
    pairs = read(write_pairs(tmp_path / "p", rows))
    assert [(pair.win.column, pair.lose.column) for pair in pairs] == [(1, 0), (0, 1), (1, 0), (0, 1)]
    assert len({pair.id for pair in pairs}) == 4
    for row in rows:
        row["label_0"], row["label_1"] = row["label_1"], row["label_0"]
    assert read(write_pairs(tmp_path / "q", rows)) == [pair.flipped() for pair in pairs]


def test_ties_are_counted_and_refused(tmp_path, pair_rows, write_pairs):
    rows = pair_rows(5)
    rows[1] |= {"label_0": 0.5, "label_1": 0.5}
    rows[3] |= {"label_0": 1.0, "label_1": 1.0}
    with pytest.raises(UsageError, match=r"2 of 5 rows are ties.*filter"):
        read(write_pairs(tmp_path / "p", rows))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [{k: v for k, v in r.items() if k not in ("jpg_1", "label_1")} for r in rows], "jpg_1, label_1"),
        (lambda rows: pa.Table.from_pylist(rows).slice(0, 0), "the table is empty"),
        (lambda rows: [r | {"label_0": 2.0} for r in rows], "row 0: the labels are 2.0"),
        (lambda rows: [rows[0], rows[1] | {"caption": None}], "row 1: the caption"),
        (lambda rows: [rows[0], rows[1] | {"jpg_1": None}], "row 1: an image is missing"),
    ],
)
def test_other_schemas_are_refused_by_name(tmp_path, change, message, pair_rows):
    changed = change(pair_rows(2))
    (tmp_path / "p").mkdir()
    table = changed if isinstance(changed, pa.Table) else pa.Table.from_pylist(changed)
    pq.write_table(table, tmp_path / "p" / "a.parquet")
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "p")


def test_a_name_that_is_nothing(tmp_path):
    with pytest.raises(UsageError, match="neither a name under"):
        PairSource.find(Store(tmp_path), "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no Parquet files"):
        PairSource.find(Store(tmp_path), str(tmp_path / "empty"))
    (tmp_path / "torn" / "train").mkdir(parents=True)
    (tmp_path / "torn" / "train" / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read"):
        read(tmp_path / "torn")


def test_an_image_that_cannot_be_decoded_is_named_by_row(run, pair_rows):
    rows = pair_rows(3)
    rows[2]["jpg_0"] = b"not an image"
    store, recipe = run(rows=rows)
    with pytest.raises(UsageError, match="row 2: an image cannot be decoded"):
        prepared(store, recipe)


def test_images_of_one_pair_must_have_one_size(run, pair_rows, png):
    rows = pair_rows(3)
    rows[1]["jpg_0"] = png(np.random.default_rng(0), size=(128, 64))
    store, recipe = run(rows=rows)
    with pytest.raises(UsageError, match=r"1 of 3 pairs, .* row 1 \(128 x 64 against 64 x 64"):
        prepared(store, recipe)


def test_datasets_writes_what_we_read(tmp_path, pair_rows, write_pairs):
    import datasets

    rows = pair_rows(3)
    dataset = datasets.Dataset.from_list(rows).cast_column("jpg_0", datasets.Image())
    (tmp_path / "p").mkdir()
    dataset.to_parquet(tmp_path / "p" / "train-00000.parquet")
    plain = read(write_pairs(tmp_path / "q", rows))
    assert read(tmp_path / "p") == plain


def test_images_of_a_hub_dataset_may_be_bytes_or_files(tmp_path, pair_rows, write_pairs, monkeypatch):
    import datasets

    rows = pair_rows(2)
    plain = read(write_pairs(tmp_path / "q", rows))
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.png"
        path.write_bytes(row["jpg_0"])
        row["jpg_0"] = {"bytes": None, "path": str(path)}
    features = {side: datasets.Image() for side in ("jpg_0", "jpg_1")}
    dataset = datasets.Dataset.from_list(rows)
    dataset = dataset.cast(datasets.Features(dataset.features | features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: dataset)
    assert read_pairs(PairSource.find(Store(tmp_path), "owner/name")) == plain


def test_latents_come_from_the_runs_candidates(run, pair_rows, png):
    rows, rng = pair_rows(2), np.random.default_rng(5)
    latents = [torch.randn(4, 8, 8) for _ in range(4)]
    candidates = []
    for i, row in enumerate(rows):
        for side in (0, 1):
            name = f"c{i}{side}"
            payload = safetensors.torch.save({"latents": latents[2 * i + side]})
            image = png(rng)
            row[f"candidate_{side}"], row[f"jpg_{side}"] = name, image
            row[f"image_{side}_uid"] = f"{2 * i + side:064x}"
            candidates.append(Candidate(name, "r", side, 0, image=image, payload=payload))
    for row in rows[1:]:
        row["jpg_0"] = row["jpg_1"] = None  # large runs keep the bytes with the candidates alone
    store, recipe = run(rows=rows)
    store.write_requests([Request("r", "a red cat")])
    table = store.candidates("own")
    table.append([candidate_row(c) for c in candidates])
    table.claim(generator_spec(recipe.model, Generate()), "", empty=False)
    _, data = prepared(store, recipe)
    for i, pair in enumerate(sorted(data.pairs, key=lambda pair: pair.row)):
        for side in (pair.win, pair.lose):
            assert torch.equal(data.latents.get(side.key)["latents"], latents[2 * i + side.column])
        assert data.size(pair) == (64, 64)


def test_latents_of_another_model_are_never_trained_on(run, pair_rows, folders):
    """A pair's candidates hold latents of another VAE, so their images are encoded."""
    rows = pair_rows(2)
    images = [row[f"jpg_{side}"] for row in rows for side in (0, 1)]
    payload = safetensors.torch.save({"latents": torch.full((4, 8, 8), 9.0)})
    candidates = [Candidate(f"c{i}", "r", i, 0, image=image, payload=payload) for i, image in enumerate(images)]
    for i, row in enumerate(rows):
        row |= {"candidate_0": f"c{2 * i}", "candidate_1": f"c{2 * i + 1}"}
        row |= {f"image_{side}_uid": f"{2 * i + side:064x}" for side in (0, 1)}
    rows[1]["jpg_0"] = None  # then the candidate's own image is encoded
    store, recipe = run(rows=rows)
    store.write_requests([Request("r", "a red cat")])
    table = store.candidates("own")
    table.append([candidate_row(c) for c in candidates])
    table.claim(generator_spec(Model(base=str(folders["sdxl"])), Generate()), "", empty=False)
    recipe = replace(recipe, generate={"own": Generate()})
    plan, data = prepared(store, recipe)
    family = plan.load(torch.device("cpu"), (64, 64), None, plan.wiring())
    expected = family.latents([Candidate("x", "", 0, 0, image=image) for image in images])
    for i, pair in enumerate(data.pairs):
        for side in (pair.win, pair.lose):
            found = data.latents.get(side.key)["latents"]
            torch.testing.assert_close(found, expected[2 * i + side.column], rtol=1e-4, atol=1e-5)


def test_files_held_out_by_name_are_not_trained_on(tmp_path, pair_rows, capsys):
    rows = pair_rows(6)
    for i, name in enumerate(("train", "test", "validation-0", "Eval", "more")):
        pq.write_table(pa.Table.from_pylist(rows[i : i + 1]), tmp_path / f"{name}.parquet")
    captions = [row["caption"] for row in rows]
    assert [pair.prompt for pair in read(tmp_path)] == captions[:1]
    (tmp_path / "train.parquet").unlink()
    assert [pair.prompt for pair in read(tmp_path)] == captions[4:5]
    assert (
        "Eval.parquet, test.parquet, validation-0.parquet ignored, because the names mark these files"
        in capsys.readouterr().err
    )
    (tmp_path / "more.parquet").unlink()
    with pytest.raises(UsageError, match="held out"):
        read(tmp_path)


def test_without_candidates_the_image_is_encoded_and_the_cache_is_kept(run, monkeypatch, pair_rows):
    store, recipe = run(rows=pair_rows(3))
    plan, data = prepared(store, recipe)
    family = plan.load(torch.device("cpu"), (64, 64), None, plan.wiring())
    image = pair_rows(3)[0]["jpg_1"]
    expected = family.latents([Candidate("x", "", 0, 0, image=image)])[0]
    torch.testing.assert_close(data.latents.get(data.pairs[0].win.key)["latents"], expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(ModelLoader, "load", lambda *_: pytest.fail("the cache is complete, nothing is to be loaded"))
    _, again = prepared(store, recipe)
    assert torch.equal(
        again.latents.get(data.pairs[0].win.key)["latents"], data.latents.get(data.pairs[0].win.key)["latents"]
    )


def test_a_damaged_cache_part_is_computed_again(run, capsys, pair_rows):
    store, recipe = run(rows=pair_rows(3))
    plan, data = prepared(store, recipe)
    before = data.latents.get(data.pairs[0].win.key)["latents"]
    (part,) = (plan.latents_folder() / "latents").glob("part-*")
    part.write_bytes(part.read_bytes()[:50])
    _, again = prepared(store, recipe)
    assert "damaged" in capsys.readouterr().err
    torch.testing.assert_close(again.latents.get(data.pairs[0].win.key)["latents"], before)


def test_batches_hold_one_signature(run, pair_rows):
    rows = pair_rows(2) + pair_rows(2, seed=1, size=(128, 64))
    store, recipe = run(rows=rows)
    plan, data = prepared(store, recipe)
    family = plan.load_denoiser("cpu", data)
    batches = list(data.batches(family, [(pair, 0) for pair in data.pairs]))
    assert sorted(tuple(batch.latents.shape) for batch in batches) == [(4, 4, 8, 8), (4, 4, 8, 16)]
    for batch in batches:
        assert torch.equal(batch.draw.noise[:2], batch.draw.noise[2:])
        assert torch.equal(batch.draw.time[:2], batch.draw.time[2:])


def test_the_order_is_a_permutation_per_epoch():
    places = [order(7, 3, position) for position in range(21)]
    for epoch in range(3):
        block = places[7 * epoch : 7 * epoch + 7]
        assert sorted(index for index, _ in block) == list(range(7)) and {e for _, e in block} == {epoch}
    assert places[:7] != places[7:14]
    assert [order(7, 3, position) for position in (20, 3)] == [places[20], places[3]]
    assert [order(7, 4, position) for position in range(7)] != places[:7]


def test_validation_shares_no_prompt_with_training(tmp_path, pair_rows, write_pairs):
    rows = pair_rows(30)
    for i, row in enumerate(rows):
        row["caption"] = f"Prompt {i // 2}" if i % 2 else f"prompt  {i // 2}"  # equal but for case and spaces
    pairs = read(write_pairs(tmp_path / "p", rows))
    training, held = split(pairs, 4)
    assert len(held) == 4 and len(training) == 26
    prompts = [{" ".join(p.prompt.lower().split()) for p in part} for part in (training, held)]
    assert not prompts[0] & prompts[1]
    assert len(split(pairs, 1000)[1]) == 6
    assert split(pairs, 0)[1] == []
    assert split(list(reversed(pairs)), 4)[1] == list(reversed(held))
