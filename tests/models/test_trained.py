from __future__ import annotations

import pytest

from prefkit.config import Model
from prefkit.errors import UsageError
from prefkit.models.load.revision import base_revision
from prefkit.models.load.trained import trained_model
from prefkit.store.files import write_json


@pytest.mark.parametrize("result", ["pytorch_lora_weights.safetensors", "model_index.json"])
def test_a_result_belongs_to_the_base_it_was_trained_from(tiny, tmp_path, result):
    own, other = Model(base=str(tiny["sd"])), Model(base=str(tiny["sd-v"]))
    folder = tmp_path / "train" / "dpo"
    (folder / "final").mkdir(parents=True)
    (folder / "final" / result).write_bytes(b"")
    write_json(folder / "spec.json", {"model": {**base_revision(own), "adapters": []}})
    trained_model(tmp_path, own, "dpo")
    with pytest.raises(UsageError, match="trained from another model than model.base"):
        trained_model(tmp_path, other, "dpo")
