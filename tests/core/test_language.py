"""Plain technical English in docstrings, comments, messages, help and documents: no private idioms.

To extend the list, add a pattern and the word to use instead. A legitimate use that a pattern catches is a reason to
narrow or drop the pattern. `python tests/core/test_language.py PATH...` checks single files or folders.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKED = [
    "prefkit",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs",
    "pipelines",
    "benchmarks",
    "datasets_cards",
]
SUFFIXES = {".py", ".md", ".yaml", ".html", ".j2"}
#: pattern -> the better word
BANNED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\b(?<!there )is no (?!longer|more)[a-z]": "is not a ...",
    r"\b(?<!there )are no (?!longer|more)[a-z]": "are not ...",
    r"\bcannot be meant\b": "invalid",
    r"\bwants (text|a|an|one|two|true)\b": "must be",
    r"\bnot said\b": "unknown",
    r"\bgives? back\b|\bgave back\b|\bgiven back\b": "return",
    r"\bthere already\b": "already exists",
    r"\b(is|are|was|were) not there\b": "is missing, does not exist, was not found",
    r"\b(is|are) there(?=[.,;:)]|$| as | by | but | in | too)": "exists",
    r"\bhangs? on\b": "depends on",
    r"\bgo(es)? on\b": "continues",
    r"\bin so many words\b": "literally",
    r"\bin silence\b": "silently",
    r"\bkept aside\b|\bput aside\b": "held out, stored separately",
    r"\bset aside\b": "renamed to NAME.damaged, moved to ...",
    r"\bin words\b": "(name it)",
    r"\bgoes by\b": "(name it)",
    r"\b(lie|lies|lay)\b": "is, are",
    r"(?<!standard )\bdeviations?\b": "std",
    r"\btold apart\b|\btells? apart\b": "distinguish",
    r"\btold (after|by|when|once)\b": "measured after, printed ...",
    r"\bwhoever\b|\bwhosoever\b|\bwhichever\b": "any, regardless of which",
    r"\bnobody's\b|\bsomebody's\b": "(name it)",
    r"(?<=[,;(] )\bof which\b|^of which\b": "(two sentences)",
    r"\bstands? (beside|there|behind|for nothing)\b|\bas it stands\b": "is in ..., as is",
    r"\btakes? .{1,30} for an? (image|text)\b": "treat as",
    r"\bshares? out\b|\bshared out\b": "divide, shard",
    r"\blooks? at requests\b": "evaluates samples of requests",
    r"\bthe first process\b": "rank 0",
    r"\bby looking\b": "by inspection, automatically",
    r"\bsigns\b": "characters",
    r"\bon paper\b": "on the meta device",
    r"\bhas no say\b|\bhas a say\b": "(name it)",
    r"\bfrom memory\b": "(unverified)",
    r"\bone's own\b": "your own",
    r"\bto and fro\b|\bforth\b": "(name it)",
    r"\bin the place of\b": "instead of",
    r"\bmakes? of (it|them)\b": "(name it)",
    r"\bso many\b": "(the number)",
    r"\bwithout a word\b|\ba word (from|on)\b": "silently",
    r"\bthinks? (that|it)\b|\bknows of\b": "assumes, has access to",
    r"\bmade up\b|\bmade-up\b": "fictitious, synthetic",
    r"\bwhat it (finds|found|says|said)\b": "(name it)",
    r"\bis said\b|\bare said\b|\bhas been said\b": "is reported",
    r"\bsays so\b|\bsaid so\b": "(name it)",
    r"\bturned away\b": "rejected",
    r"\bvery (same|fit|token|bytes|file)\b": "same",
    r"\bnever asked (for|of)\b": "not requested",
}
#: words that do not start a docstring: it starts with a verb or with a noun phrase that defines the thing
OPENING = re.compile(r"(What|Which|Whether|Who|Whose|Where|How|Of|Not|Never|Nothing|As|That|There|Whatever|Whoever)\b")


def passages(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, text, True for a docstring): comments and string literals of a Python file, lines of any other file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from ((number, line, False) for number, line in enumerate(text.split("\n"), 1))
        return
    documented = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, documented) and ast.get_docstring(n) is not None]
    lines = {node.body[0].lineno for node in nodes}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            yield token.start[0], token.string, token.type == tokenize.STRING and token.start[0] in lines


def problems(path: Path) -> Iterator[str]:
    """FILE:LINE, the idiom, and the word to use instead."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for line, text, docstring in passages(path):
        for pattern, better in BANNED.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                number = line + text[: match.start()].count("\n")
                yield f"{name}:{number}: {match[0]!r}; better: {better}"
        first = text.strip("\"'rRfF \n")
        if docstring and (match := OPENING.match(first)):
            yield f"{name}:{line}: docstring starts with {match[0]!r}; better: a verb or a noun phrase"


def files(paths: list[Path]) -> list[Path]:
    every = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in every if file.suffix in SUFFIXES and file.is_file()]


def test_texts_are_in_plain_technical_english():
    found = [problem for file in files([ROOT / name for name in CHECKED]) for problem in problems(file)]
    assert not found, f"{len(found)} idioms:\n" + "\n".join(found)


def test_an_idiom_is_reported_with_its_line_and_the_better_word(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""Whether it works."""\n\n\ndef one():\n    """First.\n\n    Mend it.\n    """\n    return "fix"\n'
    )
    assert list(problems(file)) == [
        f"{file}:1: docstring starts with 'Whether'; better: a verb or a noun phrase",
        f"{file}:7: 'Mend'; better: fix",
    ]


if __name__ == "__main__":
    listed = [problem for file in files([Path(name).resolve() for name in sys.argv[1:]]) for problem in problems(file)]
    print("\n".join(listed))
    sys.exit(bool(listed))
