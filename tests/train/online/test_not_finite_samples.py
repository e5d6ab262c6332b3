"""A sample of NaN pixels takes no part in its round; a round of nothing else stops the training with the reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusers import AutoencoderKL

from prefkit.errors import TrainingError
from prefkit.store import Store
from prefkit.train.run import run_train


def breaking(monkeypatch: pytest.MonkeyPatch, places: slice) -> None:
    """These samples of every batch of the VAE are NaN."""
    inner = AutoencoderKL.decode

    def decode(self, z, *args, **kwargs):
        found = inner(self, z, *args, **kwargs)
        found[0][places] = math.nan
        return found

    monkeypatch.setattr(AutoencoderKL, "decode", decode)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_one_sample_is_left_out(make, monkeypatch):
    store, recipe = make("sd", rounds=1, max_failed=0.5)
    breaking(monkeypatch, slice(0, 1))
    run_train(store, recipe, "up")
    (folder,) = (store.train("up") / "rounds").iterdir()
    candidates = Store(folder).candidates("policy").frame()
    failed = candidates[candidates.error.notna()]
    assert len(failed) == 1 and "not finite" in failed.error.iloc[0] and failed.image.isna().all()
    scores = Store(folder).scores("size").frame().set_index("id")
    assert np.isnan(scores.value[failed.id.iloc[0]]) and "not finite" in scores.error[failed.id.iloc[0]]
    assert scores.value.notna().sum() == len(candidates) - 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("watch", [0, 1])
def test_a_round_of_them_stops_the_training(make, monkeypatch, watch):
    store, recipe = make("sd", rounds=1, watch_every=watch, watch_requests=1)
    breaking(monkeypatch, slice(None))
    with pytest.raises(TrainingError, match="not finite"):
        run_train(store, recipe, "up")
    assert not (store.train("up") / "final").exists()
