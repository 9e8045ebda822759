"""Pages that need nothing else: one style, tables, escaped text."""

from __future__ import annotations

import html
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { margin-top: 2rem; font-size: 1.2rem; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } .muted { opacity: .7; } img { max-width: 100%; border-radius: 6px; }
svg text { fill: currentColor; } .good { color: var(--good); } .bad { color: var(--bad); } summary { cursor: pointer; } .wide { overflow-x: auto; }
"""


def escaped(value: Any) -> str:
    """Escaped, for a page."""
    return html.escape(str(value))


def table(head: list[str], rows: list[list[str]], numeric_from: int = 1) -> str:
    """Cells are HTML; columns from ``numeric_from`` on hold numbers."""

    def cell(tag: str, index: int, value: str) -> str:
        return f"<{tag}{' class=n' if index >= numeric_from else ''}>{value}</{tag}>"

    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{''.join(cell('th', i, h) for i, h in enumerate(head))}</tr>{body}</table></div>"


def document(title: str, body: str) -> str:
    """A whole page around ``body``."""
    return f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escaped(title)}</title><style>{_STYLE}</style>{body}</html>\n"
