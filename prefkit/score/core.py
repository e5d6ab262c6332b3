"""Any scorer on a list of candidates: a plug-in class, or a bare function of images and prompts."""

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
from prefkit.config import plugin_options
from prefkit.errors import PluginError, PrefkitError, UsageError
from prefkit.models.memory import AdaptiveBatchSize, free_memory, out_of_memory
from prefkit.paths import read_regular
from prefkit.plugin_guard import copies, error_summary, error_text, guarded, is_own
from prefkit.score.contract import check_attributes, checked, scores_of
from prefkit.score.declare import declared
from prefkit.score.numbers import row_of
from prefkit.types import Candidate, Score, Scorer, ScorerSpec

AHEAD = 3  # batches decoded ahead of the one being scored


class FunctionScorer:
    """`(images, prompts, **context) -> list[float | None]` as a scorer, with what `@prefkit.scorer` declares of it.

    Arguments beyond the first two are filled from the requests' extra, as lists: `def f(images, prompts, user)`. The hash
    of its file is in its version.
    """

    def __init__(self, function: Callable[..., Any], use: str) -> None:
        self.function, self.use, self.says = function, use, declared(function)
        parameters = list(inspect.signature(function).parameters.values())[2:]
        self.context = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        needed = {
            p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        self.name = self.says.name or use
        self.requires = frozenset(self.says.requires) | needed
        self.scope, self.batch, self.concurrency = self.says.scope, self.says.batch, self.says.concurrency

    def spec(self) -> ScorerSpec:
        says = self.says
        found = registry.code_hash(self.use, "scorer") if ":" in self.use else None
        path = Path(inspect.getsourcefile(self.function) or "")
        code = found or (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "unknown")
        return ScorerSpec(
            self.name,
            f"{says.version} {code[:16]}".strip(),
            formula=(inspect.getdoc(self.function) or "").split("\n")[0],
            higher_is_better=says.higher_is_better,
            range=says.range,
            scope=says.scope,
            licence=says.licence,
            evaluation_only=says.evaluation_only,
        )

    def load(self, device: str, dtype: str) -> None:
        """Nothing to load."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        given = {name: [c.extra.get(name) for c in batch] for name in self.context}
        values = self.function([c.pil() for c in batch], [c.prompt for c in batch], **given)
        row = row_of(values, len(batch), f"scorer {self.name}")
        return [Score(None, error="the function returned None") if v is None else Score(v) for v in row]


def make_scorer(use: str, options: Mapping[str, Any], where: str = "") -> Any:
    """The scorer called `use`, weights not loaded. Raises UsageError, PluginError."""
    found = registry.load("scorer", use)
    if inspect.isfunction(found):
        if options:
            raise UsageError(f"{where or use}: a function takes no options, but was given {', '.join(options)}.")
        return FunctionScorer(found, use)
    if not all(callable(getattr(found, name, None)) for name in ("spec", "load", "score")):
        raise PluginError(
            f"{where or 'scorer'}: {use} is no scorer: a function (images, prompts) -> list of numbers, or a class with "
            "spec, load and score, is needed."
        )
    checked_options = plugin_options.options(found, options, where or f"scorer {use}")
    with guarded(f"scorer {use}", "could not be created"):
        made = found(checked_options)
    if not is_own(found):
        check_attributes(made, f"scorer {use}")
    return made


def missing_keys(scorer: Scorer, candidate: Candidate) -> list[str]:
    """What the scorer requires and this candidate has not."""
    has = {"prompt"} | set(candidate.extra)
    has |= {"image"} if candidate.image is not None or candidate.path is not None else set()
    has |= {"payload"} if candidate.payload is not None else set()
    return sorted(set(scorer.requires) - has)


def decoded_batches(batches: Iterator[list[Candidate]]) -> Iterator[list[Candidate | Score]]:
    """Batches with images decoded in background threads; an undecodable one becomes its failed Score."""
    with ThreadPoolExecutor(2) as pool:
        queue = [pool.submit(decode, batch) for batch in islice(batches, AHEAD)]
        while queue:
            ready = queue.pop(0).result()
            queue += [pool.submit(decode, batch) for batch in islice(batches, 1)]
            yield ready


def decode(batch: Sequence[Candidate]) -> list[Candidate | Score]:
    from PIL import Image

    found: list[Candidate | Score] = []
    for c in batch:
        try:
            found.append(_read(c))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            found.append(Score(None, error=undecodable(error)))
    return found


def undecodable(error: Exception) -> str:
    return f"the image could not be decoded: {error_text(error)}"


def _read(c: Candidate) -> Candidate:
    """Decoded, with the hash of the very bytes: what has been embedded before is known by it."""
    data = read_regular(c.path) if c.image is None and c.path is not None else c.image
    image = dataclasses.replace(c, image=data).pil()
    return dataclasses.replace(c, decoded=image, sha256=hashlib.sha256(data or b"").hexdigest())


def score_batch(
    scorer: Scorer, items: Sequence[Candidate | Score], room: AdaptiveBatchSize | None = None
) -> list[Score]:
    """One Score an item, in order. An exception is pinned on its item by scoring one by one; NaN is a failure.

    Out of memory, the batch is halved until it fits, and `room` remembers its size for the next.
    """
    live = [c for c in items if isinstance(c, Candidate)]
    scores = iter(_fitted(scorer, live, room or AdaptiveBatchSize()) if live else [])
    return [item if isinstance(item, Score) else next(scores) for item in items]


def _fitted(scorer: Scorer, batch: Sequence[Candidate], room: AdaptiveBatchSize) -> list[Score]:
    whole = scorer.scope == "within_request"
    found: list[Score] = []
    waiting = deque(batch)
    while waiting:
        size = len(waiting) if whole or room.most is None else min(room.most, len(waiting))
        part = [waiting[i] for i in range(size)]
        try:
            scores = _scored(scorer, part)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = f"out of memory with {'the whole request' if whole else 'this image alone'}: {error}"
            scores = [] if size > 1 and not whole else [Score(None, error=" ".join(reason.split())[:300])] * size
        if not scores:  # outside of `except`, whose traceback would keep the tensors
            room.halve(size)
            free_memory()
        for _ in scores:
            waiting.popleft()
        found += scores
    return found


def _scored(scorer: Scorer, batch: Sequence[Candidate]) -> list[Score]:
    """Each call of a guest has copies of its own: also the one that is repeated image by image after an error."""
    try:
        with guarded(lambda: f"scorer {name_of(scorer)}"):
            found: Any = scorer.score(list(batch) if trusted(scorer) else copies(batch))
    except PrefkitError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(batch) == 1 or scorer.scope == "within_request":
            return [Score(None, error=error_summary(error))] * len(batch)
        return [score for c in batch for score in _scored(scorer, [c])]
    return [checked(score) for score in scores_of(found, len(batch), lambda: f"scorer {name_of(scorer)}")]


def trusted(scorer: Any) -> bool:
    """Whether it leaves images and dicts as they are: prefkit's own do, and share them; any other gets copies."""
    return is_own(scorer) and not isinstance(scorer, FunctionScorer)


def close(scorer: Any, who: str) -> None:
    """End what the scorer has under way elsewhere: a process, requests."""
    if hasattr(scorer, "close"):
        with guarded(who):
            scorer.close()


def name_of(scorer: Any) -> str:
    """How errors call it: the name in its spec."""
    if isinstance(scorer, FunctionScorer):
        return scorer.name
    spec = scorer.spec()
    return str(getattr(spec, "name", type(scorer).__name__))
