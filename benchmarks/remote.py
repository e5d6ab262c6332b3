"""Utilization of a remote judge: its mean number of concurrent requests, as a fraction of `--in-flight`.

    python benchmarks/remote.py [--items 4000] [--in-flight 64] [--answer-ms 50] [--side 64] [--batch 512] [--rounds 3]

The judge is a separate process that sleeps --answer-ms and returns log-probabilities. It counts its concurrent requests
from the first to the last. Time with fewer than --in-flight is lost by the client, by the judge's work between two answers,
or by other work on the machine. The control shows the losses that the client does not cause.

bare        the control: --in-flight threads that send the same prepared bytes, and discard the answers
overlapped  the scorer `mllm` in calls of the size and number that it requests, as in the stage
one by one  the same in batches of --batch, each waiting for the one before it
cached      overlapped again: all answers come from the cache
stage       `prefkit score` itself, with its tables

Medians of --rounds rounds, each of which runs all of them in this order; `of bare` is the median of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import queue
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prefkit.output import table
from prefkit.types import Candidate

ROWS = [{"token": str(n), "logprob": -2.0} for n in range(1, 6)]
CHOICE = {"message": {"content": "3"}, "logprobs": {"content": [{**ROWS[2], "top_logprobs": ROWS}]}}
ANSWER = json.dumps({"choices": [CHOICE]}).encode()


class Judge:
    """An HTTP server on one event loop: POST waits and answers, GET returns the counted utilization and resets it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        self.now = self.most = self.count = 0
        self.area = self.first = self.last = 0.0

    def step(self, change: int) -> None:
        now = time.perf_counter()
        self.area += self.now * (now - self.last) if self.count else 0.0
        self.first = self.first if self.count else now
        self.last, self.now = now, self.now + change
        self.count += change > 0
        self.most = max(self.most, self.now)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET"):
                mean = self.area / max(self.last - self.first, 1e-9)
                body = json.dumps({"mean": mean, "most": self.most, "n": self.count})
                self.reset()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode()))
                continue
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self.step(1)
            await asyncio.sleep(self.seconds)
            self.step(-1)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))

    async def run(self, port: Any) -> None:
        async def quietly(reader: Any, writer: Any) -> None:
            try:
                await self.serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(quietly, "127.0.0.1", 0, limit=2**24, backlog=256)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()


def judge_process(seconds: float, port: Any) -> None:
    asyncio.run(Judge(seconds).run(port))


def pictures(count: int, side: int) -> list[Candidate]:
    """Each prompt its own, so that no two questions are the same."""
    pixels = np.random.default_rng(0).integers(0, 255, (side // 4, side // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(buffer, "PNG")
    return [Candidate(f"c{i}", f"r{i}", 0, i, f"thing {i}", buffer.getvalue()) for i in range(count)]


def bare(args: argparse.Namespace, address: str, candidates: list[Candidate]) -> None:
    from prefkit.score.judge.server import data_url

    bodies = queue.SimpleQueue[bytes]()
    for c in candidates:
        content = [{"type": "image_url", "image_url": {"url": data_url(c)}}, {"type": "text", "text": c.prompt}]
        bodies.put(json.dumps({"model": "j", "messages": [{"role": "user", "content": content}]}).encode())

    def work() -> None:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        while not bodies.empty():
            with contextlib.suppress(queue.Empty):
                connection.request("POST", "/chat/completions", bodies.get_nowait())
                connection.getresponse().read()

    threads = [threading.Thread(target=work) for _ in range(args.in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def scorer_on(
    args: argparse.Namespace, address: str, candidates: list[Candidate], cache: Path, wait: bool = False
) -> None:
    from prefkit.score.core import make_scorer
    from prefkit.score.overlap import in_order
    from prefkit.score.passes import AHEAD

    options = {"model": "j", "server": address, "in_flight": args.in_flight, "cache": str(cache)}
    scorer = make_scorer("mllm", options)
    scorer.load("cpu", "float32")
    size, width = (args.batch, 1) if wait else (scorer.batch, scorer.concurrency)
    batches = [candidates[at : at + size] for at in range(0, args.items, size)]
    calls = ((b, scorer.score(b)) for b in batches) if wait else in_order(scorer.score, batches, width, AHEAD * width)
    scores = [score for _, found in calls for score in found]
    assert len(scores) == args.items and all(score.value == 3.0 for score in scores)
    scorer.close()


def run(args: argparse.Namespace, address: str, folder: Path) -> list[dict[str, Any]]:
    from prefkit.score.remote.client import Client

    candidates = pictures(args.items, args.side)
    watcher = Client(address)
    kinds = {
        "bare": lambda r: bare(args, address, candidates),
        "overlapped": lambda r: scorer_on(args, address, candidates, folder / f"{r}a.sqlite"),
        "one by one": lambda r: scorer_on(args, address, candidates, folder / f"{r}b.sqlite", wait=True),
        "cached": lambda r: scorer_on(args, address, candidates, folder / f"{r}a.sqlite"),
        "stage": lambda r: stage(args, address, candidates, folder / str(r)),
    }
    seen: dict[str, list[dict[str, float]]] = {what: [] for what in kinds}
    for number in range(args.rounds):
        for what, work in kinds.items():
            start, before = time.perf_counter(), time.process_time()
            work(number)
            row = {"seconds": time.perf_counter() - start, "cpu": (time.process_time() - before) / args.items}
            row |= watcher.get("/busy").body if what != "cached" else {"mean": 0.0, "most": 0, "n": 0}
            seen[what].append(
                row | {"of bare": row["mean"] / (seen["bare"][number]["mean"] if what != "bare" else row["mean"])}
            )
    rows = []
    for what, found in seen.items():
        middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
        row = {"what": what, "seconds": round(middle["seconds"], 2), "asked": int(middle["n"])}
        row |= {"busy": f"{middle['mean'] / args.in_flight:.1%}", "of bare": round(middle["of bare"], 3)}
        rows.append(row | {"most at once": int(middle["most"]), "own CPU ms/item": round(1000 * middle["cpu"], 3)})
    return rows


def stage(args: argparse.Namespace, address: str, candidates: list[Candidate], folder: Path) -> None:
    from prefkit.config import Recipe, Score
    from prefkit.score.run import run_scores
    from prefkit.store import Store
    from prefkit.store.table import candidate_row
    from prefkit.types import Request

    store = Store.create(folder)
    store.write_requests([Request(c.request_id, c.prompt) for c in candidates])
    for at in range(0, len(candidates), 512):
        store.candidates("own").append([candidate_row(c) for c in candidates[at : at + 512]])
    options = {"model": "j", "server": address, "in_flight": args.in_flight, "cache": str(folder / "answers.sqlite")}
    recipe = Recipe(run=str(store.folder), score={"q": Score("mllm", options, batch_size=args.batch)})
    run_scores(store, recipe, ["q"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--answer-ms", type=float, default=50)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    port: Any = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=judge_process, args=(args.answer_ms / 1000, port))
    process.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(table(run(args, f"http://127.0.0.1:{port.get()}", Path(folder))))
    finally:
        process.terminate()
        process.join()
    image = len(pictures(1, args.side)[0].image or b"") / 1000
    print(
        f"{args.items} images of {args.side} px ({image:.1f} kB), {args.in_flight} in flight, {args.answer_ms:g} ms an "
        f"answer, batches of {args.batch}; {os.cpu_count()} CPUs"
    )


if __name__ == "__main__":
    main()
