"""Requests, candidates and comparisons as the rows that are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefkit.types import Candidate, Comparison, Request, candidate_schema, comparison_schema, digest


def dump_extra(extra: Mapping[str, Any]) -> str:
    return json.dumps(dict(extra), ensure_ascii=False, sort_keys=True, default=str)


def request_row(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("request_id", "prompt", "split")} | {
        "extra": dump_extra(request.extra)
    }


def comparison_row(c: Comparison) -> dict[str, Any]:
    """The stored form. Its id covers everything but the time, so that what is said twice is kept once."""
    row = {name: getattr(c, name) for name in comparison_schema().names if name != "id"}
    return {"id": digest({k: v for k, v in row.items() if k != "time"}), **row}


def candidate_row(c: Candidate) -> dict[str, Any]:
    """The stored form: without the prompt and the extra keys that belong to the request."""
    return {name: getattr(c, name) for name in candidate_schema().names} | {"extra": dump_extra(c.extra)}
