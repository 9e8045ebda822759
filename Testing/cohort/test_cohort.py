"""Many scans by one command: every case ends once, whatever happens to a case, to a worker or to the run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

import tiny
from cohorts import cases_of, lines_of, wait_for, write_scan, write_scans
from dicom_files import write_series
from MedQuantINT8Lib.cohort.journal import JOURNAL
from MedQuantINT8Lib.system import library_environment, module_arguments


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.package(tmp_path_factory.mktemp("model")).folder)


def labels_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_folder_is_segmented_and_one_bad_case_does_not_end_the_run(medquant, model, tmp_path):
    scans = write_scans(tmp_path / "scans", 4)
    scans[2].write_bytes(b"junk")
    out = tmp_path / "out put"
    code, said, err = medquant("segment", model, tmp_path / "scans", "-o", out, "--json")
    assert code == 8 and "1 of 4 cases failed" in err
    lines = {line["id"]: line for line in map(json.loads, said.splitlines())}
    assert sorted(lines) == [f"s000{n}/ct" for n in range(4)]
    assert "cannot be read" in lines["s0002/ct"]["error"] and lines["s0002/ct"]["stage"] == "reading"
    done = lines["s0000/ct"]
    assert {"hashing", "reading", "preprocessing", "network", "writing", "total"} <= set(done["seconds"])
    assert done["engine"]["name"] and done["ml"]["bright"] > 0 and len(done["input_sha256"]) == 64
    # As a single scan is segmented.
    assert medquant("segment", model, scans[0], "-o", tmp_path / "one.seg.nrrd")[0] == 0
    assert (labels_of(out / "s0000/ct.seg.nrrd") == labels_of(tmp_path / "one.seg.nrrd")).all()
    rows = list(csv.DictReader((out / "cohort.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["done", "done", "failed", "done"]
    page = (out / "cohort.html").read_text()
    assert "3 of 4 cases done, 1 failed" in page and "s0002/ct" in page


def test_the_next_run_repeats_what_failed_changed_or_is_damaged(medquant, model, tmp_path):
    scans = write_scans(tmp_path / "scans", 5)
    good = scans[0].read_bytes()
    scans[0].write_bytes(b"junk")
    out = tmp_path / "out"
    command = ("segment", model, tmp_path / "scans", "-o", out, "--type", "nii.gz")
    assert medquant(*command)[0] == 8
    scans[0].write_bytes(good)
    write_scan(scans[1], 77)
    (out / "s0002/ct.nii.gz").write_bytes((out / "s0002/ct.nii.gz").read_bytes()[:50])
    corrected = labels_of(out / "s0003/ct.nii.gz") * 0
    sitk.WriteImage(sitk.GetImageFromArray(corrected), str(out / "s0003/ct.nii.gz"))
    untouched = (out / "s0004/ct.nii.gz").stat().st_mtime_ns
    code, said, _ = medquant(*command)
    assert code == 0 and "5 of 5 cases done (1 before)" in said
    for text in ("another one now", "was damaged", "kept as ct-changed-1.nii.gz"):
        assert text in said
    assert not labels_of(out / "s0003/ct-changed-1.nii.gz").any() and labels_of(out / "s0003/ct.nii.gz").any()
    assert (out / "s0004/ct.nii.gz").stat().st_mtime_ns == untouched
    code, said, _ = medquant(*command, "--resume")
    assert code == 0 and "(5 before)" in said


def test_a_wrong_order_and_one_output_for_many_scans_are_refused(medquant, model, tmp_path):
    write_scans(tmp_path / "scans", 2)
    code, _, said = medquant("segment", tmp_path / "scans", model, "-o", tmp_path / "out")
    assert code == 2 and f"{model} is: the model comes first" in said
    code, _, said = medquant("segment", model, tmp_path / "scans", "-o", tmp_path / "out.nii.gz")
    assert code == 2 and "--output FOLDER for all that are in it" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_other_options_and_foreign_files_are_refused_before_any_work(medquant, model, tmp_path):
    write_scans(tmp_path / "scans", 2)
    out = tmp_path / "out"
    (out / "s0001").mkdir(parents=True)
    (out / "s0001/ct.seg.nrrd").write_text("somebody's")
    command = ["segment", model, tmp_path / "scans", "-o", out]
    code, _, err = medquant(*command)
    assert code == 2 and "would be replaced" in err and not (out / JOURNAL).exists()
    assert medquant(*command, "--force")[0] == 0
    code, _, err = medquant(*command, "--overlap", "0.5")
    assert code == 2 and "overlap null then, 0.5 now" in err
    code, _, err = medquant(*command, "--no-resume")
    assert code == 2 and "is there already" in err
    assert medquant(*command, "--overlap", "0.5", "--force")[0] == 0
    for wrong, words in (
        (["segment", model, tmp_path / "scans"], "Give --output FOLDER"),
        (["segment", model], "No scan was given"),
        (["segment", model, tmp_path / "scans", "-o", f"{model}/out"], "lies in the model"),
        ([*command, "--type", "jpg"], "no type"),
        ([*command, "--devices", "gpu:0", "--device", "cpu"], "Give one of them"),
        (["segment", model, tmp_path / "scans/s0000/ct.nii.gz", "--workers", "2"], "is for many scans"),
        (["segment", model, tmp_path / "scans/s0000", "-o", tmp_path / "scans/s0000", "--type", "nii.gz"], "for scans"),
    ):
        code, _, err = medquant(*wrong)
        assert code == 2 and words in err, err


def test_a_list_with_labels_gives_dice_and_a_series_is_found_in_its_tree(medquant, model, tmp_path):
    scan = write_scan(tmp_path / "a.nii.gz")
    assert medquant("segment", model, scan, "-o", tmp_path / "truth.nii.gz")[0] == 0
    (tmp_path / "cases.csv").write_text("id,image,labels\nfirst,a.nii.gz,truth.nii.gz\nsecond,missing.nii.gz,\n")
    out = tmp_path / "out"
    code, _, _ = medquant("segment", model, "--list", tmp_path / "cases.csv", "-o", out)
    first, second = sorted(cases_of(out / JOURNAL), key=lambda line: line["id"])
    assert code == 8 and first["dice"] == {"bright": 1.0} and "There is no scan at" in second["error"]
    slices = [(values * 100).astype("int16") for values in labels_of(scan)]
    (tmp_path / "tree").mkdir()
    for half, numbers in (("a", range(8)), ("b", range(8, 16))):
        places = [(0, 0, 2.0 * n) for n in numbers]
        write_series(tmp_path / "tree" / half, [slices[n] for n in numbers], places, series="1.2.7")
    assert medquant("segment", model, tmp_path / "tree", "-o", tmp_path / "dicom")[0] == 0
    assert labels_of(tmp_path / "dicom/1.2.7.seg.nrrd").shape == (16, 16, 16)


def test_a_dicom_folder_of_one_series_is_a_single_scan(medquant, model, tmp_path):
    volume = labels_of(write_scan(tmp_path / "x.nii.gz"))
    write_series(tmp_path / "one", [(v * 100).astype("int16") for v in volume], [(0, 0, 2.0 * n) for n in range(16)])
    assert medquant("segment", model, tmp_path / "one", "-o", tmp_path / "one.nii.gz")[0] == 0
    code, said, _ = medquant("segment", model, tmp_path / "one", "--json")
    assert code == 0 and "structures" in json.loads(said)


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, *module_arguments("MedQuantINT8Lib.cli.main"), *map(str, arguments)],
        env=library_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX's")
def test_a_run_that_is_killed_goes_on_where_it_stopped(medquant, model, tmp_path):
    count = 40
    write_scans(tmp_path / "scans", count)
    out = tmp_path / "out"
    command = ("segment", model, tmp_path / "scans", "-o", out)
    process = started(*command)
    wait_for(lambda: len(cases_of(out / JOURNAL)) >= 3, process)
    process.kill()
    process.communicate()
    before = {line["id"] for line in cases_of(out / JOURNAL)}
    assert 3 <= len(before) < count
    code, said, err = medquant(*command)
    assert code == 0, err
    assert f"{count} of {count} cases done ({len(before)} before)" in said
    # No case was run twice, and every output is whole.
    assert sorted(line["id"] for line in cases_of(out / JOURNAL)) == [f"s{n:04d}/ct" for n in range(count)]
    assert all(labels_of(out / f"s{n:04d}/ct.seg.nrrd").shape == (16, 16, 16) for n in range(count))
    assert not list(out.rglob(".writing*"))


def _children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux does")
def test_a_worker_that_is_killed_costs_no_case(model, tmp_path):
    count = 40
    write_scans(tmp_path / "scans", count)
    out = tmp_path / "out"
    process = started("segment", model, tmp_path / "scans", "-o", out, "--workers", "2", "--devices", "cpu")
    wait_for(lambda: len(cases_of(out / JOURNAL)) >= 3, process)
    os.kill(_children(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert sorted(line["id"] for line in cases_of(out / JOURNAL)) == [f"s{n:04d}/ct" for n in range(count)]
    assert {line["device"] for line in cases_of(out / JOURNAL)} == {"cpu"}
    assert lines_of(out / JOURNAL)[0]["where"] == {"devices": ["cpu", "cpu"]}
