"""One repository on the Hub, read and written through huggingface_hub, with errors that name the fix.

huggingface_hub handles the token (`hf auth login`, or HF_TOKEN); this module never reads it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.errors import PrefkitError, StoreError, UsageError


class ChangedUnderUs(PrefkitError):
    """The repository changed between reading it and writing to it."""


def check_name(to: str) -> None:
    """Raise UsageError if `to` is not a name that the Hub accepts for a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", to):
        raise UsageError(f"--to {to!r}: give the repository as owner/name, for example --to you/wardrobe.")
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        raise UsageError(f"--to {to[:80]!r}: the Hub does not accept this name: {str(error)[:200]}") from error


class Remote:
    """A dataset or model repository, `to` = owner/name."""

    def __init__(self, to: str, kind: str) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        if output.quiet or not sys.stderr.isatty():
            disable_progress_bars()
        self.api, self.to, self.kind = HfApi(), to, kind
        self.where: dict[str, Any] = {"repo_id": to, "repo_type": kind}

    def open(self, public: bool) -> tuple[str, bool]:
        """Create the repository if it is missing, private unless `public`. Returns (head commit, True if private)."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self.errors("logging in"):
            self.api.whoami()
        with self.errors("opening the repository"):
            try:
                info = self.api.repo_info(**self.where)
            except RepositoryNotFoundError:
                self.api.create_repo(**self.where, private=not public, exist_ok=True)
                info = self.api.repo_info(**self.where)
            if public and info.private:
                self.api.update_repo_settings(**self.where, private=False)
            return str(info.sha), bool(info.private) and not public

    def head(self) -> str:
        with self.errors("reading the repository"):
            return str(self.api.repo_info(**self.where).sha)

    def files(self, commit: str) -> dict[str, str]:
        """Return {path: content hash}: SHA-256 for LFS files, git's blob hash for the rest (see local_hashes)."""
        from huggingface_hub import RepoFile

        with self.errors("listing the files"):
            entries = list(self.api.list_repo_tree(**self.where, revision=commit, recursive=True))
        return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}

    def read(self, path: str, commit: str) -> bytes:
        with self.errors(f"reading {path}"):
            return Path(self.api.hf_hub_download(self.to, path, repo_type=self.kind, revision=commit)).read_bytes()

    def upload(self, folder: Path, parent: str, obsolete: Sequence[str], message: str) -> str:
        """Make one commit on top of `parent`. Raises ChangedUnderUs if the repository has a newer commit."""
        with self.errors("uploading"):
            info = self.api.upload_folder(
                **self.where,
                folder_path=folder,
                commit_message=message,
                parent_commit=parent,
                delete_patterns=list(obsolete) or None,
            )
        return str(getattr(info, "oid", None) or self.head())

    def tags(self) -> list[str]:
        with self.errors("listing the tags"):
            return [tag.name for tag in self.api.list_repo_refs(**self.where).tags]

    def tag(self, name: str, commit: str, message: str) -> None:
        with self.errors(f"tagging {name}"):
            self.api.create_tag(**self.where, tag=name, revision=commit, tag_message=message, exist_ok=True)

    def squash(self, message: str) -> str:
        """Squash the history into one commit and delete prefkit's tags, so that none points to an earlier commit."""
        for name in self.tags():
            if name.startswith("prefkit-"):
                with self.errors(f"removing tag {name}"):
                    self.api.delete_tag(**self.where, tag=name)
        with self.errors("squashing the history"):
            self.api.super_squash_history(**self.where, branch="main", commit_message=message)
            refs = self.api.list_repo_refs(**self.where)
        others = [ref.name for ref in (*refs.branches, *refs.tags) if ref.name != "main"]
        if others:
            output.warn(f"{self.to}: earlier commits can still be reached by {', '.join(others)}; delete these refs.")
        return self.head()

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate the errors of huggingface_hub into errors that state what failed, where, and the fix."""
        from huggingface_hub import errors

        where = f"{doing} ({self.kind} {self.to} at {self.api.endpoint})"
        try:
            yield
        except errors.LocalTokenNotFoundError as error:
            raise UsageError(f"{where}: you are not logged in. Run `hf auth login`, or set HF_TOKEN.") from error
        except errors.OfflineModeIsEnabled as error:
            raise UsageError(f"{where}: HF_HUB_OFFLINE is set. Unset it to push, or use --dry-run.") from error
        except errors.HFValidationError as error:
            raise UsageError(f"{where}: {error}. Give --to as owner/name.") from error
        except errors.HfHubHTTPError as error:
            raise _refused(where, error) from error
        except RuntimeError as error:  # raised by an upload, with the Hub's answer as its cause
            cause = error.__cause__
            if isinstance(cause, errors.HfHubHTTPError):
                raise _refused(where, cause) from error
            raise StoreError(f"{where}: {_short(cause or error)}. Run this again: uploaded files are kept.") from error
        except (errors.HTTPError, OSError) as error:
            raise StoreError(
                f"{where}: no answer ({type(error).__name__}: {_short(error)}). Check the network and HF_ENDPOINT, then run "
                "this again: uploaded files are kept, and no partial commit is visible."
            ) from error
        except ValueError as error:
            raise StoreError(f"{where}: {_short(error)}. Fix this and push again; nothing was committed.") from error


def _refused(where: str, error: Any) -> PrefkitError:
    """Return the error to raise for an HTTP error of the Hub, with the fix."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = _short(getattr(error, "server_message", None) or error)
    if status in (409, 412):
        return ChangedUnderUs(f"{where}: the repository was changed by somebody else at the same time ({reason}).")
    fixes = {
        401: "the login is expired or not valid. Run `hf auth login` again, or renew HF_TOKEN.",
        403: f"this login may not write there ({reason}). Use a token with write permission, and an owner that you may "
        "write to (`hf auth whoami` lists yours).",
        404: "it was not found, or this login may not see it. Check --to and `hf auth whoami`.",
    }
    if status in fixes:
        return UsageError(f"{where}: {fixes[status]}")
    return StoreError(f"{where}: refused with status {status} ({reason}). Run this again: uploaded files are kept.")


def local_hashes(path: Path) -> tuple[str, str]:
    """Return (SHA-256, git's blob SHA-1) of a file, the two hashes that the Hub lists."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def _short(error: Any) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
