"""Pages that need nothing else: one style, tables that fit wide and narrow windows, escaped text."""

from __future__ import annotations

import html
from typing import Any

#: Columns of short numbers that fit a telephone's width.
WIDEST_TABLE = 7

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1.2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; } h1 + p { margin-top: .2rem; } h2 { margin: 1.6rem 0 .5rem; font-size: 1.2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; margin: .5rem 0; max-width: 100%; } td, th { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: baseline; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; } .muted { opacity: .7; } img, svg { max-width: 100%; height: auto; border-radius: 6px; }
figure { margin: .8rem 0; } svg text { fill: currentColor; } .good { color: var(--good); } .bad { color: var(--bad); } summary { cursor: pointer; margin: .3rem 0; }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: .8rem; margin: .5rem 0; } .card { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 2rem; line-height: 1.2; font-variant-numeric: tabular-nums; } .verdict { font-size: 1.25rem; margin: 0; } .verdict + p { margin: .3rem 0; }
@media (max-width: 700px) {
  td, th { padding-right: .25rem; font-size: .8rem; } td:first-child, th:first-child { overflow-wrap: break-word; } .cards { grid-template-columns: 1fr; gap: .4rem; }
  .card { display: grid; grid-template-columns: 6.5rem 1fr; align-items: center; padding: .5rem .8rem; } .card b { font-size: 1.6rem; }
  table.stack, .stack tbody, .stack tr, .stack td { display: block; width: 100%; } .stack tr.head { display: none; } .stack tr { border-bottom: 1px solid var(--line); padding: .3rem 0; }
  .stack td, .stack td:first-child, .stack td.n { overflow-wrap: anywhere; } .stack td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .05rem 0; text-align: right; } .stack td::before { content: attr(data-head); opacity: .7; text-align: left; flex-shrink: 0; }
}
"""


def escaped(value: Any) -> str:
    """Escaped, for a page."""
    return html.escape(str(value))


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 window", "2 windows": a number with the word in its form."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def table(head: list[str], rows: list[list[str]], numeric_from: int = 1, *, stack: bool = False) -> str:
    """Cells are HTML; columns from ``numeric_from`` on hold numbers.

    Args:
        stack: where the window is narrow, show each row as lines of heading and cell; always so for more than :data:`WIDEST_TABLE` columns.
    """

    def cell(tag: str, index: int, value: str, heading: str = "") -> str:
        return f"<{tag}{' class=n' if index >= numeric_from else ''}{heading}>{value}</{tag}>"

    stacked = stack or len(head) > WIDEST_TABLE
    headings = [f' data-head="{h}"' if stacked else "" for h in head]
    body = "".join("<tr>" + "".join(cell("td", i, v, headings[i]) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f"<table{' class=stack' if stacked else ''}><tr class=head>{''.join(cell('th', i, h) for i, h in enumerate(head))}</tr>{body}</table>"


def cards(items: list[tuple[str, str, str]]) -> str:
    """Figures that stand out, side by side: number, what it is (HTML), and a class such as "good"."""
    return (
        "<div class=cards>"
        + "".join(
            f"<div class=card><b class='{kind}'>{number}</b> <span>{text}</span></div>" for number, text, kind in items
        )
        + "</div>"
    )


def document(title: str, body: str) -> str:
    """A whole page around ``body``."""
    return f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'><title>{escaped(title)}</title><style>{_STYLE}</style>{body}</html>\n"
