"""CUDA C that lies in files (.cu and .cuh) beside the Python that puts it together.

NVRTC is given one text and no files: what a file includes is written in its place here. Only ``#include "name"`` of a file in the same
folder is known.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*#include "(\w+\.cuh)"[ \t]*$', re.MULTILINE)


@cache
def cuda_text(path: Path) -> str:
    """The text of a .cu or .cuh file, with the files that it includes written in.

    Raises:
        FileNotFoundError: the file, or one that it includes, was not installed.
    """
    text = path.read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: cuda_text(path.parent / match[1]), text)
