"""Read the meshes of candidates. A mesh that cannot be read becomes a failed score and does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from prefkit.errors import UsageError
from prefkit.mesh.observed import Observed, observed
from prefkit.mesh.payload import Mesh
from prefkit.mesh.ranking.features import Layout
from prefkit.types import Candidate, Score

T = TypeVar("T")


def each_mesh(batch: Sequence[Candidate], read: Callable[[Candidate, Mesh], T]) -> list[T | Score]:
    """Return `read(candidate, mesh)` for each candidate; a failed Score if there is no mesh or `read` fails."""
    results: list[T | Score] = []
    for candidate in batch:
        try:
            if candidate.payload is None:
                raise ValueError("the candidate has no payload, but this scorer needs a mesh in it")
            results.append(read(candidate, Mesh.unpack(candidate.payload)))
        except (ValueError, UsageError) as error:
            results.append(Score(None, error=str(error)))
    return results


def requests_of(batch: Sequence[Candidate]) -> Iterator[list[int]]:
    """Yield, for each request, the indices of its candidates in `batch`."""
    positions: dict[str, list[int]] = {}
    for n, candidate in enumerate(batch):
        positions.setdefault(candidate.request_id, []).append(n)
    yield from positions.values()


def hypotheses(batch: Sequence[Candidate], layout: Layout) -> tuple[Observed | None, list[Mesh | Score]]:
    """Return one request's observation and, for each candidate, its mesh or, if that is unusable, a failed Score.

    If the request itself is unusable, the observation is None and every candidate gets a failed Score.
    """
    try:
        seen = observed(batch[0].extra, layout.joints)
    except (ValueError, UsageError) as error:
        return None, [Score(None, error=str(error)) for _ in batch]

    def usable(_: Candidate, mesh: Mesh) -> Mesh:
        layout.check(mesh)
        seen.check(mesh.joints3d)
        return mesh

    return seen, each_mesh(batch, usable)
