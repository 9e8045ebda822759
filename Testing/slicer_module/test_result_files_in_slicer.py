"""From a node's segmentation to files and a table, and what Slicer's DICOM module needs to export it, on Slicer's real core."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")
import slicer

import tiny
from MedQuantINT8Lib.errors import InputError, MedQuantError
from MedQuantINT8Lib.imaging.measurements import columns, measure, rows
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.result_files import OutputOptions
from MedQuantINT8Lib.models.spec import Code, Label, Terminology
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic

pytestmark = pytest.mark.slicer

MATRIX = np.array([[-0.8, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])
LABELS = (
    Label(1, "liver", 1, (221, 130, 101), Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "10200004", "Liver"))),
    Label(4, "left kidney", 2, (185, 102, 83), Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "64033007", "Kidney"), Code("SCT", "7771000", "Left"))),
    Label(6, "lump", 3),
)  # fmt: skip


@pytest.fixture(scope="module")
def logic():
    made = MedQuantINT8Logic()
    yield made
    made.close()


@pytest.fixture
def scene():
    scene = mrml.headless_scene()
    yield scene
    scene.Clear(0)


def scan():
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 14, 16), np.uint8)
    labels[2:8, 3:9, 4:13], labels[9:11, 10:13, 2:6], labels[1, 1, 1] = 1, 4, 6
    return Volume(rng.integers(-200, 300, (1, 12, 14, 16)).astype(np.int16), MATRIX, "scan"), labels


def cells(table):
    head = [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())]
    return [
        dict(zip(head, [table.GetCellText(row, n) for n in range(len(head))], strict=True))
        for row in range(table.GetNumberOfRows())
    ]


def test_the_table_of_a_segmentation_says_what_is_measured_of_its_label_map(logic, scene):
    volume, labels = scan()
    node = mrml.volume_node(volume, "scan", scene)
    segmentation = mrml.add_segmentation(labels, LABELS, node)
    nodes_before = scene.GetNumberOfNodes()
    table = logic.measure(node, segmentation)
    assert scene.GetNumberOfNodes() == nodes_before + 1 and table.IsA("vtkMRMLTableNode")
    expected = measure(volume, labels, LABELS)
    found = cells(table)
    for row, values in zip(found, rows(expected), strict=True):
        for name, text in zip(columns(expected)[1:], values[1:], strict=True):
            assert row[name] == text or float(row[name]) == pytest.approx(float(text), abs=1e-4), name


def test_segments_that_overlap_or_were_corrected_are_measured_as_they_are_now(logic, scene):
    volume, labels = scan()
    node = mrml.volume_node(volume, "scan", scene)
    segmentation = mrml.add_segmentation(labels, LABELS, node, surface=True)
    more = np.zeros_like(labels)
    more[0:12, 3:9, 4:13] = 1
    mrml.add_segmentation(more, LABELS[:1], node, segmentation)
    found = {row["name"]: row for row in cells(logic.measure(node, segmentation))}
    assert {name: int(row["voxels"]) for name, row in found.items()} == {
        "liver": 324,
        "left kidney": 24,
        "lump": 1,
        "liver 2": 648,
    }
    # A box of 9 x 6 x 6 voxels has 2 (7.2 x 4.8 + 7.2 x 15 + 4.8 x 15) square millimeters; Slicer smooths surfaces.
    assert float(found["liver"]["surface_mm2"]) == pytest.approx(429, rel=0.25)
    segmentation.GetSegmentation().RemoveSegment("Segment_1")
    assert [row["name"] for row in cells(logic.measure(node, segmentation))] == ["left kidney", "lump", "liver 2"]


def test_what_cannot_be_measured_is_said(logic, scene):
    node = mrml.volume_node(scan()[0], "scan", scene)
    with pytest.raises(InputError, match="no segmentation to measure"):
        logic.measure(node, None)
    with pytest.raises(InputError, match="has no segments"):
        logic.measure(node, scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty"))


def test_the_console_writes_the_same_files_as_the_command_line(logic, scene, tmp_path):
    pytest.importorskip("highdicom", reason="needs highdicom (the extra dicom)")
    import pydicom

    from dicom_files import write_series

    pixels = list(np.random.default_rng(0).integers(0, 2, (6, 9, 11)).astype(np.int16))
    write_series(tmp_path / "series", pixels, [(0, 0, 2 * n) for n in range(6)])
    node = mrml.load_volume_node(tmp_path / "series", scene)
    model = str(tiny.package(tmp_path / "made").folder)
    outputs = OutputOptions(
        (str(tmp_path / "o.dcm"), f"{tmp_path / 'masks'}/"), "labelmap", str(tmp_path / "s.json"), str(tmp_path / "m.nrrd"), str(tmp_path / "p.png")
    )  # fmt: skip
    options = {"model": model, "engine": "onnxruntime", "precision": "fp32"}
    logic.segment(node, outputs=outputs, **options)
    assert [entry["kind"] for entry in logic.report["outputs"]] == [
        "dicom",
        "masks",
        "statistics",
        "margins",
        "picture",
    ]
    assert all((tmp_path / name).is_file() for name in ("m.nrrd", "p.png", "masks/bright.nii.gz"))
    data = pydicom.dcmread(tmp_path / "o.dcm")
    ones = int(np.count_nonzero(pixels))
    assert data.SegmentationType == "LABELMAP" and np.count_nonzero(data.pixel_array) == ones
    assert json.loads((tmp_path / "s.json").read_text())["structures"][0]["voxels"] == ones
    assert (
        data.SegmentSequence[1]
        .SegmentationAlgorithmIdentificationSequence[0]
        .AlgorithmParameters.startswith("network=tiny 1,precision=fp32")
    )

    # What cannot be done is said before the work, and by whoever would write one file for many scans.
    other = mrml.volume_node(scan()[0], "not from DICOM", scene)
    with pytest.raises(MedQuantError, match="was not read from DICOM"):
        logic.segment(other, outputs=outputs, **options)
    with pytest.raises(MedQuantError, match="no type that"):
        logic.segment(node, outputs=OutputOptions((str(tmp_path / "o.xyz"),)), **options)
    with pytest.raises(InputError, match="several scans"):
        logic.segmentAll(model, outputs=outputs)


def test_files_are_looked_up_in_the_dicom_database_of_slicer(scene, tmp_path, monkeypatch):
    class Database:
        def fileForInstance(self, uid):
            return str(tmp_path / f"{uid}.dcm") if uid != "9" else ""

    node = mrml.volume_node(scan()[0], "scan", scene)
    monkeypatch.setattr(slicer, "dicomDatabase", Database(), raising=False)
    assert mrml.dicom_files(node) == ()
    for uid in ("1", "2"):
        (tmp_path / f"{uid}.dcm").write_bytes(b"x")
    node.SetAttribute("DICOM.instanceUIDs", "1 2")
    assert [path.rpartition("/")[2] for path in mrml.dicom_files(node)] == ["1.dcm", "2.dcm"]
    # One that is gone: no reference would be right.
    node.SetAttribute("DICOM.instanceUIDs", "1 9")
    assert mrml.dicom_files(node) == ()


def test_the_dicom_module_finds_in_our_node_what_its_export_needs(scene):
    """The coded terms of each segment as Slicer's terminology logic reads them, and the volume that the segmentation refers to."""
    import vtk

    volume, labels = scan()
    node = mrml.volume_node(volume, "scan", scene)
    node.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    segmentation = mrml.add_segmentation(labels, LABELS, node)
    reference = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    assert reference is node and reference.GetAttribute("DICOM.instanceUIDs") == "1.2.3 1.2.4"
    terminologies = slicer.modules.terminologies.logic()
    for index, label in enumerate(LABELS[:2]):
        segment = segmentation.GetSegmentation().GetNthSegment(index)
        text = vtk.mutable("")
        segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
        entry = slicer.vtkSlicerTerminologyEntry()
        assert terminologies.DeserializeTerminologyEntry(str(text), entry)
        for code, term in ((entry.GetCategoryObject(), label.terminology.category), (entry.GetTypeObject(), label.terminology.type), (entry.GetTypeModifierObject(), label.terminology.modifier)):  # fmt: skip
            if term is not None:
                assert (code.GetCodingSchemeDesignator(), code.GetCodeValue(), code.GetCodeMeaning()) == (
                    term.scheme,
                    term.value,
                    term.meaning,
                )
    # Every segment is exported as a binary label map on the reference's grid.
    binary = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    assert segmentation.GetSegmentation().GetSourceRepresentationName() == binary
