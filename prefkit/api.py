"""The Python interface to a run: methods that run the command line's stages, or return a table as a DataFrame."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import Recipe, arguments, reader, resolve, rounds
from prefkit.config import redo as redoing
from prefkit.distributed import group
from prefkit.errors import PluginError, TooManyFailures, UsageError
from prefkit.output import shell_quoted, warn
from prefkit.registry import nearest
from prefkit.store import Store
from prefkit.store.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

Names = str | Sequence[str]
STAGES = ("generate", "score", "pair", "train", "eval")


class Run:
    """A run folder and its recipe. Each stage method does only the missing work and returns {recipe entry: counts}.

    Open a run with `Run("runs/x", recipe="recipe.yaml")` or `Run("runs/x")`. Sections of the recipe are further arguments,
    merged into the stored recipe: `Run("runs/x", score={"blue": function}, requests=["a cat"])`. A function or class may
    replace the name of a plug-in. Further arguments of a stage method are settings of its entry: `run.generate(n=4)`.
    All errors are subclasses of PrefkitError.
    """

    def __init__(
        self, folder: str | Path | None = None, recipe: str | Path | Recipe | None = None, **sections: Any
    ) -> None:
        self._requests: str | None = None
        if isinstance(recipe, Recipe):
            self.recipe = recipe
        else:
            where = str(folder) if folder else None
            source, sections = _request_source(sections)
            self.recipe = resolve.resolve(where, str(recipe) if recipe else None, "run", sections=sections)
            if source is not None:
                self._requests = arguments.request_lines(source, self.recipe.requests.prompt_column)
        if self._requests is not None:
            path = (Path(self.recipe.run) / "prompts.jsonl").absolute()
            self.recipe = replace(self.recipe, requests=replace(self.recipe.requests, source=str(path)))
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

    def __repr__(self) -> str:
        from prefkit.report.notebook import summary

        return f"Run({str(self.folder)!r}: {summary(self.store)})"

    def _repr_html_(self) -> str:
        from prefkit.report.notebook import overview

        reader.set_background(self.recipe.background)
        return overview(self.store)

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
    def generate(
        self, names: Names = (), *, limit: int | None = None, redo: bool = False, **settings: Any
    ) -> dict[str, Any]:
        return self._set("generate", names, settings).stage("generate", names, limit=limit, redo=redo)

    def score(
        self, names: Names = (), *, limit: int | None = None, redo: bool = False, **settings: Any
    ) -> dict[str, Any]:
        return self._set("score", names, settings).stage("score", names, limit=limit, redo=redo)

    def compare(
        self, names: Names = (), *, limit: int | None = None, redo: bool = False, **settings: Any
    ) -> dict[str, Any]:
        return self._set("compare", names, settings).stage("compare", names, limit=limit, redo=redo)

    def pair(
        self, names: Names = (), *, limit: int | None = None, redo: bool = False, **settings: Any
    ) -> dict[str, Any]:
        return self._set("pair", names, settings).stage("pair", names, limit=limit, redo=redo)

    def train(
        self,
        names: Names = (),
        *,
        limit: int | None = None,
        controls: bool = False,
        redo: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:
        return self._set("train", names, settings).stage("train", names, limit=limit, controls=controls, redo=redo)

    def eval(
        self, names: Names = (), *, limit: int | None = None, redo: bool = False, **settings: Any
    ) -> dict[str, Any]:
        return self._set("eval", names, settings).stage("eval", names, limit=limit, redo=redo)

    def _set(self, verb: str, names: Names, settings: Mapping[str, Any]) -> Run:
        """Change settings of the entry that the stage will run. Raises UsageError."""
        if settings:
            self.recipe = resolve.with_options(self.recipe, verb, _listed(names), settings)
        return self

    def report(self, *others: str | Path | Run) -> Path:
        """Write report.html, or with further runs one page that compares all of them, and return its path."""
        from prefkit.report.compare import compare_runs
        from prefkit.report.page import write_report

        if others:
            stores = [run.store if isinstance(run, Run) else Store(run) for run in others]
            return compare_runs([self.store, *stores])

        if not self.store.exists():
            raise UsageError(f"{self.folder} is not a run folder: it has no run.json. Start with run.generate().")
        reader.set_background(self.recipe.background)
        return write_report(self.store, self.recipe)

    def push(self, to: str, **options: Any) -> dict[str, Any]:
        """Push `pairs` or the model `train` to the Hub, or RUN/fitted/NAME with `fit`. options: of prefkit.hub.push.push."""
        from prefkit.hub.push import push, push_fit

        fit = options.pop("fit", None)
        act: Any = partial(push, self.store) if fit is None else partial(push_fit, self.folder / "fitted" / str(fit))
        known = inspect.signature(act).parameters
        for key in options.keys() - known.keys():
            raise UsageError(f"push: unknown argument {key!r}.{nearest(key, list(known))}")
        return dict(act(to, **options))

    def import_(
        self,
        source: str | Path,
        layout: str | None = None,
        *,
        name: str | None = None,
        pairs: bool = False,
        copy: bool = False,
        test_share: float = 0.1,
        max_failed: float = 0.001,
        **options: Any,
    ) -> dict[str, Any]:
        """Import pairs, ratings, images or votes, like `prefkit import`. options: those of the layout, such as `map`."""
        from prefkit.hub.importing.run import run_import
        from prefkit.human.votes import import_votes, vote_files

        reader.set_background(self.recipe.background)
        options = {key: _assignments(value) for key, value in options.items()}
        if layout == "votes" or (layout is None and vote_files(str(source))):
            return import_votes(self.store, str(source), name or "votes")
        counts = run_import(
            self.store,
            str(source),
            layout=layout,
            name=name,
            flags=options,
            keep=not copy,
            pairs=pairs,
            test_share=test_share,
            max_failed=max_failed,
        )
        self.store = Store(self.recipe.run)
        return counts

    def export(
        self,
        out: str | Path,
        layout: str,
        *,
        pairs: str | None = None,
        train: str | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Write pairs for another trainer, or the adapter of a training for another program, like `prefkit export`."""
        from prefkit.hub.export_run import run_export
        from prefkit.models.lora.files import export_as

        if train is None:
            source = str(self.folder if pairs is None else self.folder / pairs)
            return run_export(source, out, layout=layout, flags=options, overwrite=overwrite)
        if options or pairs:
            raise UsageError(f"export: a trained adapter takes no {next(iter(options), 'pairs')}. Leave it out.")
        return export_as(self.store.train(train), out, layout, overwrite)

    def vote(self, **settings: Any) -> dict[str, Any]:
        """Write a voting page; see prefkit.human.page.VoteSettings. `import_` reads the votes that annotators save."""
        from prefkit.human.page import VoteSettings, write_vote_page

        reader.set_background(self.recipe.background)
        return write_vote_page(self.store, reader.build(VoteSettings, settings, "vote"))

    def fit(self, name: Any, **options: Any) -> dict[str, Any]:
        """Fit a scorer, like `prefkit fit`, by default in RUN/fitted/NAME. pairs: also the name of a pair set of this run."""
        from prefkit import registry
        from prefkit.fit.run import run_fit

        (name,) = arguments.with_plugins([name])
        kind = getattr(registry.load_class("fitter", name), "Options", None)
        known = reader.field_names(kind) if kind is not None else []
        pairs = options.get("pairs")
        if pairs in self.store.names("pairs"):
            options["pairs"] = str(self.store.pairs(str(pairs)))
        elif "run" in known and not pairs:
            options.setdefault("run", str(self.folder))
        if "out" in known:
            options.setdefault("out", str(self.folder / "fitted" / registry.short_name(name)))
        return run_fit(name, options)

    def stage(self, verb: str, names: Names = (), *, redo: bool = False, **options: Any) -> dict[str, Any]:
        """Run the stage `verb` on its recipe entries `names` (default: all).

        redo: move entries with other settings, and everything made from them, to RUN/.old; False: refuse them.
        Raises PrefkitError; TooManyFailures only after all entries are done.
        """
        processes = group()
        if verb not in resolve.NAMED:
            raise UsageError(f"no stage is called {verb!r}.{nearest(str(verb), resolve.NAMED)}")
        limit = options.get("limit")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise UsageError(f"{verb}: limit must be a whole number above 0, or None, not {limit!r}.")
        reader.set_background(self.recipe.background)
        rounds.check_stage(self.recipe, self.store, verb)
        first = processes.lead(lambda: not (self.store.folder / "recipe.yaml").exists())
        new, files = processes.lead(self.begin)
        self.store = Store(self.recipe.run)
        chosen = resolve.chosen_names(self.recipe, verb, _listed(names))
        try:
            if verb == "score":  # all scorers run together, so that they share passes over the images
                act = partial(_stage("score", "run_scores"), self.store, self.recipe, chosen, **options)
                results = self._redoing(act, redo)
            else:
                results = {name: self._redoing(self._entry(verb, name, options), redo) for name in chosen}
        except (UsageError, PluginError) as error:
            alone = processes.main and not processes.sharded  # other workers may have begun in this folder
            if alone and isinstance(error, UsageError) and new:
                self.store.undo(keep=files)
            elif alone and first:  # later commands would take the failed entry for wanted
                (self.store.folder / "recipe.yaml").unlink(missing_ok=True)
            raise
        if verb == "generate":
            processes.lead(self._warn_if_few)
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

    def _warn_if_few(self) -> None:
        """Warn of too few held-out requests as soon as they are known, before the time for training is spent."""
        from prefkit.evaluate.statistics import limits_of_few

        splits = self.store.request_table(["split"]).column("split").to_pylist()
        wanted = "test" in splits or (self.recipe.eval and self.recipe.requests.test_share > 0)
        if wanted and (text := limits_of_few(splits.count("test"))):
            warn(f"held out for eval: {splits.count('test')} of {len(splits)} requests. {text}")

    def begin(self) -> tuple[bool, list[str]]:
        """Create the run folder. Returns (True if the run is new, file names that the folder already held)."""
        new, folder = not self.store.exists(), self.store.folder
        files = [path.name for path in folder.iterdir()] if new and folder.exists() else []
        self.store = Store.create(self.recipe.run)
        if self._requests is not None:
            write_atomic(self.store.folder / "prompts.jsonl", self._requests)
        if not (self.store.folder / "recipe.yaml").exists():
            self.save_recipe()
        return new, files

    def save_recipe(self) -> None:
        write_atomic(self.store.folder / "recipe.yaml", reader.dump(self.recipe, self.store.folder))

    def _entry(self, verb: str, name: str, options: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        act = partial(_stage(verb), self.store, self.recipe, name, **options)
        return partial(group().lead, act) if verb in ("pair", "compare") else act

    def _redoing(self, act: Callable[[], dict[str, Any]], redo: bool) -> dict[str, Any]:
        put_away = partial(redoing.put_away, self.store) if redo else None
        return redoing.redoing(self.store, self.recipe, act, group().lead, put_away)

    # -- tables ---------------------------------------------------------------------------------------------------
    def requests(self) -> pd.DataFrame:
        import dataclasses

        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(r) for r in self.store.requests()])

    def candidates(self, generator: str | None = None) -> pd.DataFrame:
        """Return a table of candidates. To read their images and payloads, use `run.store.iter_candidates()`."""
        import pandas as pd

        columns = ["id", "request_id", "index", "seed", "path", "sha256", "extra", "error"]
        names = self.store.names("candidates")
        if generator is not None and generator not in names:
            raise UsageError(f"{self.folder} has no candidates called {generator!r}.{nearest(generator, names)}")
        names = [generator] if generator else names
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


def _assignments(value: Any) -> Any:
    """Return a mapping as the text that a flag takes, `key=value,key=value`."""
    return ",".join(f"{key}={inner}" for key, inner in value.items()) if isinstance(value, Mapping) else value


def _listed(names: Names) -> Sequence[str]:
    if isinstance(names, Sequence):
        return [names] if isinstance(names, str) else names
    raise UsageError(f"{names!r} is not the name of an entry. Give a name, or a list of names.")


def _request_source(sections: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return (list of requests or None, sections without it). The list is `requests` itself or its `source`."""
    requests = sections.get("requests")
    source = requests.get("source") if isinstance(requests, Mapping) else requests
    if source is None or isinstance(source, (str, Path)):
        return None, dict(sections)
    others = {key: value for key, value in requests.items() if key != "source"} if isinstance(requests, Mapping) else {}
    return source, {**sections, "requests": others}


def _stage(verb: str, function: str = "") -> Any:
    import importlib

    module = {"eval": "evaluate.run", "compare": "score.compare"}.get(verb, f"{verb}.run")
    return getattr(importlib.import_module(f"prefkit.{module}"), function or f"run_{verb}")
