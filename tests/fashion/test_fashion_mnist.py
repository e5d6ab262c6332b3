"""The study on Fashion-MNIST without its data: the reader of idx files, the best possible values, the planted tables."""

from __future__ import annotations

import gzip
import struct
from itertools import product

import numpy as np
import pytest

from prefkit.errors import UsageError


def idx(array, stated=None, magic=(0, 0, 8)):
    shape = stated or array.shape
    return bytes((*magic, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def write(path, data):
    path.write_bytes(gzip.compress(data))
    return path


@pytest.fixture
def source(tmp_path):
    """Small files of Fashion-MNIST: 12 pictures of each class in both splits; a pixel holds the class."""
    folder = tmp_path / "source"
    folder.mkdir()
    labels = np.repeat(np.arange(10, dtype=np.uint8), 12)
    pictures = np.zeros((120, 28, 28), np.uint8)
    pictures[:, 14, 14] = 20 * labels + 1
    pictures[:, 0, 0] = np.arange(120)
    for name in ("train", "t10k"):
        write(folder / f"{name}-images-idx3-ubyte.gz", idx(pictures))
        write(folder / f"{name}-labels-idx1-ubyte.gz", idx(labels))
    return folder


def test_the_reader(fashion, source):
    pictures, labels = fashion.idx.read_split(source, "test")
    assert pictures.shape == (120, 28, 28) and labels.shape == (120,) and pictures.dtype == np.uint8
    assert (pictures[:, 14, 14] == 20 * labels + 1).all() and (pictures[:, 0, 0] == np.arange(120)).all()


IMAGES, LABELS = np.zeros((120, 28, 28), np.uint8), np.zeros(120, np.uint8)


def zipped(data):
    """Compress without the time, which would give the processes of a test run different names of tests."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("images-idx3", zipped(idx(IMAGES[:-1], IMAGES.shape)), "it holds 93,296"),
        ("images-idx3", zipped(idx(IMAGES) + b"x"), "it holds more"),
        ("images-idx3", zipped(idx(IMAGES))[:-20], "cannot be read"),
        ("images-idx3", zipped(idx(IMAGES))[:-8] + b"\0" * 8, "cannot be read"),  # wrong check sum
        ("images-idx3", b"no gzip", "cannot be read"),
        ("images-idx3", b"", "does not start as an idx file"),
        ("images-idx3", zipped(idx(IMAGES, magic=(0, 0, 13))), "does not start as an idx file"),
        ("images-idx3", zipped(idx(LABELS)), "does not start as an idx file"),
        ("images-idx3", zipped(idx(LABELS[:1], (2**32 - 1,) * 3)), "at most 104,857,600 are read"),
        ("images-idx3", zipped(idx(IMAGES.reshape(120, 14, 56))), "14 x 56 pixels"),
        ("labels-idx1", zipped(idx(LABELS[1:])), "120 pictures and 119 labels"),
        ("labels-idx1", zipped(idx(LABELS + np.uint8(10))), "a label is 10"),
    ],
)
def test_damaged_and_hostile_files(fashion, source, name, data, reason):
    (source / f"train-{name}-ubyte.gz").write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        fashion.idx.read_split(source, "train")


def test_no_more_than_the_stated_size_is_decompressed(fashion, tmp_path, monkeypatch):
    read = []

    class File(gzip.GzipFile):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(fashion.idx.gzip, "GzipFile", File)
    bomb = write(tmp_path / "bomb.gz", idx(LABELS) + bytes(10_000_000))
    with pytest.raises(UsageError, match="it holds more"):
        fashion.idx.read_idx(bomb, 1)
    assert read == [8, 121]


def test_a_missing_file_and_too_few_pictures(fashion, source, tmp_path, capsys):
    study = fashion.fashion_mnist
    assert study.main([str(source), str(tmp_path / "out")]) == 2
    assert "train has 12 pictures of the class T-shirt; 80 are needed" in capsys.readouterr().err
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    assert study.main([str(source), str(tmp_path / "out")]) == 2
    assert "Give the folder with the four files" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_best_values_by_hand(fashion):
    """Two kinds of ten items, the right one of kind 1 with probability .8: below it are 10 items, equal 9 of 19."""
    best = fashion.ceilings.best_on({0: 0.2, 1: 0.8}, {0: 10, 1: 10}, 2)
    assert best["auc"] == pytest.approx((0.8 * (10 + 4.5) + 0.2 * 4.5) / 19)
    assert best["fitb"] == pytest.approx(best["auc"])  # one negative
    blind = fashion.ceilings.best_on({0: 0.5, 1: 0.5}, {0: 10, 1: 10}, 4)
    assert blind == pytest.approx({"auc": 0.5, "fitb": 0.25})
    assert fashion.ceilings.outfit_ceiling(3, 2, 0.0, [1, 1, 1], 3) == pytest.approx({"auc": 1, "fitb": 1})
    chance = fashion.ceilings.outfit_ceiling(3, 2, 2 / 3, [50] * 3, 4)  # styles at random
    assert chance == pytest.approx({"auc": 0.5, "fitb": 0.25})


def test_the_best_values_against_a_simulation(fashion):
    """A scorer that knows the styles of all items, on drawn outfits. 40,000 draws: one standard error is .0025."""
    noise, pool, rng = 0.2, [30, 30, 30], np.random.default_rng(0)
    draws = 40_000
    styles = rng.integers(3, size=(draws, 1))
    items = (styles + (rng.random((draws, 3)) < noise) * rng.integers(1, 3, (draws, 3))) % 3
    table = {votes: fashion.ceilings.style_given(votes, 3, noise) for votes in product(range(3), repeat=2)}
    for votes, row in table.items():  # the posterior, by counting
        rows = items[(items[:, :2] == votes).all(1), 2]
        assert np.bincount(rows, minlength=3) / len(rows) == pytest.approx(row, abs=0.03)
    chance = np.array([table[tuple(votes)] for votes in items[:, :2].tolist()])
    others = np.argsort(rng.random((draws, 89)), axis=1)[:, :3]  # 29 of the right item's style, then 30 of each other
    negative = (items[:, 2:] + np.where(others < 29, 0, 1 + (others - 29) // 30)) % 3
    score = np.take_along_axis(chance, np.concatenate([items[:, 2:], negative], 1), 1) + 1e-6 * rng.random((draws, 4))
    below = score[:, 1:] < score[:, :1]
    best = fashion.ceilings.outfit_ceiling(3, 2, noise, pool, 4)
    assert below.mean() == pytest.approx(best["auc"], abs=0.01)
    assert below.all(1).mean() == pytest.approx(best["fitb"], abs=0.01)


@pytest.fixture
def planted(fashion, source, tmp_path):
    """A small world: (module, folder, best possible values, size)."""
    study = fashion.fashion_mnist
    size = study.Size(train=8, test=6, outfits=300, users=18, history=10, requests=200)
    best = study.write_tables(source, tmp_path / "out", size, 0)
    return study, tmp_path / "out", best, size


class Knowing:
    """A scorer that knows the planted rule; `missing`: it gives no score."""

    def __init__(self, fashion, missing=False):
        self.fashion, self.study, self.missing = fashion, fashion.fashion_mnist, missing
        self.rng = np.random.default_rng(0)

    def score(self, batch):
        from prefkit.types import Score

        if self.missing:
            return [Score(None, error="broken") for _ in batch]
        ties = 1e-6 * self.rng.random(len(batch))
        values = [self.value(c.extra, c.extra["candidates"][c.index]) for c in batch]
        return [Score(value + tie) for value, tie in zip(values, ties)]

    def value(self, row, item):
        level = self.study.LEVEL
        votes = [level[self.study.label_of(other)] for other in row["items"] if other]
        return self.fashion.ceilings.style_given(votes, 3, self.study.NOISE)[level[self.study.label_of(item)]]


def test_a_scorer_that_knows_the_rule_reaches_the_best_values(fashion, planted):
    study, out, best, _ = planted
    found = study.rate(Knowing(fashion), out, "candidates")
    for metric, value in best["outfits, new pictures"].items():
        assert found[metric]["low"] - 0.03 <= value <= found[metric]["high"] + 0.03 and found[metric]["n"] == 200
    assert 0.6 < best["outfits"]["auc"] < 0.8 and 0.6 < best["users"]["auc"] < 0.8
    with pytest.raises(UsageError, match="800 of 800 scores are missing: broken"):
        study.rate(Knowing(fashion, missing=True), out, "candidates")


def test_the_share_of_classes_that_are_read(fashion):
    """One-hot features are read, and noise is not."""
    study, rng = fashion.fashion_mnist, np.random.default_rng(0)
    labels = np.repeat(study.USED, 40)
    known = (labels[:, None] == study.USED) + 0.05 * rng.normal(size=(360, 9))
    assert study.read_shares(known, labels) == dict.fromkeys(study.STYLES, 1.0)
    blind = study.read_shares(rng.normal(size=(360, 30)), labels)
    assert all(0.15 < share < 0.52 for share in blind.values())  # 120 pictures: 1/3 and 4 standard errors


def test_the_planted_tables_are_those_that_prefkit_fits(planted):
    from prefkit.fit.outfits import read_outfits
    from prefkit.fit.tables import named_files, read_table

    study, out, _, size = planted
    table = read_table("x", str(out / "outfits.csv"), ("outfit", "image", "category"), ids=("outfit", "item"))
    catalogue, splits, _ = read_outfits(table, (0.15, 0.25))
    assert sorted(map(len, catalogue.of)) == [3 * size.train] * 3 and all(map(len, splits.values()))
    assert all(path.is_file() for path in named_files("x", str(out / "outfits.csv"), catalogue.files))
    agree = [len({study.LEVEL[study.label_of(i)] for i in rows["item"]}) == 1 for _, rows in table.groupby("outfit")]
    assert np.mean(agree) == pytest.approx(0.9**3 + 2 * 0.05**3, abs=0.08)  # 300 outfits: 2 standard errors are .05
    liked = read_table("x", str(out / "interactions.csv"), ("user", "item"), ids=("user", "item"))
    counts = liked.groupby("user")["item"].apply(lambda items: sorted(map(study.label_of, items)))
    assert len(counts) == 18 and all(len(items) == 10 for items in counts)
