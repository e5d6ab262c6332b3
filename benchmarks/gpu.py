"""Measure prefkit's stages on a GPU, at real model sizes with random weights, without network, in one table.

    python benchmarks/gpu.py --minutes 8 --out results   # all rows that fit into the time, the most valuable first
    python benchmarks/gpu.py --rows "sd15 dpo"           # only rows whose name contains the text
    python benchmarks/gpu.py --list                      # names of the rows
    python benchmarks/gpu.py --wheels                    # packages that this machine lacks, one per line
    python benchmarks/gpu.py --smoke --device cpu        # every row with tiny models

After each row, OUT/gpu.json and OUT/gpu.md are written. Rows run in another process. If a row fails or takes
too long, its reason is kept, and the next row starts in a new process, so that memory is free. Rows that do not fit into the
time are listed. Models are Stable Diffusion 1.5 at 512 px (sd15),
SDXL at 1024 px, and the FLUX transformer at 1024 px, in their published sizes (on_gpu/models.py).

time     median seconds per step, image or round
GiB      peak of torch's allocated memory in the timed part; the CUDA context and the allocator's reserve come on top
rate     useful FLOPs of the denoiser per second, as a share of the rate of matrix products of size 8192 in that precision
loss     of the first pair, with a fixed random adapter
gap      relative distance of the gradient of this pair's mean error from the CPU's in float32
script   a loop with the default habits of the diffusers Diffusion-DPO script (on_gpu/plain.py), on the same pairs
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from on_gpu.rows import rows  # noqa: E402
from on_gpu.table import summarised, write  # noqa: E402

RESERVE = 5.0  # seconds before the end in which no row starts


# -- one process that works through rows ------------------------------------------------------------------------------
def measure(row: Any, place: Any) -> dict[str, Any]:
    """Return the row's numbers, or {"error": reason}."""
    from on_gpu.work import WORK

    begun = time.monotonic()
    try:
        result = WORK[row.work](row, place)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return result | {"total seconds": round(time.monotonic() - begun, 1)}


def work(names: Sequence[str], place: Any, results: Path) -> int:
    """Measure rows and append each result to the file `results`; return 1 after the first row that fails."""
    from prefkit.models.memory import free_memory

    by_name = {row.name: row for row in rows()}
    for name in names:
        append(results, {"begin": name})
        result = measure(by_name[name], place)
        append(results, {"row": name, **result})
        if "error" in result:
            return 1
        free_memory()
    return 0


def append(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# -- the process that starts it, and writes the table -----------------------------------------------------------------
@dataclass
class Driver:
    """Runs rows in processes. start: function (names, results file) -> a started process; limits: seconds per row."""

    names: list[str]
    limits: dict[str, float]
    out: Path
    end: float  # of time.monotonic()
    start: Callable[[list[str], Path], subprocess.Popen]
    changed: Callable[[dict[str, dict[str, Any]]], None]

    def run(self) -> dict[str, dict[str, Any]]:
        """Return {row: result}; rows that had no time are left out."""
        done: dict[str, dict[str, Any]] = {}
        while left := [name for name in self.names if name not in done]:
            if time.monotonic() > self.end - RESERVE:
                break
            self._process(left, done)
        return done

    def _process(self, left: list[str], done: dict[str, dict[str, Any]]) -> None:
        """Run one process until it ends, or until a row takes too long."""
        results = self.out / "rows.jsonl"
        results.unlink(missing_ok=True)
        process = self.start(left, results)
        seen, row, begun = 0, left[0], time.monotonic()
        while True:
            ended = process.poll() is not None
            text = results.read_text(encoding="utf-8") if results.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()  # without a line that is still being written
            for line in map(json.loads, lines[seen:]):
                if "begin" in line:
                    row, begun = line["begin"], time.monotonic()
                else:
                    done[line.pop("row")] = line
                    self.changed(done)
            seen = len(lines)
            if ended:
                break
            if time.monotonic() > self.end:
                self._stop(process)
                return
            if time.monotonic() - begun > self.limits[row] and row not in done:
                self._stop(process)
                done[row] = {"error": f"stopped after {self.limits[row]:.0f} s"}
                break
            time.sleep(0.1)
        if row not in done:
            done[row] = {"error": f"the process ended with code {process.returncode}: {tail(self.out / 'log.txt')}"}
        self.changed(done)

    def _stop(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-300:] if log.exists() else ""


def started(arguments: argparse.Namespace) -> Callable[[list[str], Path], subprocess.Popen]:
    def start(names: list[str], results: Path) -> subprocess.Popen:
        command = [sys.executable, __file__, "--worker", json.dumps(names), "--out", str(arguments.out)]
        command += ["--device", arguments.device, *(["--smoke"] if arguments.smoke else [])]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with open(arguments.out / "log.txt", "a", encoding="utf-8") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    return start


def machine(device: str) -> dict[str, Any]:
    found = {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "bitsandbytes", "torchao")}
    if device.startswith("cuda"):
        code = "import torch; p = torch.cuda.get_device_properties(0); print(p.name, p.total_memory // 2**30, 'GiB')"
        found["device"] = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8"
        ).stdout.strip()
    return {"device": found.pop("device", "") or device, **found}


# -- packages ---------------------------------------------------------------------------------------------------------
def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def wheels() -> list[str]:
    """Requirements of prefkit, with the extras that the rows use, that this machine does not satisfy."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["8bit"]]
    wanted += project["optional-dependencies"]["quantize"]
    lacking = []
    for text in wanted:
        requirement, found = Requirement(text), version(Requirement(text).name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            lacking.append(text)
    return sorted(set(lacking))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, help="folder for the results; default: a new one in the temporary folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", default="", help="only rows whose name contains this text")
    parser.add_argument("--smoke", action="store_true", help="tiny models, two steps per row")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--wheels", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.wheels:
        print("\n".join(wheels()))
        return
    arguments.out = arguments.out or Path(tempfile.mkdtemp(prefix="prefkit-gpu-"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        from on_gpu.work import Place

        place = Place(arguments.out, arguments.device, arguments.smoke)
        sys.exit(work(json.loads(arguments.worker), place, arguments.out / "rows.jsonl"))
    chosen = [row for row in rows() if arguments.rows in row.name]
    if arguments.list:
        print("\n".join(row.name for row in chosen))
        return
    run(arguments, chosen)


def run(arguments: argparse.Namespace, chosen: Sequence[Any]) -> None:
    """Measure the chosen rows and print the table."""
    names, about = [row.name for row in chosen], machine(arguments.device)
    shown: list[str] = []

    def changed(done: dict[str, dict[str, Any]]) -> None:
        write(arguments.out, about, done, [name for name in names if name not in done])
        for line in summarised(done, arguments.out)[len(shown) :]:
            shown.append(line["row"])
            print(
                "  ".join(f"{key} {value}" if key != "row" else value for key, value in line.items() if value),
                flush=True,
            )

    end = time.monotonic() + 60 * arguments.minutes
    limits = {row.name: row.limit for row in chosen}
    done = Driver(names, limits, arguments.out, end, started(arguments), changed).run()
    print("\n" + write(arguments.out, about, done, [name for name in names if name not in done]))
    print(f"Written to {arguments.out}.")


if __name__ == "__main__":
    main()
