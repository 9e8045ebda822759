"""The runtime of calibration: the same numbers as ONNX Runtime's, simulated INT8 as it is written, and ONNX Runtime for the rest."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import tiny
from MedQuantINT8Lib.engines import float_session as sessions
from MedQuantINT8Lib.engines.float_session import float_session
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import EngineError
from MedQuantINT8Lib.models import onnx_graph as graph


@pytest.fixture
def network():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) * 0.2 for name, shape in (("a", (8, 1, 3, 3, 3)), ("b", (3, 8, 3, 3, 3)))}
    return tiny.convolutions(weights, {"a": rng.normal(size=8), "b": np.zeros(3)}, 12)


def patch(seed=1):
    return np.random.default_rng(seed).normal(size=(1, 1, 12, 12, 12)).astype(np.float32)


def error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_computes_what_onnx_runtime_computes(network, precision):
    model = tiny.quantized(network, 0.02) if precision == "int8" else network
    model = graph.fixed_shape(model, (12, 12, 12))
    ours, theirs = (make(model.SerializeToString(), precision) for make in (float_session, session))
    name = theirs.get_inputs()[0].name
    for seed in (1, 2):
        x = patch(seed)
        expected = theirs.run(None, {name: x})[0]
        # A value on the border of two steps may fall to either side; a real INT8 kernel, or bfloat16, would be off everywhere.
        result = ours.run(None, {name: x})[0]
        assert error(result, expected) < (2e-3 if precision == "int8" else 1e-5)
        assert (np.abs(result - expected) < 1e-4 * np.abs(expected).max()).mean() > 0.97


def test_tensors_are_given_by_name_and_stay_when_the_next_patch_is_run(network):
    pytest.importorskip("openvino")
    model = graph.fixed_shape(network, (12, 12, 12))
    inner = model.graph.node[0].output[0]
    run = float_session(graph.with_outputs(model, [inner]).SerializeToString(), "fp32")
    assert isinstance(run, sessions._OpenVINOSession)
    (first,) = run.run([inner], {model.graph.input[0].name: patch(1)})
    before = first.copy()
    (second,) = run.run([inner], {model.graph.input[0].name: patch(2)})
    assert np.array_equal(first, before) and not np.array_equal(first, second) and first.shape[1] == 8


def test_what_openvino_cannot_read_goes_to_onnx_runtime_which_says_what_is_wrong(network):
    broken = onnx.ModelProto()
    broken.CopyFrom(graph.fixed_shape(network, (12, 12, 12)))
    broken.graph.node.append(helper.make_node("Nothing", [broken.graph.output[0].name], ["more"], domain="made.up"))
    broken.opset_import.append(helper.make_opsetid("made.up", 1))
    broken.graph.output.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))
    with pytest.raises(EngineError, match="ONNX Runtime cannot run this network"):
        float_session(broken.SerializeToString(), "fp32")


def test_without_openvino_it_is_onnx_runtime(network, monkeypatch):
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda name: None)
    run = float_session(graph.fixed_shape(network, (12, 12, 12)).SerializeToString(), "fp32")
    assert type(run).__module__.startswith("onnxruntime")
