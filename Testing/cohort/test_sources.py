"""Scans are found where they lie, by the layouts of public data sets; what is left out is told; names never meet."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest

from cohorts import write_scan
from dicom_files import write_series
from MedQuantINT8Lib.cohort.cases import ScanCase, safe_id, with_unique_ids
from MedQuantINT8Lib.cohort.ray_cluster import check_address
from MedQuantINT8Lib.cohort.sources import SourceOptions, find_cases, read_list
from MedQuantINT8Lib.errors import InputError


def ids(*sources, list_file=None, **options):
    return [case.id for case in find_cases([str(s) for s in sources], list_file, SourceOptions(**options)).cases]


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_scans_of_one_name_keep_their_folders(tmp_path):
    touch(tmp_path / "s0001/ct.nii.gz", tmp_path / "s0002/ct.nii.gz", tmp_path / "s0002/segmentations/liver.nii.gz")
    assert ids(tmp_path) == ["s0001/ct", "s0002/ct"]
    assert ids(tmp_path / "s0001/ct.nii.gz", tmp_path / "s0002/ct.nii.gz") == ["s0001/ct", "s0002/ct"]
    skipped = find_cases([str(tmp_path)], None, SourceOptions()).skipped
    assert [item.reason for item in skipped] == ["a folder of that name holds label maps"]


def test_names_differ_by_type_case_folder_or_number(tmp_path):
    touch(tmp_path / "a/x.nii.gz", tmp_path / "a/x.nrrd", tmp_path / "b/X.mha", tmp_path / "odd name, with comma.nii")
    found = ids(tmp_path)
    assert len({name.casefold() for name in found}) == 4
    assert ids(tmp_path / "a/x.nii.gz", tmp_path / "a/x.nrrd") == ["x.nii.gz", "x.nrrd"]
    cases = [ScanCase("same", (f"/list/{n}",)) for n in "ab"] + [ScanCase("same-2", ("/list/c",))]
    assert len({case.id for case in with_unique_ids(cases)}) == 3
    assert safe_id("..", "a/b", "con", "x:y ") == "_/a_b/_con/x_y"


def test_channels_of_nnunet_are_one_case_and_numbered_scans_are_not(tmp_path):
    touch(*(tmp_path / f"imagesTr/brain_{c}_000{n}.nii.gz" for c in "ab" for n in (0, 1)))
    touch(tmp_path / "imagesTr/brain_c_0000.nii.gz", tmp_path / "labelsTr/brain_a.nii.gz")
    found = find_cases([str(tmp_path)], None, SourceOptions(channels=2))
    assert [(c.id, len(c.channels)) for c in found.cases] == [("imagesTr/brain_a", 2), ("imagesTr/brain_b", 2)]
    assert "channel 0001 of brain_c is missing" in {item.reason for item in found.skipped}
    alone = {"brain_a_0000", "brain_a_0001", "brain_b_0000", "brain_b_0001", "brain_c"}
    assert set(ids(tmp_path / "imagesTr")) == alone


def test_bids_takes_the_anatomical_suffix(tmp_path):
    for subject in ("01", "02"):
        folder = tmp_path / f"sub-{subject}/ses-1"
        touch(*(folder / f"anat/sub-{subject}_ses-1_{kind}.nii.gz" for kind in ("T1w", "T2w")))
        touch(folder / f"func/sub-{subject}_ses-1_bold.nii.gz")
    touch(tmp_path / "derivatives/sub-01/anat/sub-01_T1w.nii.gz")
    assert ids(tmp_path) == ["sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-02/ses-1/anat/sub-02_ses-1_T1w"]
    assert ids(tmp_path, suffixes=("T2w",))[0].endswith("_T2w")
    two = find_cases([str(tmp_path)], None, SourceOptions(channels=2, suffixes=("T1w", "T2w"))).cases
    assert two[0].id == "sub-01/ses-1/anat/sub-01_ses-1" and two[0].channels[1].endswith("T2w.nii.gz")
    with pytest.raises(InputError, match="--bids T1w,FLAIR"):
        ids(tmp_path, channels=2)
    with pytest.raises(InputError, match="no scans of the suffix FLAIR"):
        ids(tmp_path, suffixes=("FLAIR",))


def test_a_dicom_tree_is_a_case_a_series_and_localizers_are_left_out(tmp_path):
    slices = [np.full((4, 5), n, np.int16) for n in range(4)]
    places = [(0, 0, 2.0 * n) for n in range(4)]
    (tmp_path / "p1").mkdir()
    write_series(tmp_path / "p1/a", slices, places, series="1.2.1")
    write_series(tmp_path / "p1/b", slices[:2], places[:2], series="1.2.2", names=["a", "b"])
    write_series(tmp_path / "p1/c", slices[2:], places[2:], series="1.2.2", names=["c", "d"])

    def localizer(data, _):
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def without_geometry(data, _):
        del data.ImagePositionPatient

    write_series(tmp_path / "p1/a", slices[:1], places[:1], localizer, "1.2.8", ["scout.dcm"])
    write_series(tmp_path / "p2", slices[:1], places[:1], without_geometry, "1.2.9")
    found = find_cases([str(tmp_path)], None, SourceOptions())
    assert [(c.id, c.series) for c in found.cases] == [("p1/a/1.2.1", "1.2.1"), ("p1/1.2.2", "1.2.2")]
    assert len(found.cases[1].more_folders) == 1
    assert [item.reason.split(" (")[0] for item in found.skipped] == [
        "it is a localizer",
        "its images do not say where they lie in the patient",
    ]
    assert ids(tmp_path, series="1.2.2") == ["p1/1.2.2"]


def test_a_list_names_cases_channels_and_labels(tmp_path):
    text = "id,t1,flair,labels\nA/1,a.nii.gz,b.nii.gz,l.nii.gz\n2,/data/c.nii.gz,d.nii.gz,\n"
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8-sig")
    first, second = read_list(tmp_path / "cases.csv", 2)
    assert first == ScanCase(
        "A/1", (str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")), labels=str(tmp_path / "l.nii.gz")
    )
    assert second.channels[0] == "/data/c.nii.gz" and not second.labels
    for content, words in (
        ("id,image\n", "no case"),
        ("name,image\na,b\n", "names no id"),
        ("id,image\na,b\na,c\n", "several cases called a"),
        ("id,image\na,\n", "Line 2"),
        ("id,t1,t2\na,b,c\n", "the model takes 1"),
    ):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(InputError, match=words):
            read_list(tmp_path / "bad.csv", 1)


def test_patterns_and_scans_given_twice(tmp_path):
    touch(tmp_path / "p/1/t1.nii.gz", tmp_path / "p/2/t1.nii.gz", tmp_path / "p/2/notes.txt")
    pattern = str(tmp_path / "p/*/*")
    found = find_cases([pattern, str(tmp_path / "p/1/t1.nii.gz")], None, SourceOptions())
    assert [case.id for case in found.cases] == ["1/t1", "2/t1"]
    assert sorted(item.reason for item in found.skipped) == ["it is no scan file", "it was given twice"]
    with pytest.raises(InputError, match="Nothing matches"):
        ids(tmp_path / "q/*.nii.gz")
    with pytest.raises(InputError, match="There is no scan at"):
        ids(tmp_path / "missing.nii.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There is no scan in"):
        ids(tmp_path / "empty")


def test_the_output_folder_and_segmentations_are_not_searched(tmp_path):
    write_scan(tmp_path / "a.nii.gz")
    touch(tmp_path / "out/a.nii.gz", tmp_path / "b.seg.nrrd", tmp_path / ".hidden.nii.gz", tmp_path / ".x/c.nii.gz")
    assert ids(tmp_path, leave_out=(str(tmp_path / "out"),)) == ["a"]


def test_label_maps_that_an_earlier_run_wrote_are_no_scans(tmp_path):
    touch(
        tmp_path / "1/ct.nii.gz",
        tmp_path / "old/1/ct.nii.gz",
        tmp_path / "old/again/2.nii.gz",
        tmp_path / "old/3.nii.gz",
    )
    lines = {"cohort.jsonl": "1/ct.nii.gz", "cohort-1.jsonl": "again/2.nii.gz", "other.jsonl": "3.nii.gz"}
    for name, output in lines.items():
        (tmp_path / "old" / name).write_text('{"event": "run"}\n' + json.dumps({"output": output}) + '\n{"cut o')
    found = find_cases([str(tmp_path)], None, SourceOptions())
    assert [case.id for case in found.cases] == ["1/ct", "old/3"]
    assert {item.reason for item in found.skipped} == {"it is the output of an earlier run"}
    # Nor are segmentations, by a pattern or in a BIDS folder.
    touch(
        tmp_path / "1/ct.seg.nrrd", *(tmp_path / f"bids/sub-1/anat/sub-1_T1w{end}" for end in (".nii.gz", ".seg.nrrd"))
    )
    assert ids(tmp_path / "1/*") == ["ct"]
    found = find_cases([str(tmp_path / "bids")], None, SourceOptions())
    assert [case.channels[0].endswith(".nii.gz") for case in found.cases] == [True]
    assert [item.reason for item in found.skipped] == ["it is a segmentation"]


def test_a_list_that_cannot_be_read_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="There is no list at"):
        read_list(tmp_path / "none.csv", 1)
    (tmp_path / "bad.csv").write_bytes(b"id,image\n\xff,a.nii\n")
    with pytest.raises(InputError, match="it is not in UTF-8"):
        read_list(tmp_path / "bad.csv", 1)


def test_what_is_asked_of_folders_of_another_kind_is_refused(tmp_path):
    write_scan(tmp_path / "scans/a.nii.gz")
    with pytest.raises(InputError, match="are for BIDS folders, and no source is one"):
        ids(tmp_path / "scans", suffixes=("T1w",))
    with pytest.raises(InputError, match=r"There is no DICOM series 1\.2\.3"):
        ids(tmp_path / "scans", series="1.2.3")


def test_a_cluster_that_does_not_answer_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        # Bound, but nobody listens.
        with pytest.raises(InputError, match=f"Nothing answers at 127.0.0.1:{port}: "):
            check_address(f"127.0.0.1:{port}")
        free.listen()
        assert check_address(f"127.0.0.1:{port}")
    for address in ("127.0.0.1:99999", "no such host:1"):
        with pytest.raises(InputError):
            check_address(address)
    assert check_address("auto") == "auto"
