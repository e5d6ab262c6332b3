"""Which back end answers a judge's questions: a model loaded here, or a server."""

from __future__ import annotations

from prefkit.errors import UsageError
from prefkit.score.judge.local import LocalBackend
from prefkit.score.judge.question import Backend, JudgeOptions
from prefkit.score.judge.server import ServerBackend


def make_backend(options: JudgeOptions, name: str) -> Backend:
    """Not loaded yet. Raises UsageError."""
    if not options.model:
        raise UsageError(
            f"{name}: `model` is not set: give the folder or Hub id of an image-text-to-text model, or `server` and the "
            "name of a model there."
        )
    if options.server:
        return ServerBackend(options)
    if options.body:
        raise UsageError(f"{name}: `body` goes into requests to a server; set `server`, or leave it out.")
    return LocalBackend(options)
