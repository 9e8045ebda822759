"""What the pages share: templates whose values are escaped, tables that fit wide and narrow windows, numbers as words.

A page needs nothing else: the style stands in ``templates/base.html``, and pictures stand in the page itself. Texts reach a
template as they came out of a file; the template escapes each of them. Nothing that is passed to one is HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DependencyError

if TYPE_CHECKING:
    from jinja2 import Environment

#: Columns of short numbers that fit a telephone's width.
WIDEST_TABLE = 7
#: A path, and not a package: Slicer's modules are installed as files.
_TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Strong:
    """A cell in bold.

    Attributes:
        kind: a class of the style, "good" or "bad", or none.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table: headings and rows of cells, which are texts.

    Attributes:
        numeric_from: the index of the first column that holds numbers; those after it do, too.
        stack: where the window is narrow, show each row as lines of heading and cell; always so for more than :data:`WIDEST_TABLE` columns.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Strong]]
    numeric_from: int = 1
    stack: bool = False

    @property
    def stacked(self) -> bool:
        return self.stack or len(self.head) > WIDEST_TABLE


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its word in the right form: "1 window", "2 windows"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def render(template: str, **values: Any) -> str:
    """Return a page of a template in ``templates/``.

    Args:
        values: what the template names, as texts, numbers and :class:`Table`; a name that is missing is an error.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    return _environment().get_template(template).render(values)


def require_templates() -> None:
    """Look whether pages can be written here, before work starts that ends in one.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    _environment()


@cache
def _environment() -> Environment:
    # Only what writes a page needs Jinja2; segmenting, which imports this file with the reports, does not.
    try:
        import jinja2
    except ImportError as error:
        raise DependencyError(
            "The Python package 'jinja2', which writes the reports' pages, is not installed.",
            "Install it with: pip install jinja2",
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fixed"] = number
    environment.tests["strong"] = lambda cell: isinstance(cell, Strong)
    environment.globals["counted"] = counted
    return environment
