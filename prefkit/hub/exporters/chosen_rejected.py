"""A dataset with prompt, chosen and rejected as images (as open-image-preferences): `load_dataset(OUT)`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import Pairs
from prefkit.hub.shards import finish, in_data

TEXT = "Preference pairs: `chosen` won over `rejected` for `prompt`; `p` is how sure that is."


@dataclass(frozen=True)
class ChosenRejectedOptions:
    #: the name of the column with the prompt
    prompt: str = "prompt"


class ChosenRejected:
    Options = ChosenRejectedOptions

    def __init__(self, options: ChosenRejectedOptions) -> None:
        self.options = options

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Features, Image, Value

        text, number = Value("string"), Value("float64")
        schema = Features(
            {
                self.options.prompt: text, "chosen": Image(), "rejected": Image(), "chosen_model": text,
                "rejected_model": text, "p": number, "score_gap": number,
            }
        ).arrow_schema  # fmt: skip
        writers = in_data(out, schema)
        for pair in pairs.rows():
            row = {
                self.options.prompt: pair.caption, "chosen": {"bytes": pair.win, "path": None},
                "rejected": {"bytes": pair.lose, "path": None}, "chosen_model": pair.of("model", True),
                "rejected_model": pair.of("model", False), "p": pair.p, "score_gap": pair.columns.get("score_gap"),
            }  # fmt: skip
            writers[pair.split].put(row)
        return finish(writers, out, "Chosen and rejected images", TEXT)


plugin = ChosenRejected
