"""Create scorers, which are plug-in classes or plain functions, and score lists of candidates with them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import Recipe, bounds, plugin_options
from prefkit.errors import PluginError, PrefkitError, UsageError
from prefkit.models.memory import AdaptiveBatchSize, free_memory, out_of_memory
from prefkit.paths import read_regular
from prefkit.plugin_guard import copies, error_summary, error_text, guarded, is_own
from prefkit.score.contract import check_attributes, checked, row_of, scores_of
from prefkit.score.declare import declared
from prefkit.score.licence import check_licence
from prefkit.types import Candidate, Score, Scorer, ScorerSpec

DECLARED = (
    "higher_is_better",
    "range",
    "scope",
    "licence",
    "evaluation_only",
)  # fields of both Declaration and ScorerSpec
AHEAD = 3  # batches decoded ahead of the one being scored


class FunctionScorer:
    """Scorer that calls a function `(images, prompts, **context) -> list[float | None]`; see `@prefkit.scorer`.

    Each further argument, such as `user` in `def f(images, prompts, user)`, gets the values of the request column of
    that name; input images are RGB PIL images. The spec's version includes the hash of the function's file.
    """

    def __init__(self, function: Callable[..., Any], use: str) -> None:
        self.function, self.use, self.declaration = function, use, declared(function)
        parameters = list(inspect.signature(function).parameters.values())[2:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.context = [p.name for p in named]
        self.name = self.declaration.name or use
        self.requires = frozenset(self.declaration.requires) | {p.name for p in named if p.default is p.empty}
        self.scope = self.declaration.scope
        self.batch, self.concurrency = self.declaration.batch, self.declaration.concurrency

    def spec(self) -> ScorerSpec:
        code = registry.code_hash(self.use, "scorer") if ":" in self.use else None
        if not code:
            path = Path(inspect.getsourcefile(self.function) or "")
            code = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "unknown"
        return ScorerSpec(
            self.name,
            f"{self.declaration.version} {code[:16]}".strip(),
            formula=(inspect.getdoc(self.function) or "").split("\n")[0],
            **{name: getattr(self.declaration, name) for name in DECLARED},
        )

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: a function has no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        context = {name: [c.value(name) for c in batch] for name in self.context}
        values = self.function([c.pil() for c in batch], [c.prompt for c in batch], **context)
        row = row_of(values, len(batch), f"scorer {self.name}")
        return [Score(None, error="the function returned None") if v is None else Score(v) for v in row]


def make_scorer(use: str, options: Mapping[str, Any], where: str = "") -> Any:
    """Create the scorer that `use` names, without loading weights. Raises UsageError, PluginError."""
    plugin = registry.load("scorer", use)
    if inspect.isfunction(plugin):
        if options:
            raise UsageError(f"{where or use}: a function takes no options, but got {', '.join(options)}. Remove them.")
        return FunctionScorer(plugin, use)
    if not all(callable(getattr(plugin, name, None)) for name in ("spec", "load", "score")):
        raise PluginError(
            f"{where or 'scorer'}: {use} is not a scorer. A scorer is a function (images, prompts) -> list of numbers, or "
            "a class with the methods spec, load and score."
        )
    checked_options = plugin_options.options(plugin, options, where or f"scorer {use}")
    with guarded(f"scorer {use}", "could not be created"):
        scorer = plugin(checked_options)
    if not is_own(plugin):
        check_attributes(scorer, f"scorer {use}")
    return scorer


def scorer_of(recipe: Recipe, name: str) -> Any:
    """Create the scorer of `recipe.score[name]` without loading weights. Raises UsageError for invalid settings."""
    settings = recipe.score[name]
    bounds.check(settings, f"score.{name}")
    scorer = make_scorer(settings.use, settings.options, f"score.{name}")
    check_licence(scorer, settings.accept_license, f"score.{name}")
    return scorer


def missing_keys(scorer: Scorer, candidate: Candidate) -> list[str]:
    """Return the names in the scorer's `requires` that the candidate lacks, sorted."""
    has = {"prompt"} | set(candidate.extra)
    has |= {"image"} if candidate.image is not None or candidate.path is not None else set()
    has |= {"payload"} if candidate.payload is not None else set()
    return sorted(set(scorer.requires) - has)


def check_requires(scorer: Scorer, candidate: Candidate, score_name: str) -> None:
    """Raise UsageError if the scorer requires an image, a payload or a request column that the candidate lacks."""
    missing = missing_keys(scorer, candidate)
    if "image" in missing:
        raise UsageError(
            f"score.{score_name}: the scorer needs images, but candidate {candidate.id} has none. If the candidate is "
            "a mesh, generate again without `call: {render: false}`; else remove this score from the recipe."
        )
    if "payload" in missing:
        raise UsageError(
            f"score.{score_name}: the scorer reads payloads, such as meshes, but candidate {candidate.id} has none. Set "
            f"score.{score_name}.generators to generators that make payloads."
        )
    if missing:
        raise UsageError(
            f"score.{score_name}: the scorer needs {', '.join(missing)}, which request {candidate.request_id} does not "
            "have. Add a column of that name to the requests."
        )


def decoded_batches(batches: Iterator[list[Candidate]]) -> Iterator[list[Candidate | Score]]:
    """Yield the batches with decoded images (see `decode`). Background threads decode AHEAD batches in advance."""
    with ThreadPoolExecutor(2) as pool:
        queue = [pool.submit(decode, batch) for batch in islice(batches, AHEAD)]
        while queue:
            ready = queue.pop(0).result()
            queue += [pool.submit(decode, batch) for batch in islice(batches, 1)]
            yield ready


def decode(batch: Sequence[Candidate]) -> list[Candidate | Score]:
    """Return the candidates with decoded images. A candidate that cannot be decoded is replaced by a failed Score."""
    from PIL import Image

    items: list[Candidate | Score] = []
    for c in batch:
        try:
            items.append(_read(c))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            items.append(Score(None, error=undecodable(error)))
    return items


def with_input_images(
    batch: Sequence[Candidate], column: str, score: Callable[[list[Candidate]], Sequence[Score]]
) -> list[Score]:
    """Return the scores of `score` for candidates with input images in `column`, and failed scores for the others."""
    shown = [candidate for candidate in batch if candidate.input_images(column)]
    scores = {candidate.id: one for candidate, one in zip(shown, score(shown), strict=True)} if shown else {}
    missing = Score(None, error=f"the column {column} holds no images; list {column} under requests.images")
    return [scores.get(candidate.id, missing) for candidate in batch]


def undecodable(error: Exception) -> str:
    return f"the image could not be decoded: {error_text(error)}"


def _read(c: Candidate) -> Candidate:
    """Decode a candidate's image, if any, and hash the image's bytes: encoders cache embeddings by this hash."""
    if c.image is None and c.path is None and c.payload is not None:
        return c
    data = read_regular(c.path) if c.image is None and c.path is not None else c.image
    image = dataclasses.replace(c, image=data).pil()
    return dataclasses.replace(c, decoded=image, sha256=hashlib.sha256(data or b"").hexdigest())


def score_batch(
    scorer: Scorer, items: Sequence[Candidate | Score], batch_size: AdaptiveBatchSize | None = None
) -> list[Score]:
    """Return one Score per item, in order. If the scorer raises an exception, each item is scored alone, so that only
    the item at fault fails. If memory runs out, the batch is halved until it fits, and `batch_size` is updated."""
    live = [c for c in items if isinstance(c, Candidate)]
    scores = iter(_score_halving(scorer, live, batch_size or AdaptiveBatchSize()))
    return [item if isinstance(item, Score) else next(scores) for item in items]


def _score_halving(scorer: Scorer, batch: Sequence[Candidate], batch_size: AdaptiveBatchSize) -> list[Score]:
    whole = scorer.scope == "within_request"
    results: list[Score] = []
    waiting = deque(batch)
    while waiting:
        size = len(waiting) if whole or batch_size.most is None else min(batch_size.most, len(waiting))
        part = [waiting[i] for i in range(size)]
        try:
            scores = _score(scorer, part)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = f"out of memory with {'the whole request' if whole else 'this image alone'}: {error}"
            scores = [] if size > 1 and not whole else [Score(None, error=" ".join(reason.split())[:300])] * size
        if not scores:  # outside of the `except` block, whose traceback would keep the tensors alive
            batch_size.halve(size)
            free_memory()
        for _ in scores:
            waiting.popleft()
        results += scores
    return results


def _score(scorer: Scorer, batch: Sequence[Candidate]) -> list[Score]:
    """Call the scorer; if that fails, call it once per candidate. Scorers that are not trusted get copies."""
    try:
        with guarded(lambda: f"scorer {name_of(scorer)}"):
            returned: Any = scorer.score(list(batch) if trusted(scorer) else copies(batch))
    except PrefkitError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(batch) == 1 or scorer.scope == "within_request":
            return [Score(None, error=error_summary(error))] * len(batch)
        return [score for c in batch for score in _score(scorer, [c])]
    return [checked(score) for score in scores_of(returned, len(batch), lambda: f"scorer {name_of(scorer)}")]


def trusted(scorer: Any) -> bool:
    """True for prefkit's own scorer classes, which do not modify images and dicts. All other scorers get copies."""
    return is_own(scorer) and not isinstance(scorer, FunctionScorer)


def close(scorer: Any, who: str) -> None:
    """End the scorer's processes and pending requests."""
    if hasattr(scorer, "close"):
        with guarded(who):
            scorer.close()


def name_of(scorer: Any) -> str:
    """Return the name in the scorer's spec, for error messages."""
    if isinstance(scorer, FunctionScorer):
        return scorer.name
    return str(getattr(scorer.spec(), "name", type(scorer).__name__))
