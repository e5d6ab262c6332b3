"""The Python interface to a run: methods that run the command line's stages, or return a table as a DataFrame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import Recipe, reader, resolve, rounds
from prefkit.distributed import group
from prefkit.errors import TooManyFailures, UsageError
from prefkit.output import shell_quoted
from prefkit.store import Store
from prefkit.store.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("generate", "score", "pair", "train", "eval")


class Run:
    """A run folder and its recipe. Each stage method does only the missing work and returns {recipe entry: counts}.

    Open a run with `Run("runs/x", recipe="recipe.yaml")`, `Run("runs/x", generate={"base": {...}})` or `Run("runs/x")`.
    """

    def __init__(
        self, folder: str | Path | None = None, recipe: str | Path | Recipe | None = None, **sections: Any
    ) -> None:
        if isinstance(recipe, Recipe):
            self.recipe = recipe
        else:
            where = str(folder) if folder else None
            self.recipe = resolve.resolve(where, str(recipe) if recipe else None, "run", sections=sections)
        self.store = Store(self.recipe.run)
        reader.set_background(self.recipe.background)

    @property
    def folder(self) -> Path:
        return self.store.folder

    # -- offline rounds -------------------------------------------------------------------------------------------
    def rounds(self) -> Iterator[Run]:
        """Yield one run per round of a recipe with `rounds`. Run all stages of a round before you take the next round.

        Raises UsageError if the recipe or the folder does not allow rounds, NotYet if a round's model is not trained.
        """
        from prefkit.evaluate.reuse import copy_base

        processes = group()
        first = self.round(1)
        rounds.check_folder(self.recipe, self.store)
        processes.lead(self.begin)
        for number in range(1, self.recipe.rounds + 1):
            part = self.round(number)
            if number > 1:
                processes.lead(partial(copy_base, first.store, part.store, part.recipe))
            yield part
            processes.lead(self.save_recipe)

    def round(self, number: int) -> Run:
        """Return the run in RUN/rounds/NUMBER. Raises UsageError, or NotYet if the previous round is not trained."""
        from prefkit.models.load.trained import trained_model

        trained = rounds.check(self.recipe)
        if number < 1:
            raise UsageError(f"round {number} does not exist: the first round is 1.")
        if number == 1:
            return Run(recipe=rounds.recipe_of(self.recipe, 1))
        before = self.round(number - 1)
        start = trained_model(before.folder, before.recipe.model, trained)
        return Run(recipe=rounds.recipe_of(self.recipe, number, start))

    # -- stages ---------------------------------------------------------------------------------------------------
    def generate(self, names: Sequence[str] = (), *, limit: int | None = None) -> dict[str, Any]:
        return self.stage("generate", names, limit=limit)

    def score(self, names: Sequence[str] = (), *, limit: int | None = None) -> dict[str, Any]:
        return self.stage("score", names, limit=limit)

    def pair(self, names: Sequence[str] = (), *, limit: int | None = None) -> dict[str, Any]:
        return self.stage("pair", names, limit=limit)

    def train(self, names: Sequence[str] = (), *, limit: int | None = None, controls: bool = False) -> dict[str, Any]:
        return self.stage("train", names, limit=limit, controls=controls)

    def eval(self, names: Sequence[str] = (), *, limit: int | None = None) -> dict[str, Any]:
        return self.stage("eval", names, limit=limit)

    def report(self) -> Path:
        from prefkit.report.page import write_report

        reader.set_background(self.recipe.background)
        return write_report(self.store, self.recipe)

    def push(self, to: str, *, pairs: str | None = None, train: str | None = None, **options: Any) -> dict[str, Any]:
        """Push pairs or a trained model to the Hub. `options` are passed to prefkit.hub.push.push."""
        from prefkit.hub.push import push

        return push(self.store, to, pairs=pairs, train=train, **options)

    def stage(self, verb: str, names: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        """Run the stage `verb` on its recipe entries `names` (default: all).

        Raises PrefkitError; TooManyFailures only after all entries are done.
        """
        processes = group()
        reader.set_background(self.recipe.background)
        rounds.check_stage(self.recipe, self.store, verb)
        new, files = processes.lead(self.begin)
        self.store = Store(self.recipe.run)
        chosen = resolve.chosen_names(self.recipe, verb, names)
        try:
            if verb == "score":  # all scorers run together, so that they share passes over the images
                results = _stage("score", "run_scores")(self.store, self.recipe, chosen, **options)
            elif verb == "pair":
                results = processes.lead(lambda: self._each(verb, chosen, options))
            else:
                results = self._each(verb, chosen, options)
        except UsageError:
            if new and processes.main:
                self.store.undo(keep=files)
            raise
        entries = getattr(self.recipe, verb)
        broken = [
            f"{name}: {counts['failed']} of {counts['wanted']}"
            for name, counts in results.items()
            if counts.get("failed", 0)
            > getattr(entries[name], "max_failed", math.inf) * max(counts.get("wanted", 0), 1)
        ]
        processes.lead(self.save_recipe)
        if broken:
            raise TooManyFailures(
                f"{verb} is done, but more items failed than max_failed allows ({'; '.join(broken)}). "
                f"`prefkit report {shell_quoted(self.folder)}` shows why. Run {verb} again to retry these items.",
                results,
            )
        return results

    def begin(self) -> tuple[bool, list[str]]:
        """Create the run folder. Returns (True if the run is new, file names that the folder already held)."""
        new, folder = not self.store.exists(), self.store.folder
        files = [path.name for path in folder.iterdir()] if new and folder.exists() else []
        self.store = Store.create(self.recipe.run)
        if not (self.store.folder / "recipe.yaml").exists():
            self.save_recipe()
        return new, files

    def save_recipe(self) -> None:
        write_atomic(self.store.folder / "recipe.yaml", reader.dump(self.recipe))

    def _each(self, verb: str, names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
        stage = _stage(verb)
        return {name: stage(self.store, self.recipe, name, **options) for name in names}

    # -- tables ---------------------------------------------------------------------------------------------------
    def requests(self) -> pd.DataFrame:
        import dataclasses

        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(r) for r in self.store.requests()])

    def candidates(self, generator: str | None = None) -> pd.DataFrame:
        """Return a table of candidates. To read their images and payloads, use `run.store.iter_candidates()`."""
        import pandas as pd

        columns = ["id", "request_id", "index", "seed", "path", "sha256", "extra", "error"]
        names = [generator] if generator else self.store.names("candidates")
        frames = [self.store.candidates(n).frame(columns).assign(generator=n) for n in names]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns, "generator"])

    def scores(self) -> pd.DataFrame:
        """Return a table with one row per candidate and one column per score. NaN: not scored, or scoring failed."""
        import pandas as pd

        tables: Mapping[str, Any] = {
            s: self.store.scores(s).frame(["id", "value"]).set_index("id").value for s in self.store.names("scores")
        }
        return pd.DataFrame(tables).rename_axis("id").reset_index()

    def pairs(self, name: str) -> pd.DataFrame:
        """Return a pair set as a table without the image bytes. Raises UsageError if the pair set does not exist."""
        import pandas as pd
        import pyarrow.parquet as pq

        self.store.check_single()
        files = sorted(self.store.pairs(name).glob("*/*.parquet"))
        if not files:
            known = ", ".join(self.store.names("pairs")) or "none"
            raise UsageError(f"{self.store.folder} has no pair set called {name!r}. Its pair sets are: {known}.")
        columns = [c for c in pq.read_schema(files[0]).names if not c.startswith("jpg_")]
        return pd.concat(
            [pd.read_parquet(f, columns=columns).assign(split=f.parent.name) for f in files], ignore_index=True
        )


def _stage(verb: str, function: str = "") -> Any:
    import importlib

    module = {"eval": "evaluate.run", "compare": "score.compare"}.get(verb, f"{verb}.run")
    return getattr(importlib.import_module(f"prefkit.{module}"), function or f"run_{verb}")
