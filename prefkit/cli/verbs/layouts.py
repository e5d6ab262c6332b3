"""What `prefkit import --help` and `prefkit export --help` say of the layouts and their flags."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap

from prefkit import registry
from prefkit.cli.help import field_docs


def describe(parser: argparse.ArgumentParser, kind: str, example: str) -> None:
    """Put the layouts, and each one's flags, under the parser's help."""
    lines = ["layouts, and the flags that each takes besides:"]
    for name, text in registry.builtin(kind).items():
        lines += ["", f"  {name}", textwrap.fill(text, 110, initial_indent=" " * 4, subsequent_indent=" " * 4)]
        options = registry.load(kind, name).Options
        docs = field_docs(options)
        for f in dataclasses.fields(options):
            default = "" if f.default is None else f" [{f.default}]" if f.default != "" else ""
            flag = f"    --{f.name.replace('_', '-')}  {docs[f.name]}{default}"
            lines.append(textwrap.fill(flag, 110, subsequent_indent=" " * 8, replace_whitespace=False))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join([*lines, "", f"example: {example}"])
