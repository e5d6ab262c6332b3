"""Vote files as a voting page saves them."""

from __future__ import annotations

import json
from pathlib import Path

from prefkit.human.votes import checksum


def write(run: Path, folder: Path, people: int = 1) -> None:
    """Write the answers of annotators who always prefer the image that they see on the left, for each page of the run."""
    folder.mkdir(exist_ok=True)
    for page in run.glob("votes/??????????.json"):
        pairs = json.loads(page.read_text())["pairs"]
        for number in range(people):
            who = f"person-{number:012x}"
            votes = [
                {
                    "pair": pair["pair"],
                    "order": "ba" if "again" in pair else "ab",
                    "choice": "left",
                    "time": 1_700_000_000_123,
                }
                for pair in pairs
            ]
            body = {"prefkit_votes": 1, "page": page.stem, "annotator": who, "votes": votes}
            body["check"] = checksum(page.stem, who, votes)
            (folder / f"{page.stem}-{number}.json").write_text(json.dumps(body))
