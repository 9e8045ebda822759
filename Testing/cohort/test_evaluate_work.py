"""``medquant evaluate`` and ``medquant compare`` over workers give what they give without them; a case that fails is told."""

from __future__ import annotations

import json

import pytest
import SimpleITK as sitk

import tiny
from cohorts import cases_of, write_scan
from MedQuantINT8Lib.cli.main import main


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
    assert [p["title"] for p in pooled["pictures"]] == [p["title"] for p in plain["pictures"]]
    assert len(cases_of(tmp_path / "out/cohort.jsonl")) == 2
    assert main(["compare", model, *scans, "--workers", "2"]) == 2
