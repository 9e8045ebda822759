"""Regions where two segmentations differ, memory told before a run, and what undo keeps."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.evaluation.agreement import StructureAgreement
from MedQuantINT8Lib.evaluation.boundary import REGION_COLUMNS, structure_json
from MedQuantINT8Lib.evaluation.differences import MOST_REGIONS, find_differences
from MedQuantINT8Lib.imaging.volume import Grid
from MedQuantINT8Lib.inference import memory_estimate as memory
from MedQuantINT8Lib.inference.activation_sizes import activation_bytes
from MedQuantINT8Lib.inference.margins import ONE, MarginSink
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.models.spec import Label

LABELS = (Label(1, "liver", 1), Label(2, "spleen", 2))


def ball():
    k, j, i = np.ogrid[:40, :48, :56]
    return ((k - 20) ** 2 + (j - 24) ** 2 + (i - 28) ** 2 < 14**2).astype(np.uint8)


def test_regions_are_numbered_from_the_largest_with_where_and_what(geometry):
    first = ball()
    second = first.copy()
    second[20, 24, 26:31] = 2
    second[2, 2, 2] = 1
    second[20, 24, 41] = 0
    grid = Grid((56, 48, 40), geometry)
    found = find_differences(first, second, LABELS, grid)
    assert found.voxels == 7 and found.region_count == 3 and np.array_equal(found.numbers > 0, first != second)
    assert found.ml == pytest.approx(7 * grid.voxel_ml)
    deep, *others = found.regions
    assert (
        (deep.voxels, deep.first, deep.second) == (5, "liver", "spleen")
        and deep.depth_voxels == 8
        and deep.boundary_share == 0
    )
    voxel = np.linalg.inv(geometry) @ [*deep.center_ras, 1]
    assert np.allclose(voxel[[2, 1]], [20, 24]) and 26 <= round(voxel[0]) <= 30
    far, rim = sorted(others, key=lambda region: region.boundary_share)
    assert far.first == "background" and far.second == "liver" and far.boundary_share == 0
    assert rim.boundary_share == 1 and rim.depth_voxels == 0
    assert found.boundary_share == pytest.approx(1 / 7)


def test_depth_is_the_chessboard_distance_to_a_boundary():
    from scipy.ndimage import distance_transform_cdt

    first = ball()
    edge = np.zeros(first.shape, bool)
    for axis in range(3):
        step = np.diff(first.astype(int), axis=axis) != 0
        low, high = [[slice(None)] * 3 for _ in range(2)]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        edge[tuple(low)] |= step
        edge[tuple(high)] |= step
    expected = np.minimum(distance_transform_cdt(~edge, "chessboard"), 9)
    second = first.copy()
    rng = np.random.default_rng(0)
    for k, j, i in rng.integers(1, 38, (40, 3)):
        second[k, j, i] = 2
    found = find_differences(first, second, LABELS, Grid((56, 48, 40), np.eye(4)))
    for region in found.regions:
        assert region.depth_voxels == expected[found.numbers == region.number].max()


def test_no_difference_and_more_regions_than_are_named():
    first = np.zeros((32, 32, 32), np.uint8)
    grid = Grid((32, 32, 32), np.eye(4))
    none = find_differences(first, first, LABELS, grid)
    assert (
        none.voxels == 0 and none.boundary_share is None and not none.numbers.any() and none.to_json()["regions"] == []
    )
    second = first.copy()
    second[::3, ::3, ::3] = 1
    many = find_differences(first, second, LABELS, grid)
    assert many.region_count == 11**3 and len(many.regions) == MOST_REGIONS
    assert many.numbers.max() == MOST_REGIONS + 1 and int((many.numbers > 0).sum()) == many.voxels


def test_memory_is_told_from_sizes_alone(int8_package, phantom):
    options = SegmentationOptions()
    small = memory.estimate(int8_package, "int8", phantom[0], options)
    several = memory.estimate(int8_package, "int8", phantom[0], SegmentationOptions(batch=4))
    assert several.engine - small.engine == 3 * (small.engine - 2 * int8_package.onnx_path("int8").stat().st_size)
    # The first level of the demo network: 8 to 16 channels of 64^3 single values are alive at once.
    floats = activation_bytes(int8_package, "fp32", (64, 64, 64)) / 64**3 / 4
    assert 8 <= floats <= 80
    assert "GB" in small.in_words() and small.volume + small.engine + small.blending == small.total


def test_what_does_not_fit_is_made_smaller_or_refused(int8_package, phantom, monkeypatch):
    options = SegmentationOptions(batch=8)
    needed = memory.estimate(int8_package, "int8", phantom[0], options)
    monkeypatch.setattr(memory, "available_memory", lambda: needed.total * 4)
    assert memory.fitted(int8_package, "int8", phantom[0], options) == (options, [])
    one = memory.estimate(int8_package, "int8", phantom[0], SegmentationOptions())
    monkeypatch.setattr(memory, "available_memory", lambda: int(one.total * 2.05))
    changed, notes = memory.fitted(int8_package, "int8", phantom[0], options)
    assert changed.batch == 1 and "one window at a time" in notes[0]
    monkeypatch.setattr(memory, "available_memory", lambda: 10 << 20)
    with pytest.raises(InputError, match=r"needs about .* GB .*but only 0\.0 GB"):
        memory.fitted(int8_package, "int8", phantom[0], SegmentationOptions())
    with pytest.raises(InputError, match="needs about"):
        from MedQuantINT8Lib.inference import pipeline
        from MedQuantINT8Lib.inference.engine_choice import EngineChoice
        from MedQuantINT8Lib.progress import Task

        pipeline.segment(int8_package, phantom[0], EngineChoice("openvino", "int8"), SegmentationOptions(), Task())


# ---- margins and the boundary report


def test_margins_are_those_of_the_softmax():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (5, 7, 6, 4)).astype(np.float32)
    share = np.exp(scores) / np.exp(scores).sum(0)
    two = np.sort(share, axis=0)[-2:]
    kept = []
    sink = MarginSink(lambda start, block: kept.append((start, block)), (9, 8, 4), "softmax")
    sink((2, 1, 0), scores)
    assert kept[0][0] == (2, 1, 0) and kept[0][1] is scores
    assert (
        np.abs(sink.margins[2:9, 1:7] / ONE - (two[1] - two[0])).max() <= 0.5 / ONE + 1e-6
        and not sink.margins[:2].any()
    )
    given = MarginSink(lambda start, block: None, (7, 6, 4), None)
    given((0, 0, 0), share)
    assert np.abs(given.margins.astype(int) - sink.margins[2:9, 1:7]).max() <= 1
    regions = MarginSink(lambda start, block: None, (7, 6, 4), None, (0.4,) * 5)
    regions((0, 0, 0), share)
    assert np.allclose(regions.margins / ONE, np.abs(share - 0.4).min(0) / 0.6, atol=0.5 / ONE + 1e-6)


def test_a_region_has_the_margin_of_its_voxels():
    first = ball()
    second, margins = first.copy(), np.full(first.shape, 255, np.uint8)
    second[20, 24, 26:30] = 2
    margins[20, 24, 26:30] = [0, 51, 102, 51]
    found = find_differences(first, second, LABELS, Grid((56, 48, 40), np.eye(4)), margins)
    assert found.regions[0].mean_margin == pytest.approx(0.2) and found.mean_margin == pytest.approx(0.2)
    assert find_differences(first, second, LABELS, Grid((56, 48, 40), np.eye(4))).mean_margin is None


@pytest.mark.parametrize(
    ("fp32", "int8", "percent", "pointed_out"),
    [(10, 10.4, 4, False), (10, 9.4, -6, True), (0, 1, None, True), (0, 0, None, False)],
)
def test_structures_that_change_too_much_are_pointed_out(fp32, int8, percent, pointed_out):
    found = structure_json(StructureAgreement(1, "liver", 0.9, int8, fp32), 5)
    assert found["pointed_out"] is pointed_out and found["change_percent"] == (
        None if percent is None else pytest.approx(percent)
    )


@pytest.mark.slow
def test_the_command_writes_regions_table_and_page(int8_package, phantom_file, tmp_path, capsys):
    import csv
    import json

    import SimpleITK as sitk

    from MedQuantINT8Lib.cli.main import main

    folder = tmp_path / "out"
    arguments = [
        "differences",
        str(int8_package.folder),
        str(phantom_file),
        "--output",
        str(folder),
        "--engine",
        "openvino",
        "--volume-change",
        "0",
    ]
    assert main([*arguments, "--quiet"]) == 0
    out = capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    found = report["differences"]
    assert "mean Dice of INT8 with FP32: 0.9" in out and found["voxels"] > 0 and 0 < found["mean_margin"] < 0.7
    # What INT8 changed is what FP32 was unsure of, on the surface of structures.
    assert found["boundary_share"] > 0.8
    changed = [s for s in report["structures"] if s["ml"] != s["other_ml"]]
    assert changed and report["pointed_out"] == [s["name"] for s in changed] and "change their volume" in out
    rows = list(csv.reader((folder / "regions.csv").read_text().splitlines()))
    assert rows[0] == list(REGION_COLUMNS) and len(rows) == min(found["region_count"], MOST_REGIONS) + 1
    assert 0.8 * found["voxels"] < sum(int(row[1]) for row in rows[1:]) <= found["voxels"]
    segments = sitk.ReadImage(str(folder / "differences.seg.nrrd"))
    assert (
        np.count_nonzero(sitk.GetArrayFromImage(segments)) == found["voxels"]
        and segments.GetSize() == sitk.ReadImage(str(phantom_file)).GetSize()
    )
    text = (folder / "report.html").read_text()
    assert "change their volume by more than 0 %" in text and "mean margin" in text
    assert main([*arguments[:3], "--output", str(phantom_file)]) == 2 and "is a file" in capsys.readouterr().err
