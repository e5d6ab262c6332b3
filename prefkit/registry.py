"""A plug-in by its name: a file of its room, an entry point, `package.module:Name` or `file.py:name`.

Nothing is imported until it is named, so a broken plug-in breaks only its own use. A plug-in file binds
`plugin` to its class; the class has `Options` (a frozen dataclass) and takes an instance of it.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from importlib import metadata
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
#: scorers that a name reaches instead of naming them: exec:COMMAND, http://host:port
REMOTE = {
    "exec": "prefkit.score.remote.process",
    "http": "prefkit.score.remote.web",
    "https": "prefkit.score.remote.web",
}
ENTRY_POINTS = {
    "scorer": "scorers",
    "strategy": "strategies",
    "objective": "objectives",
    "family": "families",
    "importer": "importers",
    "exporter": "exporters",
    "fitter": "fitters",
}


MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")  # what can be imported by its name


def _room(kind: str) -> Path:
    return Path(__file__).parent.joinpath(*PLUGIN_PACKAGES[kind].split(".")[1:])


def builtin(kind: str) -> dict[str, str]:
    """Name -> first line of the file's docstring, of the files in the room, without importing them."""
    room = _room(kind)
    found = {}
    for module in pkgutil.iter_modules([str(room)]):
        if module.name.startswith("_"):  # what the plug-ins of a room share
            continue
        text = ast.get_docstring(ast.parse((room / f"{module.name}.py").read_text(encoding="utf-8"))) or ""
        found[module.name] = text.split("\n", 1)[0]
    return found


def facts(kind: str, name: str) -> dict[str, Any]:
    """What a built-in scorer's ScorerSpec says in so many words (licence, verified), read from its source."""
    tree = ast.parse((_room(kind) / f"{name}.py").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ScorerSpec":
            found |= {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
    return found


def offered(kind: str) -> dict[str, list[metadata.EntryPoint]]:
    """Name -> the entry points of other packages under it, without importing them."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in sorted(metadata.entry_points(group=f"prefkit.{ENTRY_POINTS[kind]}"), key=lambda point: point.value):
        points = found.setdefault(point.name, [])
        if point.value not in [other.value for other in points]:  # one package can be found by two paths
            points.append(point)
    return found


def one_of(kind: str, name: str) -> metadata.EntryPoint | None:
    """The entry point called `name`; None for prefkit's own. Raises PluginError for two plug-ins of one name, naming both."""
    points = offered(kind).get(name, [])
    places = [f"{PLUGIN_PACKAGES[kind]}.{name}"] * (name in builtin(kind)) + [
        f"{p.value}" + (f" (package {p.dist.name})" if p.dist is not None else "") for p in points
    ]
    if len(places) > 1:
        raise PluginError(
            f"two plug-ins are a {kind} called {name!r}: {' and '.join(places)}. Name one as package.module:Name, or "
            "uninstall one of the packages."
        )
    return points[0] if points else None


def load(kind: str, name: str) -> Any:
    """The class (or, for scorers and generators, the function) called `name`. Raises UsageError, PluginError."""
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
            f"{kind} {name} ({point.value}) could not be imported: {type(error).__name__}: {error}. Nothing else is "
            "affected; mend or uninstall the package that it comes from."
        ) from error


def load_class(kind: str, name: str) -> Any:
    """As `load`, where a class is needed."""
    found = load(kind, name)
    if not isinstance(found, type):
        raise PluginError(f"{kind} {name} is {described(found)}; a {kind} is a class.")
    return found


def code_hash(use: str, kind: str | None = None) -> str | None:
    """SHA-256 of the file that a plug-in's code stands in, so that fingerprints change with it.

    use: file.py:name, package.module:Name or, with `kind`, an installed entry point. None for what comes with prefkit
    and for what has no file. Files that the plug-in imports are not looked into. The module itself is not imported.
    """
    if ":" not in use:
        point = one_of(kind, use) if kind is not None else None
        return None if point is None else code_hash(point.value)
    where = use.rsplit(":", 1)[0]
    if where.endswith(".py"):
        path = Path(os.path.expanduser(where))
    else:
        try:
            with guarded(f"plug-in {use}"):  # the packages around it are imported
                spec = importlib.util.find_spec(where)
        except Exception:  # loading it says what is wrong
            return None
        path = Path(spec.origin if spec is not None and spec.origin else "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def check_name(kind: str, name: str) -> None:
    """Raises UsageError for a name that nothing has, PluginError for one that two have, without importing anything."""
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
    """What an entry is called that only has a `use`: the function of file.py:function, the program of exec:, the host of
    http:."""
    kind, _, rest = use.partition(":")
    if kind not in REMOTE:
        return use.rsplit(":", 1)[-1].replace(".", "-")  # a dot would lead into the entry
    if kind == "exec":
        files = [word for word in rest.split() if word.endswith(".py")]
        named = Path((files or rest.split() or [kind])[0]).stem
    else:
        named = rest.strip("/").partition("/")[0]
    return re.sub(r"[^A-Za-z0-9_]+", "-", named).strip("-_") or kind


def nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _attribute(kind: str, where: str, name: str) -> Any:
    if not where or not name:
        raise UsageError(f"{kind} {where}:{name} is half a name: give file.py:name or package.module:Name.")
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


def _from_file(kind: str, path: Path) -> Any:
    key = f"prefkit_file_{path.resolve().as_posix().replace('/', '_').replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickling look modules up by name
    whole = False
    try:
        with guarded(f"{kind} file {path}"):
            spec.loader.exec_module(module)
        whole = True
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"{kind} file {path} could not be imported: {type(error).__name__}: {error}") from error
    finally:
        if not whole:  # half a module would be found by its name
            sys.modules.pop(key, None)
    return module


def _imported(kind: str, name: str, module: str) -> Any:
    try:
        with guarded(f"{kind} {name}"):
            return importlib.import_module(module)
    except PluginError:
        raise
    except ImportError as error:
        raise PluginError(
            f"{kind} {name} could not be imported: {error}. Install what it needs, then try again."
        ) from error
    except Exception as error:
        raise PluginError(
            f"{kind} {name} could not be imported: {type(error).__name__}: {error}. Fix the module {module}, then try again."
        ) from error
