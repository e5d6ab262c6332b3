"""Find a plug-in by name: a built-in plug-in file, an entry point, `package.module:Name` or `file.py:name`.

A plug-in is imported only when it is used, so a broken plug-in does not affect others. A built-in plug-in file sets
`plugin` to its class. The class has a frozen dataclass `Options`, and its constructor takes an `Options` instance.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from prefkit.errors import PluginError, UsageError
from prefkit.plugin_guard import described, guarded

PLUGIN_PACKAGES = {
    "scorer": "prefkit.score.scorers",
    "strategy": "prefkit.pair.strategies",
    "objective": "prefkit.train.objectives",
    "family": "prefkit.train.families",
    "importer": "prefkit.hub.importers",
    "exporter": "prefkit.hub.exporters",
    "fitter": "prefkit.fit.fitters",
}
#: the start of a remote scorer's address (exec:COMMAND, http://host:port) -> module
REMOTE = {
    "exec": "prefkit.score.remote.process",
    "http": "prefkit.score.remote.web",
    "https": "prefkit.score.remote.web",
}
#: PASSED:NAME is the name of a function or class that Python code passed
PASSED = "python"
#: types of captured variables and default values that belong to a function's identity
PLAIN = (str, bytes, int, float, complex, bool, type(None))
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")  # a dotted module name


class Passed(str):
    """The name `python:NAME` of an object, with the object itself as `plugin`. A stored recipe only holds the name."""

    plugin: Any

    def __new__(cls, plugin: Any) -> Passed:
        name = super().__new__(cls, f"{PASSED}:{getattr(plugin, '__name__', type(plugin).__name__)}")
        name.plugin = plugin
        return name

    def __getnewargs__(self) -> tuple[Any]:
        return (self.plugin,)

    def __deepcopy__(self, memo: Any) -> Passed:
        return self


def source_hash(plugin: Any) -> str:
    """Return the SHA-256 of an object's source code, and of the numbers and texts that a function captures.

    Captured objects of other types, global variables and called functions are not included.
    """
    function = inspect.unwrap(plugin) if inspect.isfunction(plugin) else plugin
    try:
        parts = [textwrap.dedent(inspect.getsource(function))]
    except (OSError, TypeError):  # typed into an interpreter that keeps no source
        code = getattr(function, "__code__", None)
        parts = (
            [repr(function)]
            if code is None
            else [code.co_code.hex(), repr((code.co_names, *(c for c in code.co_consts if isinstance(c, PLAIN))))]
        )
    if inspect.isfunction(function):
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        values = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        parts += [repr(value) for value in values if isinstance(value, PLAIN)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that is assigned later
        return False


@functools.cache
def builtin(kind: str) -> dict[str, str]:
    """Map each built-in plug-in's name to the first line of its docstring, without importing it."""
    names = [m.name for m in pkgutil.iter_modules([str(_folder(kind))]) if not m.name.startswith("_")]
    docs = {name: ast.get_docstring(_source(kind, name)) or "" for name in names}
    return {name: text.split("\n", 1)[0] for name, text in docs.items()}


def _folder(kind: str) -> Path:
    return Path(__file__).parent.joinpath(*PLUGIN_PACKAGES[kind].split(".")[1:])


def _source(kind: str, name: str) -> ast.Module:
    return ast.parse((_folder(kind) / f"{name}.py").read_text(encoding="utf-8"))


def facts(kind: str, name: str) -> dict[str, Any]:
    """Return a built-in scorer's VERIFIED and ScorerSpec constants (licence, ...), without importing the scorer."""
    tree = _source(kind, name)
    assigned = (n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "VERIFIED")
    known = [("VERIFIED", ast.literal_eval(node.value)) for node in assigned]
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    specs = (call for call in calls if getattr(call.func, "id", "") == "ScorerSpec")
    keywords = (k for spec in specs for k in spec.keywords)
    return dict(known) | {k.arg: k.value.value for k in keywords if k.arg and isinstance(k.value, ast.Constant)}


def offered(kind: str) -> dict[str, list[metadata.EntryPoint]]:
    """Map plug-in names to the entry points that other packages offer, without importing them."""
    offers: dict[str, list[metadata.EntryPoint]] = {}
    group = f"prefkit.{PLUGIN_PACKAGES[kind].rpartition('.')[2]}"
    for point in sorted(_entry_points(group, _import_folders()), key=lambda point: point.value):
        points = offers.setdefault(point.name, [])
        if point.value not in [other.value for other in points]:  # the same package may be found on two paths
            points.append(point)
    return offers


def _import_folders() -> tuple[tuple[str, int], ...]:
    """Return the folders that Python imports from, each with the time (ns) when a package was last added or removed."""
    return tuple((path, os.stat(path or ".").st_mtime_ns if os.path.exists(path or ".") else 0) for path in sys.path)


@functools.lru_cache(16)
def _entry_points(group: str, folders: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    """Return the entry points of a group; a file of each installed package is read. folders: _import_folders()."""
    return metadata.entry_points(group=group)


def one_of(kind: str, name: str) -> metadata.EntryPoint | None:
    """Return the entry point called `name`, or None. Raises PluginError if two plug-ins share the name."""
    points = offered(kind).get(name, [])
    places = [f"{PLUGIN_PACKAGES[kind]}.{name}"] * (name in builtin(kind)) + [
        f"{p.value}" + (f" (package {p.dist.name})" if p.dist is not None else "") for p in points
    ]
    if len(places) > 1:
        raise PluginError(
            f"two plug-ins offer a {kind} called {name!r}: {' and '.join(places)}. Name one as package.module:Name, or "
            "uninstall one of the packages."
        )
    return points[0] if points else None


def load(kind: str, name: str) -> Any:
    """Load the class (or, for scorers and generators, the function) called `name`. Raises UsageError, PluginError."""
    if isinstance(name, Passed):
        return name.plugin
    check_name(kind, name)
    if kind == "scorer" and name.partition(":")[0] in REMOTE:
        remote = _imported(kind, name, REMOTE[name.partition(":")[0]]).plugin
        return type(remote.__name__, (remote,), {"address": name, "__module__": remote.__module__})
    if ":" in name:
        return _attribute(kind, *name.rsplit(":", 1))
    point = one_of(kind, name)
    if point is None:
        return _imported(kind, name, f"{PLUGIN_PACKAGES[kind]}.{name}").plugin
    try:
        with guarded(f"{kind} {name} ({point.value})"):
            return point.load()
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(
            f"{kind} {name} ({point.value}) could not be imported: {type(error).__name__}: {error}. Fix or uninstall "
            "the package; other plug-ins are not affected."
        ) from error


def load_class(kind: str, name: str) -> Any:
    """Load a plug-in that must be a class. Raises UsageError, PluginError."""
    plugin = load(kind, name)
    if not isinstance(plugin, type):
        raise PluginError(f"{kind} {name} is {described(plugin)}; a {kind} must be a class.")
    return plugin


def code_hash(use: str, kind: str | None = None) -> str | None:
    """Return the SHA-256 of a plug-in's source file, for fingerprints; None for a built-in plug-in or a missing file.

    use: file.py:name, package.module:Name or, with `kind`, an installed entry point. The plug-in is not imported,
    and the files that it imports are not hashed.
    """
    if isinstance(use, Passed):
        return source_hash(use.plugin)
    if ":" not in use:
        point = one_of(kind, use) if kind is not None else None
        return None if point is None else code_hash(point.value)
    where = use.rsplit(":", 1)[0]
    if where.endswith(".py"):
        path = Path(os.path.expanduser(where))
    else:
        try:
            with guarded(f"plug-in {use}"):  # find_spec imports the parent packages
                spec = importlib.util.find_spec(where)
        except Exception:  # loading the plug-in reports the error
            return None
        path = Path(spec.origin if spec is not None and spec.origin else "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def check_name(kind: str, name: str) -> None:
    """Raise UsageError for an unknown name, PluginError for an ambiguous one, without importing anything."""
    if not isinstance(name, str):
        raise UsageError(f"{kind}: {name!r} is not a name. Give a name, file.py:name or package.module:Name.")
    if ":" in name:
        return
    known = sorted({*builtin(kind), *offered(kind)})
    if name in known:
        one_of(kind, name)
    else:
        raise UsageError(
            f"no {kind} is called {name!r}.{nearest(name, known)} Known: {', '.join(known) or 'none'}; or give "
            "file.py:name or package.module:Name."
        )


def short_name(use: str) -> str:
    """Return a default name for a recipe entry that only sets `use`: the name of its function, program or host."""
    kind, _, rest = use.partition(":")
    if kind not in REMOTE:
        return use.rsplit(":", 1)[-1].replace(".", "-")  # a dot would separate recipe keys
    if kind == "exec":
        files = [word for word in rest.split() if word.endswith(".py")]
        name = Path((files or rest.split() or [kind])[0]).stem
    else:
        name = rest.strip("/").partition("/")[0]
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-_") or kind


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ` Did you mean 'x'?` for a known name that `name` resembles or abbreviates (lr, learning_rate); else ""."""
    short = [k for k in known if len(name) > 1 and "".join(part[:1] for part in k.split("_")) == name]
    close = short[:1] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _attribute(kind: str, where: str, name: str) -> Any:
    if where == PASSED:
        raise UsageError(
            f"{kind} {where}:{name} is a function or class of the Python code that made this run. Pass it to "
            f"prefkit.Run again, or save it in a file and write file.py:{name} in the recipe."
        )
    if not where or not name:
        raise UsageError(f"{kind} {where}:{name} is incomplete: give file.py:name or package.module:Name.")
    if where.endswith(".py"):
        path = Path(os.path.expanduser(where))
        if not path.is_file():
            raise UsageError(f"{kind} {where}:{name}: the file {where} was not found.")
        module = _from_file(kind, path)
    elif MODULE.fullmatch(where):
        module = _imported(kind, f"{where}:{name}", where)
    else:
        raise UsageError(
            f"{kind} {where}:{name}: {where} is neither a .py file nor the name of a module. Give file.py:name or "
            "package.module:Name."
        )
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{kind} {where}:{name}: {where} has no {name}.{nearest(name, public)}")
    return getattr(module, name)


class _Uncached(SourceFileLoader):
    """Compiles the file every time. Python's cached code counts as current for a second after an edit of equal length."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _from_file(kind: str, path: Path) -> Any:
    key = f"prefkit_file_{path.resolve().as_posix().replace('/', '_').replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(key, path, loader=_Uncached(key, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look modules up by name
    try:
        with guarded(f"{kind} file {path}"):
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(key, None)  # remove the incomplete module
        if isinstance(error, PluginError) or not isinstance(error, Exception):
            raise
        raise PluginError(f"{kind} file {path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _imported(kind: str, name: str, module: str) -> Any:
    try:
        with guarded(f"{kind} {name}"):
            return importlib.import_module(module)
    except PluginError:
        raise
    except ImportError as error:
        raise PluginError(f"{kind} {name} could not be imported: {error}. Install its requirements.") from error
    except Exception as error:
        raise PluginError(
            f"{kind} {name} could not be imported: {type(error).__name__}: {error}. Fix the module {module}."
        ) from error
