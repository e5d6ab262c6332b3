"""A process with torch and the rest imported, which forks for every command line that it reads on stdin.

A line in is JSON: argv, cwd. A line out: code (of the process; negative is a signal), out, err. A child has CPU seconds,
wall seconds and memory of its own, so that a hang and a bomb are outcomes and not the end of the test.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

CPU_SECONDS, WALL_SECONDS, MEMORY = 60, 300, 4 << 30


def child(argv: list[str], cwd: str, out: str, err: str) -> int:
    os.chdir(cwd)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    signal.alarm(WALL_SECONDS)
    from prefkit.cli.main import main

    try:
        main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
        code = 99
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return code


def answer(argv: list[str], cwd: str, scratch: str) -> dict[str, object]:
    out, err = f"{scratch}/out", f"{scratch}/err"
    pid = os.fork()
    if pid == 0:
        code = 97
        try:
            code = child(argv, cwd, out, err)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    texts = {name: Path(path).read_text("utf-8", "replace") for name, path in (("out", out), ("err", err))}
    return {"code": os.waitstatus_to_exitcode(status), **texts}


def serve() -> None:
    import accelerate
    import datasets
    import diffusers
    import pandas
    import peft
    import torch
    import transformers

    import prefkit.cli.dry_run
    import prefkit.evaluate.run
    import prefkit.generate.run
    import prefkit.pair.run
    import prefkit.report.page
    import prefkit.score.run
    import prefkit.train.online.run
    import prefkit.train.run

    assert all((accelerate, datasets, diffusers, pandas, peft, transformers, prefkit))
    torch.set_num_threads(1)
    scratch = sys.argv[1]
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line), scratch=scratch)), flush=True)


if __name__ == "__main__":
    serve()
