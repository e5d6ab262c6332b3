"""Choice of a judge's back end: a local model or a server."""

from __future__ import annotations

from prefkit.errors import UsageError
from prefkit.score.judge.local import LocalBackend
from prefkit.score.judge.question import Backend, JudgeOptions
from prefkit.score.judge.server import ServerBackend


def make_backend(options: JudgeOptions, name: str) -> Backend:
    """Create the back end of scorer `name` without loading weights. Raises UsageError for invalid options."""
    if not options.model:
        raise UsageError(
            f"{name}: `model` is not set. Set it to the folder or Hub id of an image-text-to-text model, to `tiny` "
            "(the embedded model) or, with `server`, to the name of a model on that server."
        )
    if options.server:
        return ServerBackend(options)
    if options.body:
        raise UsageError(f"{name}: `body` is for requests to a server; set `server`, or remove `body`.")
    return LocalBackend(options)


class JudgeScorer:
    """Common part of scorers that ask a judge: the back end and the limits on calls to it."""

    scope = "absolute"

    def __init__(self, options: JudgeOptions, name: str) -> None:
        self.backend = make_backend(options, name)
        self.concurrency, self.batch, self.close = self.backend.concurrency, self.backend.batch, self.backend.close
        self.alone = self.sends_files = bool(options.server)  # in a pass of its own: others do not wait for the server

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the model cannot be loaded, the address is invalid or the API key is not set."""
        self.backend.load(device, dtype)
