"""Write an untrained mesh model, standardised by the poses and shapes of labelled requests.

    python pipelines/mesh/new_model.py REQUESTS.parquet OUT [--prediction epsilon] [--width 256]

REQUESTS has the columns of make_data.py: true_rotations (20 x 6D), true_betas and keypoints2d.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from prefkit.mesh.diffusion.network import PREDICTIONS, MeshDenoiser, write_model

FLOOR = 1e-3  # smallest standard deviation of an entry, so that constant ones stay finite


def new_model(requests: Path, out: Path, prediction: str = "sample", width: int = 256, seed: int = 0) -> Path:
    """Write the model folder and return it. The mean and standard deviation of each state entry are stored with it."""
    table = pq.read_table(requests, columns=["true_rotations", "true_betas", "keypoints2d"]).to_pydict()
    pose = np.array(table["true_rotations"], np.float32).reshape(len(table["true_betas"]), -1)
    states = torch.from_numpy(np.concatenate([pose, np.array(table["true_betas"], np.float32)], 1))
    torch.manual_seed(seed)
    net = MeshDenoiser(len(table["keypoints2d"][0]), width=width, hidden=2 * width)
    net.mean.copy_(states.mean(0))
    net.std.copy_(states.std(0).clamp_min(FLOOR))
    return write_model(out, net, prediction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prediction", choices=PREDICTIONS, default="sample")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(new_model(args.requests, args.out, args.prediction, args.width, args.seed))


if __name__ == "__main__":
    main()
