"""Rows of results that were measured on several days and put into one file keep their days."""

from __future__ import annotations

import pytest

from places import ROOT


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))


def test_a_row_without_a_day_has_the_last_of_its_file():
    from run_days import dated, days_of

    record = {"date": "2026-11-28 to 2026-11-29", "rows": {"a": {"date": "2026-11-27"}, "b": {}}}
    rows = dated(record)
    assert rows == {"a": {"date": "2026-11-27"}, "b": {"date": "2026-11-29"}}
    assert days_of(rows.values()) == "2026-11-27 to 2026-11-29" and days_of([rows["b"]]) == "2026-11-29"


def test_rows_one_after_the_other_have_their_days_as_well():
    from run_days import dated

    assert dated({"date": "2026-11-29", "rows": [{}]}) == [{"date": "2026-11-29"}]


def test_a_file_of_no_row_is_of_today():
    from run_days import days_of, today

    assert days_of([]) == today()
