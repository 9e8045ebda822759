"""Measurements of structures, compared with SimpleITK's label intensity statistics."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.measurements import PERCENTILES, Measurement, columns, measure, rows, statistics_text
from MedQuantINT8Lib.imaging.volume import LPS_FROM_RAS, Volume, to_sitk
from MedQuantINT8Lib.models.spec import Label

_TURNED = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
LABELS = (Label(3, "liver", 1), Label(1, "spleen", 2), Label(400, "dot", 3), Label(7, "not found", 4))


def scan(dtype=np.int16, channels=1):
    rng = np.random.default_rng(0)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = _TURNED * [0.7, 0.9, 2.5], [-80, 12, 33]
    data = (rng.normal(60, 30, (channels, 10, 12, 14))).astype(dtype)
    labels = np.zeros((10, 12, 14), np.uint16)
    labels[2:6, 3:9, 1:12] = 3
    labels[4:9, 5:7, 9:14] = 1
    labels[0, 11, 13] = 400
    labels[9, 0, 0] = 77
    return Volume(data, matrix, "scan"), labels


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_they_are_those_of_simpleitk(dtype):
    volume, labels = scan(dtype)
    statistics = sitk.LabelIntensityStatisticsImageFilter()
    statistics.Execute(to_sitk(labels, volume.grid), to_sitk(volume.data[0].astype(np.float64), volume.grid))
    for item in measure(volume, labels, LABELS)[:3]:
        value, (intensity,) = item.value, item.intensities
        assert item.voxels == statistics.GetNumberOfPixels(value)
        assert item.ml == pytest.approx(statistics.GetPhysicalSize(value) / 1000, rel=1e-6)
        assert item.centroid_lps == pytest.approx(statistics.GetCentroid(value), abs=1e-4)
        start, size = np.split(np.array(statistics.GetBoundingBox(value)), 2)
        assert item.box_ijk == (*start, *(start + size - 1))
        assert intensity.mean == pytest.approx(statistics.GetMean(value), rel=1e-6)
        assert intensity.minimum == pytest.approx(statistics.GetMinimum(value), rel=1e-6)
        assert intensity.maximum == pytest.approx(statistics.GetMaximum(value), rel=1e-6)
        if item.voxels > 1:
            assert intensity.standard_deviation == pytest.approx(statistics.GetStandardDeviation(value), rel=1e-5)
        inside = volume.data[0][labels == value]
        assert intensity.percentiles == pytest.approx(np.percentile(inside, PERCENTILES), rel=1e-6)
        # ITK takes the median from a histogram of 128 bins.
        if item.voxels > 1:
            bin_width = (intensity.maximum - intensity.minimum) / 128
            assert abs(intensity.percentiles[PERCENTILES.index(50)] - statistics.GetMedian(value)) <= 2 * bin_width + 1


def test_a_structure_that_was_not_found_has_no_voxels_and_no_place():
    volume, labels = scan()
    missing = measure(volume, labels, LABELS)[3]
    assert (missing.voxels, missing.ml, missing.centroid_lps, missing.box_ijk, missing.intensities) == (
        0,
        0,
        None,
        None,
        (),
    )
    (nothing,) = measure(volume, np.zeros_like(labels), LABELS[:1])
    assert nothing.voxels == 0
    text = statistics_text(".csv", [missing], {})
    assert text.splitlines()[1].startswith("7,not found,0,0,,,")


def test_the_centroid_is_a_place_in_the_patient_and_one_voxel_has_no_spread():
    volume, labels = scan()
    dot = measure(volume, labels, LABELS)[2]
    assert dot.centroid_lps == pytest.approx((LPS_FROM_RAS @ volume.ijk_to_ras @ [13, 11, 0, 1])[:3])
    assert dot.intensities[0].standard_deviation == 0 and dot.box_ijk == (13, 11, 0, 13, 11, 0)


def test_both_files_say_the_same_and_every_channel_has_its_columns():
    volume, labels = scan(channels=2)
    names = (Label(3, 'liver, "left" lobe', 1), *LABELS[1:])
    measurements = measure(volume, labels, names, ("T1", "T2"))
    table = list(csv.DictReader(io.StringIO(statistics_text(".csv", measurements, {}))))
    value = json.loads(statistics_text(".json", measurements, {"scan": "s"}))
    assert value["scan"] == "s" and [Measurement.from_json(item) for item in value["structures"]] == measurements
    for row, item in zip(table, measurements, strict=True):
        assert row["name"] == item.name and int(row["voxels"]) == item.voxels
        if item.voxels:
            assert float(row["mean (T2)"]) == pytest.approx(item.intensities[1].mean)
            assert float(row["percentile_50 (T1)"]) == item.intensities[0].percentiles[2]
            assert float(row["centroid_z_lps_mm"]) == pytest.approx(item.centroid_lps[2])
    assert "surface_mm2" not in columns(measurements)
    assert len({len(row) for row in rows(measurements)} | {len(columns(measurements))}) == 1


def test_a_segmentation_of_another_scan_is_refused():
    volume, labels = scan()
    with pytest.raises(InputError, match="Give the scan that was segmented"):
        measure(volume, labels[1:], LABELS)
