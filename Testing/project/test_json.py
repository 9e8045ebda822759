"""JSON from anywhere is read by one function: what is no JSON, or lies deeper than can be read, is an error in words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.files import parse_json, read_json
from MedQuantINT8Lib.importers.expressions import _parse_file
from MedQuantINT8Lib.importers.fields import read_described
from MedQuantINT8Lib.models.package_files import parsed_json
from MedQuantINT8Lib.slicer_module.parameter_node import _Field

DEEP = "[" * 200_000


@pytest.mark.parametrize("text", [DEEP, DEEP.encode(), "{", b"\xff\xfe", ""])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_numbers_that_json_does_not_have_are_refused_where_that_is_asked():
    assert parse_json("[NaN]")[0] != parse_json("[1]")[0] and parse_json(b"[1.5, 2]", finite=True) == [1.5, 2]
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}'):
        with pytest.raises(ValueError, match="is not a JSON number"):
            parse_json(text, finite=True)


def test_every_reader_of_descriptions_answers_depth_in_words(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text(DEEP)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)
    with pytest.raises(PackageError, match=r"deep\.json is not valid JSON: it is nested too deeply"):
        read_described(path, "result folder")
    with pytest.raises(PackageError, match=r"model\.json is not valid JSON: it is nested too deeply"):
        parsed_json(DEEP.encode(), "model.json")
    with pytest.raises(PackageError, match=r"deep\.json cannot be read: it is nested too deeply"):
        _parse_file(path, SimpleNamespace(weigh=lambda value: None))
    assert _Field(3).parse(DEEP) == 3
