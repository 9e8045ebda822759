"""``medquant evaluate`` and ``medquant compare`` over workers give what they give without them; a case that fails is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import SimpleITK as sitk

import tiny
from cohorts import cases_of, write_scan
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.cohort.viewed import ViewedCases, ViewedWriter
from MedQuantINT8Lib.evaluation.reports.viewer import Place, ViewerScan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.package(tmp_path_factory.mktemp("model")).folder)


@pytest.fixture
def data(tmp_path):
    """Three cases, one with a name that is no path."""
    cases = []
    for n in range(3):
        write_scan(tmp_path / f"{n}.nii.gz", n)
        labels = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{n}.nii.gz"))) > 0.45).astype("uint8")
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / f"{n}-labels.nii.gz"))
        cases.append({"name": f"case: {n}/a", "image": f"{n}.nii.gz", "label": f"{n}-labels.nii.gz"})
    (tmp_path / "data.json").write_text(json.dumps({"name": "set", "cases": cases}))
    return tmp_path / "data.json"


def run(model, data, output, *more):
    code = main(["evaluate", model, "--data", str(data), "--output", str(output), *more])
    return code, json.loads((output / "evaluation.json").read_text())


def test_workers_give_the_same_rows_and_a_journal_to_go_on_by(model, data, tmp_path, capsys):
    pytest.importorskip("scipy")
    _, plain = run(model, data, tmp_path / "plain")
    code, value = run(model, data, tmp_path / "out", "--workers", "2")
    assert code == 0 and value["rows"] == plain["rows"] and value["summary"] == plain["summary"]
    assert value["failed"] == {} and value["engine"]["int8"]["name"] == plain["engine"]["int8"]["name"]
    journal = tmp_path / "out/cohort.jsonl"
    assert len(cases_of(journal)) == 3
    # What is done is not run again.
    assert run(model, data, tmp_path / "out", "--workers", "1")[0] == 0 and len(cases_of(journal)) == 3
    capsys.readouterr()
    assert (
        main(
            ["evaluate", model, "--data", str(data), "-o", str(tmp_path / "out"), "--workers", "1", "--tolerance", "2"]
        )
        == 2
    )
    assert "tolerance 1.0 then, 2.0 now" in capsys.readouterr().err


def shown(page):
    """The scans that a page's viewer shows."""
    return json.loads(re.search(r'id="?viewer-data"?>(.*?)</script>', page.read_text(), re.DOTALL)[1])["scans"]


def test_the_page_of_a_run_over_workers_has_the_same_viewer(model, data, tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    pytest.importorskip("ipyniivue")
    run(model, data, tmp_path / "plain")
    code, _ = run(model, data, tmp_path / "out", "--workers", "1")
    plain, pooled = (tmp_path / name / "evaluation.html" for name in ("plain", "out"))
    assert code == 0 and shown(pooled) == shown(plain)
    assert len(shown(plain)) == 3 and len(shown(plain)[0]["layers"]) == 5
    # What is done is not run again, and is still shown; a case that nobody takes does not stay.
    (tmp_path / "out/viewer" / f"{'0' * 24}.json").write_text("{}")
    (tmp_path / "out/viewer/mine.txt").write_text("mine")
    assert run(model, data, tmp_path / "out", "--workers", "1")[0] == 0 and shown(pooled) == shown(plain)
    files = {path.name for path in (tmp_path / "out/viewer").iterdir()}
    assert len(files) == 4 and "mine.txt" in files


def test_the_viewer_keeps_the_worst_cases_of_all_workers(tmp_path):
    pytest.importorskip("ipyniivue")
    scan = ViewerScan("scan.nii.gz", {"scan": "H4sI"}, [(1, "a", (1, 2, 3))], [Place("there", (1.0, 2.0, 3.0))], "note")
    driver, writers = ViewedCases(str(tmp_path)), [ViewedWriter(str(tmp_path)) for _ in range(2)]
    for number in range(12):
        record = {"id": f"case {number}", **writers[number % 2].offer(f"case {number}", number * 7 % 12, lambda: scan)}
        driver.take(record)
        assert len(list((tmp_path / "viewer").iterdir())) <= 3
    scans = driver.scans({f"case {number}": f"the {number}" for number in range(12)})
    assert [s.name for s in scans] == ["the 5", "the 10", "the 3"]
    assert scans[0] == replace(scan, name="the 5")


def test_a_viewer_that_cannot_be_written_costs_no_case(tmp_path):
    pytest.importorskip("ipyniivue")
    (tmp_path / "viewer").write_text("a file in its place")
    record = ViewedWriter(str(tmp_path)).offer("a", 0.5, lambda: ViewerScan("a", {}, []))
    assert "viewed" not in record and "does not show a" in record["viewer_warning"]


def test_a_case_that_fails_is_left_out_and_told(model, data, tmp_path, capsys):
    pytest.importorskip("scipy")
    (tmp_path / "1.nii.gz").write_bytes(b"junk")
    code, value = run(model, data, tmp_path / "out", "--workers", "1")
    assert code == 8 and value["cases"] == ["case: 0/a", "case: 2/a"]
    assert "cannot be read" in value["failed"]["case_ 1/a"] and "1 of 3 cases failed" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_over_workers_gives_the_same_agreement(model, data, tmp_path, capsys):
    scans, labels = ([str(tmp_path / f"{n}{kind}.nii.gz") for n in range(2)] for kind in ("", "-labels"))
    (tmp_path / "1.nii.gz").write_bytes(b"junk")

    def compare(count, report, *more):
        chosen = [*scans[:count], "--labels", *labels[:count], "--engine", "onnxruntime"]
        return main(["compare", model, *chosen, "--report", str(tmp_path / report), *more])

    assert compare(1, "plain") == 0
    assert compare(2, "out", "--workers", "1") == 8
    assert "1 of 2 cases failed" in capsys.readouterr().err
    plain, pooled = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("plain", "out"))
    assert pooled["agreement"] == plain["agreement"]
    assert [(r["scan"], r["precision"]) for r in pooled["runs"]] == [(r["scan"], r["precision"]) for r in plain["runs"]]
    assert shown(tmp_path / "out/report.html") == shown(tmp_path / "plain/report.html")
    assert [p["title"] for p in pooled["pictures"]] == [p["title"] for p in plain["pictures"]]
    assert len(cases_of(tmp_path / "out/cohort.jsonl")) == 2
    assert main(["compare", model, *scans, "--workers", "2"]) == 2
