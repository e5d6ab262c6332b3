"""CPU time of the Ray engine per call without work, of all processes of a cluster of two machines on loopback addresses.

    pip install ray; python benchmarks/ray_engine.py [--units 600]

one     one unit per call, as with slow models
joined  units joined to calls of up to 20 s, as the engine does with fast ones
idle    what the cluster uses in the same time without work (subtracted from the others)
"""

from __future__ import annotations

import argparse
import time

import psutil
import ray
from ray.cluster_utils import Cluster

from prefkit.engines import Work
from prefkit.engines import ray as engine
from prefkit.output import table


class Nothing:
    def do(self, units: list[list[str]]) -> dict[str, int]:
        return {"made": len(units)}


def cpu() -> float:
    """CPU seconds so far of this process and of all processes below it."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=600)
    count = parser.parse_args().units
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.2"})
    for last in (3, 4):
        cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{last}")
    ray.init(address=cluster.address, log_to_driver=False)
    units = [[f"id {n}"] for n in range(count)]
    rows = []
    longest = engine.CALL
    for name, call in (("one", 0.0), ("joined", longest)):
        engine.CALL = call
        pool = engine.Pool(Work("empty", Nothing, (), "cpu"), units, 2)
        pool.start()
        results = pool.results()
        done = len(next(results)[0]) + len(next(results)[0])  # both workers have started
        start, before = time.monotonic(), cpu()
        calls = 0
        for finished, _ in results:
            done, calls = done + len(finished), calls + 1
        used, wall = cpu() - before, time.monotonic() - start
        assert done == count
        before = cpu()
        time.sleep(5)
        idle = (cpu() - before) / 5 * wall
        pool.close()
        rows.append(
            {
                "units": name,
                "calls": calls,
                "CPU ms per call": 1000 * (used - idle) / calls,
                "wall ms per call": 1000 * wall / calls,
                "idle CPU s": idle,
                "CPU s": used,
            }
        )
    print(table(rows))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
