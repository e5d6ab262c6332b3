"""Reader of the folders that `prefkit fit` writes: spec.json, the weights and the encoder they were fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.score.embed.encoder import Encoder
from prefkit.score.embed.weights import read_state
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

SPEC, WEIGHTS = "spec.json", "weights.safetensors"
SETTINGS = ("library", "model", "pretrained", "processor", "resize")  # arguments of Encoder in spec.json


class Fitted:
    """A folder that `prefkit fit NAME` wrote. Raises UsageError for any other folder, even a fit of another scorer."""

    def __init__(self, name: str, folder: str) -> None:
        if not folder:
            raise UsageError(f"{name}: `model` is not set; set it to a folder that `prefkit fit {name}` has written.")
        self.name, self.folder = name, Path(folder).expanduser()
        if not (self.folder / SPEC).is_file():
            raise UsageError(f"{name}: {folder} has no {SPEC}; give a folder that `prefkit fit {name}` has written.")
        again = f"Run `prefkit fit {name}` again."
        self.spec = read_json(self.folder / SPEC, again)
        check_folder(self.folder, again)
        if self.spec.get("fit") != name:
            raise UsageError(f"{name}: {folder} was fitted for another scorer, {self.spec.get('fit')!r}.")

    def state(self) -> dict[str, Tensor]:
        return read_state(self.folder / WEIGHTS)

    def ids(self, name: str) -> list[str]:
        """Return the ids in the file NAME.json, in the order of the rows of the weights."""
        return list(json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))

    def revision(self) -> str:
        """Return the hash of the folder, which covers the encoder's revision in spec.json."""
        from prefkit.models.load.revision import weights_revision

        return weights_revision(self.folder)

    def encoder(self) -> Encoder:
        """Return the encoder that the weights were fitted on. Raises UsageError if it is unknown or has changed since."""
        stored = self.spec.get("encoder")
        if stored is None:
            raise UsageError(
                f"{self.name}: {self.folder} was fitted on features of an unknown encoder, so it cannot score images. "
                f"Run `prefkit fit {self.name}` again, with --encoder (and its options) set to that encoder."
            )
        try:
            encoder = Encoder(**{name: stored[name] for name in SETTINGS}, needs_text=False)
        except UsageError as error:
            raise UsageError(
                f"{self.name}: {self.folder} needs the encoder that it was fitted on, which could not be opened. {error}"
            ) from error
        if encoder.revision() != stored["revision"]:
            raise UsageError(
                f"{self.name}: {self.folder} was fitted on {stored['model']} at revision {stored['revision']}; the "
                f"encoder is now at revision {encoder.revision()} and gives other features. Restore it, or fit again."
            )
        return encoder


def describe(encoder: Encoder) -> dict[str, Any]:
    """Return the settings that determine an encoder's embeddings, for spec.json."""
    return {
        "library": encoder.library,
        "model": encoder.shown,
        "pretrained": encoder.pretrained,
        "processor": None if encoder.processor == encoder.shown else encoder.processor,
        "resize": encoder.resize,
        "revision": encoder.revision(),
        "preprocessing": encoder.preprocessing(),
    }
