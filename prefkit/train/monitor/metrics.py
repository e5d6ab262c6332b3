"""metrics.jsonl, with one line per optimizer step (online: per round) and one per measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.config import Train, plain
from prefkit.output import warn
from prefkit.store.files import dump_line, read_lines, write_atomic
from prefkit.train.monitor.boards import flat, open_board

SMOOTHING = 0.95
PATIENCE = 50


class Log:
    """Writes metrics.jsonl. Opening the file at `step` drops the lines of later steps (at step 0, all lines)."""

    def __init__(self, path: Path, step: int, config: Train) -> None:
        kept = [row for row in read_lines(path) if row.get("step", step + 1) <= step] if step else []
        write_atomic(path, "".join(map(dump_line, kept)))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.board = open_board(config.report_to, path.parent, step, plain(config))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._write(step, finite(values), flat(values))

    def write_validation(self, step: int, report: Mapping[str, Any]) -> None:
        margins = zip(report["bins"], report["margin"], strict=True)
        scalars = {f"validation/margin_t_{name}": margin for name, margin in margins}
        self._write(step, {"validation": finite(report)}, flat(scalars))

    def image(self, step: int, path: Path) -> None:
        """Send a picture of samples to the tracker, if there is one."""
        if self.board is not None and path.exists():
            self.board.image(step, path)

    def _write(self, step: int, line: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
        self.file.write(dump_line({"step": step, **line}))
        self.file.flush()
        if self.board is not None and scalars:
            self.board.scalars(step, scalars)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with None for NaN and infinity, which JSON cannot represent."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class WinnerRegressionWarning:
    """Warns while the winners' smoothed advantage is negative: the policy fits winners worse than before training."""

    def __init__(self) -> None:
        self.smooth, self.below = 0.0, 0

    def update(self, step: int, win_advantage: float) -> None:
        self.smooth = SMOOTHING * self.smooth + (1 - SMOOTHING) * win_advantage
        self.below = self.below + 1 if self.smooth < 0 else 0
        if self.below and self.below % PATIENCE == 0:
            warn(
                f"step {step}: for {self.below} steps the model has been worse at the winners than before training "
                f"(smoothed advantage {self.smooth:.2e}); the margin grows only because the losers become even "
                "worse. Try a larger beta, a smaller learning_rate, or fewer steps."
            )

    def state(self) -> dict[str, float]:
        return {"smooth": self.smooth, "below": self.below}

    def load(self, state: Mapping[str, float]) -> None:
        self.smooth, self.below = state["smooth"], int(state["below"])
