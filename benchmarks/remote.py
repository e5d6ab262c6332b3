"""How busy a remote judge is kept: its mean number of requests under way, as a share of `--in-flight`.

    python benchmarks/remote.py [--items 4000] [--in-flight 64] [--answer-ms 50] [--side 64] [--batch 512] [--stage]

The judge is a process of its own that sleeps --answer-ms and gives log-probabilities. It says itself how many requests it
had under way, from the first to the last. Time with fewer than --in-flight is time lost by this side.

overlapped  batches of the scorer `mllm` through `in_order`, as many as 2 x in-flight items need
one by one  the same batches, each waiting for the one before it
cached      the first again: nothing is asked
stage       `prefkit score` as it stands, with its tables (--stage)
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import tempfile
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
    """An HTTP server on one event loop: POST waits and answers, GET tells how busy it has been and starts anew."""

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
                body = json.dumps({"mean": self.area / (self.last - self.first), "most": self.most, "n": self.count})
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


def run(args: argparse.Namespace, address: str, folder: Path) -> list[dict[str, Any]]:
    from prefkit.score.core import make_scorer
    from prefkit.score.overlap import in_order
    from prefkit.score.remote.client import Client

    batches_of = pictures(args.items, args.side)
    batches = [batches_of[at : at + args.batch] for at in range(0, args.items, args.batch)]
    watcher = Client(address)
    rows = []

    def measured(what: str, width: int, cache: str) -> None:
        options = {"model": "j", "server": address, "in_flight": args.in_flight, "cache": str(folder / cache)}
        scorer = make_scorer("mllm", options)
        scorer.load("cpu", "float32")
        start, before = time.perf_counter(), time.process_time()
        if width == 1:
            scores = [score for batch in batches for score in scorer.score(batch)]
        else:
            scores = [score for _, found in in_order(scorer.score, batches, width) for score in found]
        seconds, used = time.perf_counter() - start, time.process_time() - before
        assert len(scores) == args.items and all(score.value == 3.0 for score in scores)
        rows.append(row(what, seconds, used, scorer.backend.client.sent))

    def row(what: str, seconds: float, used: float | None, sent: int) -> dict[str, Any]:
        busy = watcher.get("/busy").body if sent else {"mean": 0.0, "most": 0}
        return {
            "what": what,
            "seconds": round(seconds, 2),
            "asked": sent,
            "busy": f"{busy['mean'] / args.in_flight:.1%}",
            "most at once": busy["most"],
            "answers/s": round(args.items / seconds),
            "own CPU ms/item": None if used is None else round(1000 * used / args.items, 3),
        }

    width = max(2, -(-2 * args.in_flight // args.batch) + 1)
    measured("overlapped", width, "a.sqlite")
    measured("one by one", 1, "b.sqlite")
    measured("cached", width, "a.sqlite")
    if args.stage:
        start = time.perf_counter()
        stage(args, address, batches_of, folder)
        rows.append(row("stage", time.perf_counter() - start, None, args.items))
    return rows


def stage(args: argparse.Namespace, address: str, candidates: list[Candidate], folder: Path) -> None:
    from prefkit.config import Recipe, Score
    from prefkit.score.run import run_score
    from prefkit.store import Store, candidate_row
    from prefkit.types import Request

    store = Store.create(folder / "run")
    store.write_requests([Request(c.request_id, c.prompt) for c in candidates])
    for at in range(0, len(candidates), 512):
        store.candidates("own").append([candidate_row(c) for c in candidates[at : at + 512]])
    options = {"model": "j", "server": address, "in_flight": args.in_flight, "cache": str(folder / "c.sqlite")}
    recipe = Recipe(run=str(store.folder), score={"q": Score("mllm", options, batch_size=args.batch)})
    run_score(store, recipe, "q")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--answer-ms", type=float, default=50)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--stage", action="store_true")
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
