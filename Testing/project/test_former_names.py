"""Scripts that name modules as version 0.1 did go on, and are told the present name."""

from __future__ import annotations

import importlib
import sys

import pytest

from MedQuantINT8Lib import former_names


@pytest.mark.parametrize("name", sorted(former_names._PRESENT_NAMES))
def test_a_former_name_is_the_module_of_today(name):
    former, present = f"MedQuantINT8Lib.{name}", f"MedQuantINT8Lib.{former_names._PRESENT_NAMES[name]}"
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"is now {present}"):
        module = importlib.import_module(former)
    assert module is importlib.import_module(present) and module.__name__ == present


def test_a_name_that_never_was_is_still_an_error():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("MedQuantINT8Lib.never_was")
