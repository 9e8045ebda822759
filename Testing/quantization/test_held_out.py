"""The agreement that is reported: of scans that the ranges do not come from, with its spread, and how many scans would be enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.engine_form import SYMMETRIC, EngineForm
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization.activation_ranges import collect_histograms, scales_from
from MedQuantINT8Lib.quantization.calibration import (
    MOST_FOLDS,
    CalibrationOptions,
    PatchSampler,
)
from MedQuantINT8Lib.quantization.fold_networks import Calibrated, fold_ratios, rescaled
from MedQuantINT8Lib.quantization.fp32_network import Fp32Network
from MedQuantINT8Lib.quantization.held_out import measure_held_out
from MedQuantINT8Lib.quantization.histogram import ActivationHistogram
from MedQuantINT8Lib.quantization.scan_spread import TOLERANCE, EnoughScans, Spread
from tiny import convolutions, quantized

SIZE, PATCH = 20, (8, 8, 8)
SPEC = replace(
    phantom_spec(),
    normalization=(),
    geometry=replace(phantom_spec().geometry, spacing=(10.0, 10.0, 10.0), orientation="native"),
    labels=(Label(1, "middle", 1), Label(2, "bright", 2)),
)


def scan(peak, seed=0):
    """Noise of 0 to 1 with a ball whose values rise to ``peak``."""
    k, j, i = np.ogrid[:SIZE, :SIZE, :SIZE]
    ball = np.clip(1 - ((k - 10) ** 2 + (j - 10) ** 2 + (i - 10) ** 2) / 80, 0, 1)
    noise = np.random.default_rng(seed).random((SIZE,) * 3)
    return Volume((peak * ball + noise).astype(np.float32), np.diag([10.0, 10, 10, 1]), f"scan {peak}")


def network():
    """Three classes by brightness: below 2, to 6, and above."""
    weight = np.zeros((3, 1, 1, 1, 1))
    weight[1:, 0, 0, 0, 0] = 1, 2
    return convolutions({"a": weight}, {"a": np.array([0, -2.0, -8.0])})


def calibrated(peaks, method="max", patches=None):
    volumes = [scan(peak, number) for number, peak in enumerate(peaks)]
    options = CalibrationOptions(method, patches or 4 * len(peaks), foreground=1.0, air=0.0)
    sampler = PatchSampler([lambda v=v: v for v in volumes], SPEC, PATCH, options)
    fp32 = network()
    tensors = list(qdq.activation_tensors(quantized(fp32)))
    histograms = collect_histograms(fp32, tensors, sampler, len(sampler), PATCH, Task())
    int8 = quantized(fp32, scales_from(histograms, options))
    return Calibrated(Fp32Network(fp32, PATCH), int8, histograms, options), sampler


def measured(*given, **how):
    found, sampler = calibrated(*given, **how)
    return measure_held_out(found, sampler, SPEC, Task())


def test_a_histogram_without_a_part_is_that_of_the_others():
    rng = np.random.default_rng(0)
    parts = {
        name: [rng.normal(scale=s, size=500).astype(np.float32) for s in (1, size)]
        for name, size in (("a", 1), ("b", 20), ("c", 3))
    }
    whole = ActivationHistogram()
    for name, arrays in parts.items():
        for values in arrays:
            whole.add(values)
            whole.close_part(name)
    for left in parts:
        rest = whole.without(left)
        values = np.concatenate([v for name, arrays in parts.items() if name != left for v in arrays])
        assert rest.maximum == np.abs(values).max() and rest.counts.sum() == values.size and (rest.counts >= 0).all()
        index = np.minimum(
            (np.abs(values) * np.float32(rest.counts.size / rest.limit)).astype(int), rest.counts.size - 1
        )
        expected = np.bincount(index, minlength=rest.counts.size)
        # A value that lay on a border when the bins were narrow may lie beside it.
        assert np.abs(rest.counts - expected).sum() <= 4


def test_ranges_without_a_scan_are_those_of_the_others():
    found, sampler = calibrated((10, 20, 15))
    scales = scales_from(found.histograms, found.options)
    for left in range(3):
        ratios = fold_ratios(found.histograms, sampler.fold(left), found.options)
        largest = max(float(np.abs(patch).max()) for index, patch in sampler.by_volume() if index != left)
        assert ratios["x"] * scales["x"] * 127 == pytest.approx(largest, rel=1e-6)
        model = graph.Graph(rescaled(found.int8, ratios))
        (quantize,) = (node for node in model.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "x")
        pair = [quantize, *model.readers[quantize.output[0]]]
        assert len(pair) == 2 and all(
            model.array(node.input[1]) == pytest.approx(largest / 127, rel=1e-5) for node in pair
        )


def test_constants_that_are_nodes_are_no_tensors_to_rescale():
    """An exporter may write constants as nodes, which have no inputs."""
    found, _ = calibrated((10, 20))
    constant = helper.make_node("Constant", [], ["never_read"], value_float=1.0)
    found.int8.graph.node.insert(0, constant)
    assert "x_fold_scale" in {tensor.name for tensor in rescaled(found.int8, {"x": 0.5}).graph.initializer}


def test_a_scan_beyond_the_others_ranges_loses_when_it_is_held_out_and_only_then():
    """Two scans of one kind and one that is far brighter: its brightest structure is cut off by the others' ranges."""
    found = measured((5, 5, 40))
    dim, bright = found.scans[0], found.scans[2]
    assert found.held_out and found.given == 3 and found.calibrated == 2
    assert dim.own_ranges is not None and bright.own_ranges > 0.95
    assert bright.agreement < bright.own_ranges - 0.02
    assert found.agreement == pytest.approx(np.mean([scan.agreement for scan in found.scans]))
    assert (found.enough.excess > 0.006 and found.enough.scans is None) or found.enough.scans > 3
    assert "more than 200 scans" in found.lines()[-1] or "scans would be enough" in found.lines()[-1]
    assert found.warning(0.99999) and not found.warning(0.0)


def test_scans_of_one_kind_are_enough():
    found = measured((12, 12.1, 12.05, 12))
    assert found.enough.excess < 0.01 and found.spread.deviation < 0.01
    assert 0 <= found.spread.next_low <= found.spread.lowest <= found.agreement <= 1
    value = found.to_json()
    assert value["held_out"] and len(value["scans"]) == 4 and value["lines"] == found.lines()
    assert value["scans"][0]["scan"] == "volume 0" and value["spread"]["mean"] == value["agreement"]


def test_with_one_scan_it_is_said_that_the_figure_is_of_that_scan():
    for peaks in ((12,), (12, 12)):
        found, sampler = calibrated(peaks)
        if len(peaks) == 2:
            # The same scan given twice holds nothing out.
            sampler = PatchSampler([lambda: scan(12)] * 2, SPEC, PATCH, found.options)
            list(sampler)
        result = measure_held_out(found, sampler, SPEC, Task())
        assert not result.held_out and result.given == 1 and result.enough is None and len(result.scans) == 1
        assert len(result.lines()) == 1 and "of the calibration scan itself" in result.lines()[0]
        assert result.warning(1.0) == ""


def test_many_scans_are_held_out_in_groups():
    found, sampler = calibrated([10 + n / 10 for n in range(14)], patches=14)
    assert {sampler.fold(n) for n in range(14)} == set(range(MOST_FOLDS))
    result = measure_held_out(found, sampler, SPEC, Task())
    assert len(result.scans) == 12 and result.calibrated == 14 - 3 and result.given == 14


def test_scans_that_gave_no_patch_are_held_out_as_they_are():
    found, sampler = calibrated((10, 11, 12, 13), patches=2)
    assert [sampler.fold(n) for n in range(4)] == [0, 1, None, None]
    result = measure_held_out(found, sampler, SPEC, Task())
    assert [scan.own_ranges is None for scan in result.scans] == [False, False, True, True]
    assert result.agreement is not None


def test_where_nothing_is_found_there_is_no_figure():
    found, sampler = calibrated((0.5, 0.4))
    result = measure_held_out(found, sampler, SPEC, Task())
    assert result.agreement is None and result.spread is None and result.lines() == [] and result.enough is None
    assert result.to_json()["agreement"] is None


@pytest.mark.parametrize("calibrated_on", [1, 2, 4, 9])
def test_the_estimate_finds_the_number_of_scans_where_the_law_holds(calibrated_on):
    """Where what is lost falls as 0.02 / (n + 1), 19 scans bring it to 0.001."""
    own = np.array([0.995, 0.993, 0.997])
    found = EnoughScans.of(own, own - 0.02 / (calibrated_on + 1), calibrated_on)
    assert found.scans == 19 and found.at_most == 19 and found.expected == pytest.approx(0.995 - TOLERANCE)
    assert EnoughScans.of(own, own, calibrated_on).scans == 1
    assert EnoughScans.of(own, own - 0.5, calibrated_on).scans is None


def test_the_estimate_holds_for_scans_whose_peaks_come_in_no_order():
    """A loss of 0.05 wherever a scan goes beyond all others: the estimate from six scans finds the number that makes it 0.001."""
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(200):
        peaks = rng.exponential(size=6)
        lost = [0.05 * (peaks[n] > np.delete(peaks, n).max()) for n in range(6)]
        estimates.append(EnoughScans.of(np.ones(6), 1 - np.array(lost), 5).scans)
    needed = 0.05 / TOLERANCE - 1
    assert np.mean(estimates) == pytest.approx(needed, rel=0.1)


def test_the_spread_is_students():
    found = Spread.of([0.98, 0.99, 1.0])
    assert found.mean == pytest.approx(0.99) and found.deviation == pytest.approx(0.01)
    assert found.low == pytest.approx(0.99 - 4.303 * 0.01 / np.sqrt(3), abs=1e-4) and found.high == 1.0
    assert found.next_low == pytest.approx(0.99 - 4.303 * 0.01 * np.sqrt(4 / 3), abs=1e-4)
    assert Spread.of([0.9]).deviation is None and Spread.of([0.9, 0.95]).next_low is None


def test_the_figure_is_of_the_form_that_the_engine_computes():
    """What is quantized has no negative values: the steps of an engine with zero points are half as wide."""
    found, sampler = calibrated([5, 6, 7])
    graph_of = found.int8.graph
    for node in [n for n in graph_of.node if n.op_type == "QuantizeLinear"]:
        relu = helper.make_node("Relu", [node.input[0]], ["positive"], name="positive")
        position = list(graph_of.node).index(node)
        graph_of.node.insert(position, relu)
        graph_of.node[position + 1].input[0] = "positive"
    found = replace(found, histograms=dict(zip(["positive"], found.histograms.values(), strict=True)))
    symmetric, zero_points = (
        measure_held_out(replace(found, form=form), sampler, SPEC, Task()) for form in (SYMMETRIC, EngineForm(True))
    )
    assert zero_points.held_out and zero_points.agreement > symmetric.agreement
