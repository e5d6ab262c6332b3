"""A folder on a file system that fsspec opens: s3://bucket/run, gs://bucket/run, sftp://host/run, a path, ..."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from prefkit.errors import PrefkitError, StoreError, UsageError
from prefkit.output import message
from prefkit.store.files import create_whole, write_whole

#: s3:, s3:/bucket, s3:bucket, but not s3://bucket and simplecache::s3://bucket
INCOMPLETE_URL = re.compile(r"\w[\w+.-]*:(?!:|//.)")
REMEDY = (
    "Check the address, the credentials and the connection, then run the same command again: complete files are not "
    "copied twice."
)


class Target:
    """The folder `url`. Methods take names of files relative to it. Raises StoreError, or UsageError for an invalid URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if INCOMPLETE_URL.match(self.url) and not Path(self.url).exists():
            raise UsageError(f"{self.url} is not a URL. Write s3://bucket/run, or ./{self.url} for a folder.")
        with self.errors():
            from fsspec.core import url_to_fs

            self.fs, self.root = url_to_fs(self.url)
            self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    @contextmanager
    def errors(self, action: str = "read or written") -> Iterator[None]:
        """Raise errors of the file system as prefkit's, with the target's URL. action: ends "... could not be"."""
        try:
            yield
        except PrefkitError:
            raise
        except ImportError as error:
            text = message(str(error), 200).rstrip(".")
            raise UsageError(f'{self.url}: {text} (for s3://, pip install "prefkit[s3]").') from error
        except Exception as error:  # each file system has errors of its own
            text = message(str(error) or type(error).__name__, 200).rstrip(".")
            if isinstance(error, ValueError):  # such as an unknown protocol
                raise UsageError(f"{self.url}: {text}.") from error
            text = f"{self.url} could not be {action}: {text}."
            raise StoreError(text if self.local else f"{text} {REMEDY}") from error

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def names(self, under: str = "") -> dict[str, int | None]:
        """Return {name: bytes, None if unknown} of all files, or of those in the folder `under`."""
        prefix = PurePosixPath(self.root)
        self.fs.invalidate_cache()  # listings are cached in the process, but other machines add files
        try:
            found = self.fs.find(self.path(under).rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        names = {PurePosixPath(path).relative_to(prefix): info.get("size") for path, info in found.items()}
        return {
            str(name): size for name, size in names.items() if ".." not in name.parts
        }  # an object may have any name

    def put(self, source: Path, name: str) -> None:
        """Upload a file, completely or not at all: an object appears when its upload ends."""
        if self.local:
            write_whole(Path(self.path(name)), partial(shutil.copyfile, source))
            return
        with self.errors(f"written ({name})"):
            self.fs.put_file(str(source), self.path(name))

    def create(self, source: Path, name: str) -> bool:
        """Upload a small file unless `name` exists; return True if this call wrote it.

        Of several machines at the same moment, one writes it if the file system supports it: local folders, and object
        stores with conditional writes (S3: If-None-Match).
        """
        if self.local:
            return create_whole(Path(self.path(name)), partial(shutil.copyfile, source))
        with self.errors(f"written ({name})"):
            try:
                self.fs.pipe_file(self.path(name), source.read_bytes(), mode="create")
            except FileExistsError:
                return False
        return True

    def get(self, name: str, path: Path, verify: Callable[[Path], Any] | None = None) -> None:
        """Download a file to `path`, which is replaced after `verify` has accepted the file. Raises StoreError."""

        def save(temporary: Path) -> None:
            with self.errors(f"read ({name} to {path})"):  # not as an error of `path`
                self.fs.get_file(self.path(name), str(temporary))
            try:
                _ = verify and verify(temporary)
            except Exception as error:
                raise StoreError(
                    f"{self.url}/{name} is damaged or was not uploaded completely, and was not copied. If another "
                    "machine is copying it, wait and sync again; otherwise remove it, and sync on the machine that wrote "
                    "it."
                ) from error

        write_whole(path, save)

    def remove(self, name: str) -> None:
        self.fs.rm_file(self.path(name))
