"""README and docs/ as tests read them: their text, their code blocks, and the commands in these."""

from __future__ import annotations

import re
import shlex


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    """The code blocks of a page: indented by four spaces, or fenced."""
    text = text_of(page)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    indented = re.findall(r"(?:^\n(?:(?: {4,}.*)?\n)+)", text, re.M)
    return [*fenced, *indented]


def commands(page):
    """The lines of a page's code blocks that call medquant, as lists of arguments."""
    lines = [line.strip() for block in blocks(page) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("medquant ")]


def python_blocks(page):
    """Code blocks that import something of the library."""
    found = [block for block in blocks(page) if "from MedQuantINT8Lib" in block]
    return [re.sub(r"^    ", "", block, flags=re.M) for block in found]
