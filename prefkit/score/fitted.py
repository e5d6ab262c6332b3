"""A folder that `prefkit fit` wrote, as its scorer reads it: spec.json, weights, and the encoder that goes with them."""

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


class Fitted:
    """`folder` as `prefkit fit NAME` left it. Raises UsageError where it is none, or was fitted for another scorer."""

    def __init__(self, name: str, folder: str) -> None:
        if not folder:
            raise UsageError(f"{name}: `model` is not set: give a folder that `prefkit fit {name}` has written.")
        self.name, self.folder = name, Path(folder).expanduser()
        if not (self.folder / SPEC).is_file():
            raise UsageError(f"{name}: {folder} holds no {SPEC}; give a folder that `prefkit fit {name}` has written.")
        again = f"Run `prefkit fit {name}` again."
        self.spec = read_json(self.folder / SPEC, again)
        check_folder(self.folder, again)
        if self.spec.get("fit") != name:
            raise UsageError(f"{name}: {folder} was fitted as {self.spec.get('fit')!r}, which is another scorer.")

    def state(self) -> dict[str, Tensor]:
        return read_state(self.folder / WEIGHTS)

    def ids(self, name: str) -> list[str]:
        """NAME.json: a list of ids in the order of the rows of a weight."""
        return list(json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))

    def revision(self) -> str:
        """Hash of everything in the folder; the encoder's revision is part of its spec."""
        from prefkit.models.load.revision import weights_revision

        return weights_revision(self.folder)

    def encoder(self) -> Encoder:
        """The one that the weights were fitted on. Raises UsageError where it is unknown or has changed since."""
        kept = self.spec.get("encoder")
        if kept is None:
            raise UsageError(
                f"{self.name}: {self.folder} was fitted on features of an unnamed encoder, so no image can be scored "
                "with it. Fit again with `--encoder` (and its options) naming what the features came from."
            )
        encoder = encoder_of(kept)
        if encoder.revision() != kept["revision"]:
            raise UsageError(
                f"{self.name}: {self.folder} was fitted on {kept['model']} at {kept['revision']}, which is now at "
                f"{encoder.revision()}: other features would be scored. Restore the encoder, or fit again."
            )
        return encoder


def encoder_of(kept: dict[str, Any]) -> Encoder:
    """From what `describe` gave."""
    return Encoder(
        kept["model"],
        kept["pretrained"],
        library=kept["library"],
        processor=kept["processor"],
        resize=kept["resize"],
    )


def describe(encoder: Encoder) -> dict[str, Any]:
    """All that makes an embedding what it is, as JSON."""
    same = encoder.processor == encoder.shown
    return {
        "library": encoder.library,
        "model": encoder.shown,
        "pretrained": encoder.pretrained,
        "processor": None if same else encoder.processor,
        "resize": encoder.resize,
        "revision": encoder.revision(),
        "preprocessing": encoder.preprocessing(),
    }
