"""Experiment trackers to which training logs curves, sample images and its settings: TensorBoard, W&B, trackio."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.store.files import read_json, write_json
from prefkit.types import digest

BOARDS = ("none", "tensorboard", "wandb", "trackio")
PROJECT = "prefkit"
IMAGES = "held-out samples"
LINK = "board.json"  # in train/NAME: the tracker, and the link or command that shows the training


class TensorBoard:
    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()), step)
        self.link = f"tensorboard --logdir {folder / 'tensorboard'}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, path: Path) -> None:
        import numpy as np

        from prefkit.images import rgb

        self.writer.add_image(IMAGES, np.asarray(rgb(path)), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """W&B; WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY are respected. A resumed training continues its W&B run."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        import wandb

        self.wandb, self.id = wandb, _id(folder, step)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=f"{folder.resolve().parents[1].name}/{folder.name}",
            **{"id": self.id, "resume": "allow", "dir": str(folder), "config": dict(settings)},
        )
        self.run.define_metric("*", step_metric="step")
        self.link = self.run.url or f"wandb sync {Path(self.run.dir).parent}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def image(self, step: int, path: Path) -> None:
        self.run.log({"step": step, IMAGES: self.wandb.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """trackio, which stores its runs on this machine; TRACKIO_DIR is respected."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        import trackio

        self.trackio, self.id = trackio, _id(folder, step)
        name = f"{folder.resolve().parents[1].name}-{folder.name}-{self.id}"
        self.run = trackio.init(project=PROJECT, name=name, config=dict(settings), resume="allow", embed=False)
        self.link = f"trackio show --project {PROJECT}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, path: Path) -> None:
        self.run.log({IMAGES: self.trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


def _id(folder: Path, step: int) -> str:
    """Return the id of a training in a tracker: new for one that starts at step 0, else that of its first session."""
    path = folder / LINK
    if step and path.exists() and (known := read_json(path).get("id")):
        return str(known)
    return digest("board", str(folder.resolve()), time.time(), length=12)


def check_board(report_to: str) -> None:
    """Raise UsageError if the package of a tracker is not installed."""
    with suppress(ValueError):  # a module without a spec, which is loaded already
        if report_to != "none" and importlib.util.find_spec(report_to) is None:
            raise missing(report_to)


def missing(report_to: str) -> UsageError:
    return UsageError(f"train.report_to: {report_to} is not installed. Run `pip install 'prefkit[{report_to}]'`.")


def open_board(report_to: str, folder: Path, step: int, settings: Mapping[str, Any]) -> Any:
    """Return the tracker of a training, None for `none`, and write its link to train/NAME/board.json.

    folder: train/NAME; step: number of finished steps; settings: the resolved settings. Raises UsageError.
    """
    if report_to == "none":
        return None
    kind: Any = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}[report_to]
    try:
        board = kind(folder, step, settings)
    except ImportError as error:
        raise missing(report_to) from error
    except Exception as error:  # errors of the library, such as a missing login
        text = " ".join(str(error).split())[:300]
        raise UsageError(
            f"train.report_to: {report_to} could not start: {text}. Log in, or set WANDB_MODE=offline for W&B, or "
            "report_to: none."
        ) from error
    write_json(folder / LINK, {"board": report_to, "link": board.link, "id": getattr(board, "id", None)})
    return board


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers in nested mappings by path, as in {"watch/gain": 0.1}."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers
