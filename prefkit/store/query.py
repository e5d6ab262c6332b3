"""Queries: conditions such as "align < 0.2" on a candidate's scores, generator, request_id, index and seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.registry import nearest
from prefkit.store.summary import INDEX

if TYPE_CHECKING:
    import pandas as pd

WORD, QUOTED = re.compile(r"\w+"), re.compile("`([^`]+)`")
LITERAL = re.compile(r"""'[^']*'|"[^"]*\"""")
#: texts, quoted names and numbers, which may contain a dot
DOTTED = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|(?<![\w.])\d+\.?\d*(?:[eE][+-]?\d+)?""")
ATTRIBUTE = re.compile(r"\.\s*([^\W\d]\w*)")
#: methods of a column that a condition may call; others, such as to_csv, write files
METHODS = {"abs", "between", "isin", "isna", "isnull", "notna", "notnull", "round", "str"}
METHODS |= {"contains", "endswith", "fullmatch", "len", "lower", "match", "startswith", "upper"}  # of str


def column(alias: str) -> str:
    """Return a score's column name in queries: its own name, or score_NAME if the name is that of another column."""
    return f"score_{alias}" if alias in (*INDEX, "generator") else alias


def in_query(aliases: Sequence[str], query: str) -> list[str]:
    """Return the scores whose names occur in a query."""
    names = LITERAL.sub("", query)
    words = set(WORD.findall(names)) | set(QUOTED.findall(names))
    return [alias for alias in aliases if column(alias) in words]


def matching(table: pd.DataFrame, query: str, where: str) -> pd.Series[bool]:
    """Return a boolean mask of the rows that match a query. A missing score is NaN, so only `!=` or a negation matches.

    where: start of error messages, such as "--filter". Raises UsageError for an invalid query.
    """
    import pandas as pd

    columns = [name for name in table.columns if name != "error"]
    _check_methods(query, where, columns)
    try:
        # empty scopes, so that a query cannot use this program's variables
        mask = table.eval(query, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        unknown = str(error).split("'")[1::2]
        raise UsageError(
            f"{where}: unknown column {', '.join(unknown)}.{nearest(''.join(unknown[:1]), columns)} The columns are "
            f"{', '.join(columns)}."
        ) from error
    except Exception as error:  # pandas raises whatever Python's parser and the operators raise
        raise UsageError(
            f"{where}: {query[:200]!r} is not a valid condition on scores "
            f'({_reason(error)}). Write, for example, "align < 0.2 and index == 0", with '
            f"`backticks` around names that contain a dash or dot. The columns are {', '.join(columns)}."
        ) from error
    if not isinstance(mask, pd.Series) or mask.dtype != bool:
        raise UsageError(
            f'{where}: {query!r} is not a condition on candidates; write a comparison, e.g. "align < 0.2".'
        )
    return mask


def _check_methods(query: str, where: str, columns: Sequence[str]) -> None:
    """Raise UsageError for a query that could do more than compare: the live server takes queries over the network."""
    if "\\" in query or "'''" in query or '"""' in query:
        raise UsageError(f"{where}: a condition may not contain backslashes or triple quotes. Compare whole values.")
    plain = DOTTED.sub(" ", query)
    other = set(ATTRIBUTE.findall(plain)) - METHODS
    if other or "#" in plain:
        name = min(other, default="#")
        raise UsageError(
            f"{where}: a condition may not use {name!r}; of methods, it may call {', '.join(sorted(METHODS))}. Put `backticks` "
            f"around names that contain a dot. The columns are {', '.join(columns)}."
        )


def check_query(query: str, aliases: Sequence[str], where: str) -> None:
    """Raise UsageError for an invalid query, before scores exist. aliases: names of the scores."""
    import pandas as pd

    numbers = {name: pd.Series(dtype=float) for name in ["index", "seed", *map(column, aliases)]}
    texts = {name: pd.Series(dtype=object) for name in ("generator", "request_id")}
    matching(pd.DataFrame(numbers | texts), query, where)


def _reason(error: Exception) -> str:
    """Return the message of an error of Python's parser or of pandas, without the place, which is always line 1."""
    return re.sub(r" \(<unknown>, line \d+\)", "", str(error))[:200] or "it cannot be parsed"
