"""Folders of scorers on the Hub: downloaded at one commit, so that the stored revision is that of the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.models.load.revision import weights_revision

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def on_hub(source: str) -> bool:
    """True if `source` is written as a Hub id, owner/name, and no file or folder of that name exists."""
    return bool(HUB_ID.fullmatch(source)) and not Path(source).exists()


def snapshot(repository: str, revision: str | None, patterns: Sequence[str] | None = None) -> tuple[Path, str]:
    """Return (local folder, commit) of a Hub repository at `revision`; None: its newest commit.

    patterns: download only these files. Raises UsageError if the repository or the revision cannot be reached.
    """
    import huggingface_hub

    commit = weights_revision(repository, revision)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=commit, allow_patterns=None if patterns is None else list(patterns)
        )
    except Exception as error:  # the Hub's own errors, and those of its HTTP client
        raise UsageError(
            f"{repository} is not completely in the local Hub cache, and its download failed ({type(error).__name__}). "
            "Check the network and your access to the repository."
        ) from error
    return Path(folder), commit
