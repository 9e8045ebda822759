"""The network's input in two INT8 halves: where it costs little, for scans that go beyond calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.halves import halved_layers
from MedQuantINT8Lib.models.spec import Label, Normalization
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization.accuracy_guard import Budget, Candidate, guard
from MedQuantINT8Lib.quantization.input_halves import MOST_WORK, wanted_error, with_input_halves
from tiny import convolutions, quantized, random_weights, run

SHAPE = (8, 8, 8)
RAW = replace(phantom_spec(), labels=(Label(1, "bright", 1),), normalization=(Normalization("zscore"),))
BOUNDED = replace(RAW, normalization=(Normalization("minmax"),))


def patch(seed=0):
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


def networks(widths=(1, 8, 64, 8, 2)):
    """FP32, INT8 whose ranges are those of a patch, and these ranges; the first layer is 8 of 1,096 multiplications."""
    fp32 = convolutions(*random_weights(widths))
    ranges = {"x": float(np.abs(patch()).max()), "a_relu": 12.0, "b_relu": 60.0, "c_relu": 300.0}
    return fp32, quantized(fp32, {name: value / 127 for name, value in ranges.items()}), ranges


def error(model, fp32, given):
    expected = run(fp32, given)
    return np.linalg.norm(run(model, given) - expected) / np.linalg.norm(expected)


def test_a_scan_that_goes_beyond_calibration_is_not_clipped():
    fp32, int8, ranges = networks()
    made, layers = with_input_halves(int8, ranges, SHAPE)
    assert layers == ["a"] and set(halved_layers(graph.Graph(made))) == {"a"} and qdq.check_int8(made) == []
    bright = patch(1)
    bright[0, :4] *= 3
    assert error(made, fp32, bright) < 0.5 * error(int8, fp32, bright)
    assert error(made, fp32, patch()) < 1.02 * error(int8, fp32, patch())


def test_layers_of_much_work_are_left_and_so_is_an_input_in_halves_already():
    fp32, int8, ranges = networks((1, 8, 2))
    assert with_input_halves(int8, ranges, SHAPE) == (int8, []) and MOST_WORK < 8 / 24
    _, int8, ranges = networks()
    made, _ = with_input_halves(int8, ranges, SHAPE)
    assert with_input_halves(made, ranges, SHAPE) == (made, [])
    assert with_input_halves(int8, {}, SHAPE) == (int8, []), "of an unknown range"
    in_float = qdq.without_quantization(int8, {"a"}, fp32)
    assert with_input_halves(in_float, ranges, SHAPE) == (in_float, [])


@pytest.mark.parametrize(("spec", "wanted"), [(RAW, 1.05), (BOUNDED, 0.95)])
def test_behind_a_normalization_with_bounds_halves_have_to_pay_for_themselves(spec, wanted):
    assert wanted_error(spec, 1.0) == pytest.approx(wanted)


@pytest.mark.parametrize(("spec", "fallback", "halves"), [(RAW, True, ["a"]), (RAW, False, [])])
def test_the_guard_takes_the_input_in_halves_and_says_so(spec, fallback, halves):
    fp32, int8, ranges = networks()
    candidate = Candidate(fp32, int8, None, ranges)
    made, result = guard(candidate, [patch()], spec, Budget(0.5, fallback=fallback), Task())
    assert list(result.halves) == halves == list(halved_layers(graph.Graph(made))) and not result.returned
    assert all("beyond calibration" in why for why in result.halves.values())
