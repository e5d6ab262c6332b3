"""HTML elements of the report pages. `text` escapes all data; a page loads no external scripts or styles."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from math import isinf
from pathlib import Path
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
POLICY = "default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src {script}; connect-src {own}; base-uri 'none'; form-action {own}"


def text(value: Any, limit: int = 400) -> str:
    """Escape a value and replace control characters. A text is cut after `limit` characters, and its length added."""
    return html.escape(plain(value, limit), quote=True)


def plain(value: Any, limit: int = 400) -> str:
    """Clean and cut a value like `text`, but without escaping, for strings that a script inserts as text."""
    shown = CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))
    return f"{shown[:limit].rstrip()}… ({len(shown):,} characters)" if len(shown) > limit else shown


def prompt(value: str, limit: int = 220) -> str:
    """Return a prompt as HTML, isolated from the writing direction of the surrounding text."""
    shown = text(value, limit) if value.strip() else '<span class="quiet">(blank prompt)</span>'
    return f'<p class="prompt"><bdi>{shown}</bdi></p>'


def number(value: Any) -> str:
    """Format a float with three or four significant digits; a missing or infinite value becomes a dash."""
    if value is None or value != value or (isinstance(value, float) and isinf(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text(value)
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size >= 10_000 or 0 < size < 0.001:
        return f"{value:.3g}"
    return f"{value:,.4g}" if size < 1000 else f"{value:,.0f}"


def value(exact: Any, shown: str = "") -> str:
    """Return a number of a table: rounded (or as `shown`) on the page, with all digits in the table's CSV file."""
    shown = shown or number(exact)
    if isinstance(exact, (int, float)) and shown not in ("–", str(exact)):
        return f'<data value="{exact!r}">{shown}</data>'
    return shown


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", left: int = 1) -> str:
    """Return a table whose cells are HTML; the first `left` columns hold text, all others numbers."""
    kind = ["" if i < left else ' class="n"' for i in range(len(head))]
    top = "".join(f'<th scope="col"{k}>{name}</th>' for k, name in zip(kind, head))
    body = "".join("<tr>" + "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kind, row)) + "</tr>\n" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def picture(source: str | None, alt: str, caption: str = "", mark: str = "") -> str:
    """Return one thumbnail. source: a data URI or None; alt: plain text; caption: HTML; mark: a CSS class."""
    if source is None:
        image = '<div class="gone" role="img" aria-label="no image">no image</div>'
    else:
        image = f'<img src="{source}" alt="{text(alt, 400)}" loading="lazy">'
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="thumb {mark}">{image}{below}</figure>'


def missing(note: str) -> str:
    return f'<p class="missing">{note}</p>'


def section(anchor: str, title: str, body: str, lead: str = "") -> str:
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{title}</h2>{intro}{body}</section>\n'


def data(name: str, value: Any) -> str:
    """Return JSON for a page's script, in an element that browsers do not execute and that the JSON cannot close."""
    encoded = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{encoded}</script>'


def asset(name: str) -> str:
    """Return the text of a script or style sheet in the folder of this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def page(title: str, body: str, script: str = "", style: str = "", images: str = "data:", live: bool = False) -> str:
    """Return a complete HTML document with inline style and script.

    script: the only script that may run, allowed by its hash. images: allowed image sources, in the syntax of a
    Content-Security-Policy. live: the script and forms may send requests to the server that the page came from.
    """
    style = asset("style.css") + style
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = POLICY.format(images=images, script=allowed, own="'self'" if live else "'none'")
    program = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title, 120)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n{program}</body>\n</html>\n"
    )
