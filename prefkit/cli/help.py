"""`--help` from the one place that knows: the `#:` lines above the fields of the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from prefkit.output import table


def field_docs(kind: type) -> dict[str, str]:
    """Field -> its `#:` lines, of its own class or of the dataclasses it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found |= _own_docs(base) if dataclasses.is_dataclass(base) else {}
    return found


def _own_docs(kind: type) -> dict[str, str]:
    lines, _ = inspect.getsourcelines(kind)
    body = ast.parse("".join(lines).lstrip()).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            row = node.lineno - 2
            while row >= 0 and lines[row].strip().startswith("#:"):
                above.insert(0, lines[row].strip()[2:].strip())
                row -= 1
            found[node.target.id] = " ".join(above)
    return found


def options_table(kind: type, shown: Any = None, prefix: str = "", only: Sequence[str] = ()) -> str:
    """Flag, value (of `shown`, else the default), meaning, of all fields or of `only` these."""
    docs = field_docs(kind)
    values = shown if shown is not None else kind()
    rows = []
    for f in dataclasses.fields(kind):
        if f.name == "options" or (only and f.name not in only):
            continue
        value = getattr(values, f.name)
        if dataclasses.is_dataclass(value):
            value = " ".join(f"{n.name}={getattr(value, n.name)}" for n in dataclasses.fields(value))
        rows.append(
            {"flag": f"  --{prefix}{f.name}", "value": "null" if value is None else str(value), "": docs[f.name]}
        )
    return table(rows)
