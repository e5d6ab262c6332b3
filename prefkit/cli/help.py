"""`--help` texts, built from the `#:` lines above dataclass fields."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from prefkit import registry
from prefkit.output import table


def field_docs(kind: type) -> dict[str, str]:
    """Return {field name: its `#:` lines}, including fields of the dataclasses that `kind` inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        lines, _ = inspect.getsourcelines(base)
        body = ast.parse("".join(lines).lstrip()).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above: list[str] = []
                row = node.lineno - 2
                while row >= 0 and lines[row].strip().startswith("#:"):
                    above.insert(0, lines[row].strip()[2:].strip())
                    row -= 1
                docs[node.target.id] = " ".join(above)
    return docs


def options_table(
    kind: type,
    shown: Any = None,
    prefix: str = "",
    only: Sequence[str] = (),
    longer: tuple[str, Sequence[str]] = ("", ()),
) -> str:
    """Format a table with one row per field of the dataclass `kind`: flag, value, meaning.

    shown: the instance whose values are shown (default: the default values). prefix: text before every field name.
    only: names of the fields to list (default: all). longer: (second prefix, names of the fields whose flags need it).
    """
    docs = field_docs(kind)
    values = shown if shown is not None else kind()
    rows = []
    for name in [f.name for f in dataclasses.fields(kind) if f.name != "options" and (not only or f.name in only)]:
        value = getattr(values, name)
        if dataclasses.is_dataclass(value):
            value = " ".join(f"{f.name}={getattr(value, f.name)}" for f in dataclasses.fields(value))
        flag = f"  --{prefix}{longer[0] if name in longer[1] else ''}{name}"
        rows.append({"flag": flag, "value": "null" if value is None else str(value), "": docs[name]})
    return table(rows)


def describe_layouts(parser: argparse.ArgumentParser, kind: str, example: str) -> None:
    """Append all layouts of `kind` ("importer" or "exporter"), each with its flags, to the parser's help."""
    lines = ["layouts and their flags:"]
    for name, text in registry.builtin(kind).items():
        lines += ["", f"  {name}", textwrap.fill(text, 110, initial_indent=" " * 4, subsequent_indent=" " * 4)]
        options = registry.load(kind, name).Options
        docs = field_docs(options)
        for f in dataclasses.fields(options):
            default = "" if f.default in (None, "") else f" [{f.default}]"
            flag = f"    --{f.name.replace('_', '-')}  {docs[f.name]}{default}"
            lines.append(textwrap.fill(flag, 110, subsequent_indent=" " * 8, replace_whitespace=False))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join([*lines, "", f"example: {example}"])
