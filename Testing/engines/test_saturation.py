"""Processors without VNNI: weights of 7 bits, where they are taken, and what is said; VNNI is hidden from oneDNN to see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.engines import BuildOptions, preparation, saturation
from MedQuantINT8Lib.engines.preparation import prepare
from MedQuantINT8Lib.errors import EngineError
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.seven_bit_weights import with_seven_bit_weights
from places import LIBRARY
from tiny import TinyBackend, convolutions, package, quantized, random_weights


def stored_weights(model):
    """Weight and scale of each quantized layer as they are stored, and its name."""
    found = graph.Graph(model)
    parts = {}
    for node in found.nodes:
        if node.op_type == "Conv":
            dequantize = found.producer[node.input[1]]
            parts[node.name] = tuple(found.array(name) for name in dequantize.input[:2])
    return parts


def test_seven_bit_weights_are_half_as_large_and_keep_each_channels_sum():
    weights, biases = random_weights((1, 16, 16, 3), side=3)
    int8 = quantized(convolutions(weights, biases))
    halved = with_seven_bit_weights(int8)
    onnx.checker.check_model(halved)
    for layer, (weight, scale) in stored_weights(int8).items():
        smaller, doubled = stored_weights(halved)[layer]
        assert np.abs(smaller).max() <= 64 and np.abs(weight).max() == 127
        assert np.array_equal(doubled, 2 * scale) and smaller.dtype == np.int8
        error = 2 * smaller.astype(int) - weight
        assert np.abs(error).max() == 1 and not error[weight % 2 == 0].any()
        assert np.abs(error.reshape(len(error), -1).sum(axis=1)).max() <= 1, "odd weights go up and down in turn"


def test_layers_in_float_keep_eight_bits_though_the_weight_is_shared(tmp_path):
    same = np.random.default_rng(0).normal(size=(4, 4, 1, 1, 1))
    int8 = qdq.compacted(quantized(convolutions({"a": same, "b": same, "c": same}, {})))
    onnx.save(int8, str(tmp_path / "network.onnx"))
    made = qdq.network_for(tmp_path / "network.onnx", "int8", ["b"], weight_bits=7)
    largest = {layer: int(np.abs(weight).max()) for layer, (weight, _) in stored_weights(made).items()}
    assert largest == {"a": 64, "b": 127, "c": 64}
    assert stored_weights(qdq.network_for(tmp_path / "network.onnx", "int8", [], 8))["a"][0].max() == 127


def test_matrix_products_are_halved_along_their_output():
    weight = np.arange(-127, 128, 5, dtype=np.int8)[:48].reshape(8, 6)
    constants = {
        "w": weight,
        "ws": np.ones(6, np.float32),
        "wz": np.zeros(6, np.int8),
        "s": np.float32(0.1),
        "z": np.int8(0),
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        onnx.helper.make_node("MatMul", ["d", "wd"], ["y"], name="m"),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, n]) for name, n in (("x", 8), ("y", 6))
    ]
    arrays = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "product", ends[:1], ends[1:], arrays),
        opset_imports=[onnx.helper.make_opsetid("", 19)],
        ir_version=9,
    )
    made = with_seven_bit_weights(model)
    onnx.checker.check_model(made)
    found = graph.Graph(made)
    halved = found.array(found.producer[next(n for n in found.nodes if n.name == "m").input[1]].input[0])
    error = 2 * halved.astype(int) - weight
    assert np.abs(halved).max() <= 64 and np.abs(error).max() == 1 and np.abs(error.sum(axis=0)).max() <= 1


@pytest.mark.parametrize(
    ("flags", "environment", "probed"),
    [
        (["avx2", "avx512f", "avx512_vnni"], {}, False),
        (["avx2", "amx_int8"], {}, False),
        (["avx2", "avx512_vnni"], {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, True),
        (["avx2", "avx_vnni"], {}, True),
        (["avx2"], {}, True),
        ([], {}, True),
    ],
)
def test_a_layer_is_probed_where_the_flags_do_not_tell(monkeypatch, flags, environment, probed):
    calls = []
    for name in saturation._LIMITS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(saturation, "cpu_features", lambda: flags)
    monkeypatch.setattr(saturation, "_saturates", lambda openvino: calls.append(openvino) or True)
    assert saturation.weight_bits(lambda: object()) == (7 if probed else 8)
    assert bool(calls) == probed


HIDDEN = """
import json, sys
from pathlib import Path
import numpy as np
from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.onnxruntime import OnnxRuntimeBackend
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
found, patch = {"bits": OpenVINOBackend().weight_bits()}, np.load(sys.argv[2])
for bits in (8, 7):
    options = BuildOptions("int8", patch.shape[2:], weight_bits=bits)
    engines = []
    for backend in (OpenVINOBackend(), OnnxRuntimeBackend()):
        folder = Path(sys.argv[3]) / f"{backend.name}{bits}"
        folder.mkdir()
        backend.build(Path(sys.argv[1]), folder, options)
        engines.append(backend.load(folder, options))
    real, simulated = (np.array(engine.infer(patch)) for engine in engines)
    found[str(bits)] = float(np.linalg.norm(real - simulated) / np.linalg.norm(simulated))
    layers = engines[0].describe().layers
    found[f"int8 layers {bits}"] = sum(layer.int8 for layer in layers)
    found[f"said {bits}"] = sum("7-bit weights" in layer.kernel for layer in layers)
print(json.dumps(found))
"""


def in_a_process(network: Path, patch: Path, folder: Path, isa: str) -> dict:
    environment = {
        **os.environ,
        "PYTHONPATH": str(LIBRARY),
        "ONEDNN_MAX_CPU_ISA": isa,
    }
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, str(network), str(patch), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_without_vnni_seven_bits_are_as_near_to_their_simulation_as_eight_with_it(tmp_path):
    weights, biases = random_weights((1, 32, 32, 3), side=3)
    # Large weights of one sign on large activations: sums of two products pass 16 bits.
    weights = {name: np.random.default_rng(2).uniform(0.5, 1, weight.shape) for name, weight in weights.items()}
    int8 = quantized(convolutions(weights, biases), {"x": 0.03, "a_relu": 0.15, "b_relu": 100.0})
    onnx.save(int8, str(tmp_path / "network.onnx"))
    patch = np.abs(np.random.default_rng(1).normal(size=(1, 1, 8, 8, 8))).astype(np.float32)
    np.save(tmp_path / "patch.npy", patch)
    found = in_a_process(tmp_path / "network.onnx", tmp_path / "patch.npy", tmp_path, "AVX512_CORE")
    if found["bits"] == 8:
        pytest.skip("this processor's kernels do not saturate without VNNI")
    assert found["bits"] == 7 and found["8"] > 0.05 and found["7"] < 0.005
    assert found["int8 layers 7"] == found["int8 layers 8"] == found["said 7"] > 0 == found["said 8"]


class SevenBits(TinyBackend):
    def weight_bits(self):
        return 7


def test_the_engine_and_its_simulation_have_the_same_weights_and_the_note_says_so(tmp_path):
    with package(tmp_path) as made:
        patches = [np.random.default_rng(0).random((1, 8, 8, 8)).astype(np.float32)]
        first = prepare(made, SevenBits(), BuildOptions("int8", (8, 8, 8)), patches)
        again = prepare(made, SevenBits(), BuildOptions("int8", (8, 8, 8)), patches)
        other = prepare(made, TinyBackend(), BuildOptions("int8", (8, 8, 8)), patches)
        exact = prepare(made, SevenBits(), BuildOptions("fp32", (8, 8, 8)), patches)
    assert first.options.weight_bits == 7 and first.fidelity.relative_error == 0
    assert again.cached and first.note == again.note == saturation.SEVEN_BIT_NOTE
    assert other.options.weight_bits == exact.options.weight_bits == 8
    assert not other.cached and not other.note and not exact.note


class Drifting(TinyBackend):
    """Adds a small error for each layer that runs in INT8, and ``always`` one more."""

    name, each, always = "drifting", 0.015, 0.0

    def load(self, folder, options):
        engine = super().load(folder, options)
        exact = engine.infer
        names = {"a", "b", "c"} - set(options.high_precision)

        def infer(batch):
            output = exact(batch)
            if options.precision != "int8":
                return output
            # The same for every voxel and channel, so that labels stay.
            size = np.linalg.norm(output) / np.sqrt(output.size)
            return output + np.float32((self.each * len(names) + self.always) * size)

        engine.infer = infer
        return engine


@pytest.fixture
def three_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    weights, biases = random_weights((1, 4, 4, 2))
    fp32 = convolutions(weights, biases)
    patch = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    reach = {"x": float(np.abs(patch).max() / 127), "a_relu": 0.0076, "b_relu": 0.0094}
    with package(tmp_path, fp32, quantized(fp32, reach)) as made:
        yield made, [patch]


def test_faults_that_are_small_one_by_one_are_searched_for_on(three_layers, monkeypatch):
    made, patches = three_layers
    with (
        monkeypatch.context() as once,
        pytest.raises(EngineError, match="each of its layers agrees .* when it is alone"),
    ):
        once.setattr(preparation, "SEARCHED_SHARES", (1.0,))
        prepare(made, Drifting(), BuildOptions("int8", (8, 8, 8)), patches)
    prepared = prepare(made, Drifting(), BuildOptions("int8", (8, 8, 8)), patches)
    assert set(prepared.fallback) == {"a", "b", "c"} and prepared.fidelity.trusted


def test_what_was_tried_is_said(three_layers, monkeypatch):
    made, patches = three_layers
    monkeypatch.setattr(Drifting, "always", 0.5)
    with pytest.raises(EngineError) as caught:
        prepare(made, Drifting(), BuildOptions("int8", (8, 8, 8)), patches)
    assert "and still by 0.5 with 3 layer(s) in high precision (a, b, c)" in str(caught.value)
    assert "no layer could be made responsible" not in str(caught.value)
