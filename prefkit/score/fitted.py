"""Reader of the folders that `prefkit fit` writes: spec.json, the weights and the encoder they were fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.models.load.snapshot import COMMIT, on_hub, snapshot
from prefkit.score.embed.encoder import Encoder
from prefkit.score.embed.weights import read_state
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

SPEC, WEIGHTS = "spec.json", "weights.safetensors"
FITS = "fitted"  # the folder in which `prefkit fit` writes
ENCODER = "encoder"  # folder of a pushed scorer that holds the encoder, if it is not on the Hub
SETTINGS = ("library", "model", "pretrained", "processor", "resize")  # arguments of Encoder in spec.json


class Fitted:
    """A folder that `prefkit fit NAME` wrote, or its Hub id after `prefkit push`, at `revision` (branch, tag or commit).

    Raises UsageError for any other folder, even a fit of another scorer.
    """

    def __init__(self, name: str, folder: str, revision: str | None = None) -> None:
        if not folder:
            raise UsageError(
                f"{name}: `model` is not set; set it to a folder that `prefkit fit {name}` has written, or to its Hub id."
            )
        self.name, self.folder, self.shown = name, Path(folder).expanduser(), Path(folder).name
        self.commit: str | None = None
        again = f"Run `prefkit fit {name}` again."
        if on_hub(folder) and not folder.startswith(f"{FITS}/"):
            self.folder, self.commit = snapshot(folder, revision)
            self.shown, again = folder, "Remove it from the Hub cache (`hf cache rm`), to download it again."
        elif revision is not None:
            raise UsageError(
                f"{name}: `revision` is for a Hub id, but `model` is the folder {folder}. Remove `revision`."
            )
        elif not self.folder.exists():
            raise UsageError(
                f"{name}: {folder} does not exist. Give a folder that `prefkit fit {name}` has written, or a Hub id."
            )
        if not (self.folder / SPEC).is_file():
            raise UsageError(f"{name}: {folder} has no {SPEC}; give a folder that `prefkit fit {name}` has written.")
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
        """Return the hash of the folder, or the commit of a Hub id; both cover the encoder's revision in spec.json."""
        from prefkit.models.load.revision import weights_revision

        return self.commit or weights_revision(self.folder)

    def encoder(self) -> Encoder:
        """Return the encoder that the weights were fitted on. Raises UsageError if it is unknown or has changed since."""
        stored = self.spec.get("encoder")
        if stored is None:
            raise UsageError(
                f"{self.name}: {self.folder} was fitted on features of an unknown encoder, so it cannot score images. "
                f"Run `prefkit fit {self.name}` again, with --encoder (and its options) set to that encoder."
            )
        try:
            settings = {key: _inside(self.folder, stored[key]) for key in SETTINGS}
            fixed = stored["revision"] if COMMIT.fullmatch(stored["revision"] or "") else None
            encoder = Encoder(**settings, needs_text=False, revision=fixed)
            encoder.shown = stored["model"]  # without the place of an encoder inside the folder
        except UsageError as error:
            raise UsageError(
                f"{self.name}: {self.folder} needs the encoder that it was fitted on, which could not be opened. {error}"
            ) from error
        if stored["revision"] not in (None, now := encoder.revision()):
            state = f"now at revision {now}, which gives other features" if now else "not found"
            raise UsageError(
                f"{self.name}: {self.folder} was fitted on {stored['model']} at revision {stored['revision']}; the "
                f"encoder is {state}. Restore it, or fit again."
            )
        return encoder


def _inside(folder: Path, value: Any) -> Any:
    """Return the path of an encoder's file or folder that `prefkit push` put into the folder of the scorer."""
    if not isinstance(value, str):
        return value
    library, colon, path = value.rpartition(":")
    return f"{library}{colon}{folder / path}" if path.startswith(f"{ENCODER}/") else value


def describe(encoder: Encoder) -> dict[str, Any]:
    """Return the settings that determine an encoder's embeddings, for spec.json."""
    return {
        "library": encoder.library,
        "model": encoder.shown,
        "pretrained": encoder.pretrained,
        "processor": None if encoder.processor == encoder.name else encoder.processor,
        "resize": encoder.resize,
        "revision": encoder.revision(),
        "preprocessing": encoder.preprocessing(),
    }
