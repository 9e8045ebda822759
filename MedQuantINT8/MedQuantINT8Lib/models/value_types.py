"""What single values of model.json may be, as annotated types: the rules that parser and schema keep (:mod:`.records`)."""

from __future__ import annotations

import re
from typing import Annotated

from .records import NOT_EMPTY, Rule, shown, within

#: The orientation that takes voxels as they lie in the file.
NATIVE = "native"
_FILE_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"


def _orientation_problem(text: str) -> str | None:
    axes = {letter: axis for axis, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    if text == NATIVE or sorted(axes.get(letter, -1) for letter in text) == [0, 1, 2]:
        return None
    return f'is {shown(text)} but must be three letters, one each of R/L, A/P and S/I, such as RAS, or "native"'


def _file_name_problem(text: str) -> str | None:
    if re.fullmatch(_FILE_NAME, text):
        return None
    return f"is {shown(text)} but may hold only letters, digits, '.', '_' and '-'"


#: Text that is not empty, and a name that may become part of a file's.
Name = Annotated[str, NOT_EMPTY]
FileName = Annotated[str, NOT_EMPTY, Rule({"pattern": f"^{_FILE_NAME}$"}, _file_name_problem)]
Orientation = Annotated[str, Rule({"pattern": "^([RLAPSI]{3}|native)$"}, _orientation_problem)]
Positive = Annotated[float, within(above=0)]
NotNegative = Annotated[float, within(least=0)]
Share = Annotated[float, within(least=0, below=1)]
Probability = Annotated[float, within(least=0, most=1)]
Count = Annotated[int, within(least=1)]
#: An axis of the tensor.
Axis = Annotated[int, Rule({"enum": [0, 1, 2]}, lambda value: None if value in (0, 1, 2) else "must be 0, 1 or 2")]
Byte = Annotated[int, within(least=0, most=255)]
#: A value of a label map; the parser looks at the largest of all labels at once.
LabelValue = Annotated[int, within(least=1), Rule({"maximum": 65535})]
Connectivity = Annotated[
    int, Rule({"enum": [1, 2, 3]}, lambda value: None if value in (1, 2, 3) else "must be 1, 2 or 3")
]
