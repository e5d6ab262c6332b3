"""Weight files inside installed packages. Error messages start with the name `scorer`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from prefkit.errors import UsageError


def installed(scorer: str, package: str) -> str:
    """Return the version of an installed package. If it is missing, raises UsageError with the command that installs it."""
    try:
        return distribution(package).version
    except PackageNotFoundError as error:
        raise UsageError(f"{scorer}: {package} is not installed. Run: pip install {package}") from error


def packaged_file(scorer: str, package: str, file: str) -> Path:
    """Return the path of a file of an installed package. Raises UsageError if the package or the file is missing."""
    version = installed(scorer, package)
    path = Path(str(distribution(package).locate_file(file)))
    if not path.is_file():
        raise UsageError(
            f"{scorer}: {package} {version} does not contain {file}. Run: pip install --force-reinstall {package}"
        )
    return path
