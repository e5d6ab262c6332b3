"""Seconds per epoch of `prefkit fit vbpr`, on synthetic data of the size of a real catalogue.

    python benchmarks/fit_vbpr.py [--interactions 100000] [--items 20000] [--width 4096] [--users 10000] [--batch 256]

train        every interaction once, each with a new negative: gather features, loss, backward, Adam
bare         only the two gathers of features for triples of the same size, and their
             products with [E, beta'] forward and backward
validate     the AUC of up to 2000 users against all items, once per epoch
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from prefkit.fit.fitters.vbpr import VbprFit
from prefkit.fit.interactions import split
from prefkit.fit.vbpr_train import Regularisers, auc, epoch, start
from prefkit.output import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    pairs = np.stack(
        [rng.integers(0, args.users, args.interactions), rng.integers(0, args.items, args.interactions)], 1
    )
    data = split(pd.DataFrame(pairs, columns=["user", "item"]), [str(n) for n in range(args.items)], 0)
    features = torch.from_numpy(rng.standard_normal((args.items, args.width), dtype=np.float32))
    defaults = VbprFit(features="synthetic", batch_size=args.batch)
    net = start(len(data.users), args.items, args.width, defaults.k, defaults.k2, 0)
    for tensor in net.tensors().values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(list(net.tensors().values()), lr=defaults.learning_rate)
    held = data.validation[: defaults.validation_users]

    def train() -> None:
        epoch(net, optimizer, features, data, Regularisers(), args.batch, rng)

    def bare() -> None:
        weight = torch.cat([net.projection, net.visual_bias[:, None]], 1).detach().requires_grad_(True)
        i, j = torch.from_numpy(rng.integers(0, args.items, (2, len(data.train))))
        for a, b in zip(i.split(args.batch), j.split(args.batch)):
            ((features[a] - features[b]) @ weight).sum().backward()

    def validate() -> None:
        auc(net, features, data, held)

    rows = [{"what": work.__name__, "seconds": timed(work, args.rounds)} for work in (train, bare, validate)]
    print(table(rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{len(data.train)} training interactions, {len(data.users)} users, {args.items} items of {args.width} features, "
        f"batches of {args.batch}, {torch.get_num_threads()} threads, at most {peak:.2f} GB"
    )


def timed(work: Callable[[], None], rounds: int) -> float:
    """Median of `rounds`."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return round(statistics.median(found), 2)


if __name__ == "__main__":
    main()
