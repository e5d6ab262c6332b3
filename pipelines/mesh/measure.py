"""Tables of a data folder: the keypoints' errors in the picture, and BlazePose's own 3D as an outside baseline.

    python pipelines/mesh/measure.py DATA

Every number is over the 12 limb joints. px refer to a picture of 256 px. MPJPE is after aligning the midpoints of
the hips, PA after the best similarity transform; both are in millimetres of the free body, which are not those of 3DPW
or H36M.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from detector import JOINT_LANDMARKS
from sheet import index_of

from prefkit.mesh.body import JOINT_NAMES, LIMBS
from prefkit.mesh.camera import Camera
from prefkit.mesh.errors import mpjpe, pa_mpjpe

#: px beyond which a keypoint is counted as wrong
FAR = 15.0
HIPS = (LIMBS.index("LeftUpLeg"), LIMBS.index("RightUpLeg"))
TRUE = [JOINT_NAMES.index(name) for name in LIMBS]
BY = ["set", "domain", "occluded"]


def rows_of(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (set, row) of all sets."""
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            yield path.stem, row


def pixel_errors(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each limb joint of a row: its error in px and its state."""
    camera, index = Camera.of(row), index_of(row["keypoint_names"])
    assert camera
    true = camera.project(np.array(row["true_joints3d"])[TRUE])
    points = np.array(row["keypoints2d"])[[index[joint] for joint in LIMBS]]
    errors = np.linalg.norm(points[:, :2] - true, axis=1)
    states = ["hidden" if row["hidden"][k] else "visible" if row["visible"][k] else "behind" for k in TRUE]
    common = {"set": name} | {key: row[key] for key in BY[1:]}
    return [common | {"px": e, "state": s, "confidence": c} for e, s, c in zip(errors, states, points[:, 2])]


def pixel_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(records)
    grouped = table.groupby(BY)["px"]
    found = grouped.agg(median_px="median", mean_px="mean", wrong=lambda px: float((px > FAR).mean()))
    for state in ("visible", "behind", "hidden"):
        found[f"{state}_px"] = table[table["state"] == state].groupby(BY)["px"].median()
        found[f"{state}_conf"] = table[table["state"] == state].groupby(BY)["confidence"].mean()
    return found.round(2)


def outside_table(rows: list[tuple[str, dict[str, Any]]]) -> pd.DataFrame:
    """Return MPJPE and PA-MPJPE of the detector's own 3D landmarks; an empty table without them."""
    records = [{"set": name} | {key: row[key] for key in BY[1:]} for name, row in rows if row.get("blazepose3d")]
    if not records:
        return pd.DataFrame()
    kept = [row for _, row in rows if row.get("blazepose3d")]
    landmarks = [JOINT_LANDMARKS[joint] for joint in LIMBS]
    found = torch.tensor(np.array([row["blazepose3d"] for row in kept])[:, landmarks])
    true = torch.tensor(np.array([row["true_joints3d"] for row in kept])[:, TRUE])
    table = pd.DataFrame(records).assign(
        mpjpe=mpjpe(found, true, HIPS).numpy(),
        pa=pa_mpjpe(found, true).numpy(),
        person=[r["person"] > 0.5 for r in kept],
    )
    grouped = table.groupby(BY)
    means = grouped[["mpjpe", "pa", "person"]].mean()
    return means.assign(median_pa=grouped["pa"].median(), n=grouped.size()).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    rows = list(rows_of(parser.parse_args().data))
    pd.set_option("display.width", 200, "display.max_columns", 20)
    print(pixel_table([record for name, row in rows for record in pixel_errors(name, row)]))
    print(outside_table(rows))


if __name__ == "__main__":
    main()
