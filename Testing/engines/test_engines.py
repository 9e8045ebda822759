"""Engines: cache, what really ran in INT8, comparison with the simulation, fallback."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from MedQuantINT8Lib.engines import BuildOptions, backend, backend_names, base, cache, choose_backend, register
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.engines.preparation import engine_key, prepare
from MedQuantINT8Lib.errors import EngineError, PackageError, StorageError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.layers import weighted_layers
from MedQuantINT8Lib.models.package import INT8
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.system import library_environment
from places import LIBRARY

#: Smaller than the demo network's windows, and of the same multiples.
PATCH = (32, 64, 64)
#: The engines that can run here; TensorRT has tests of its own.
HERE = [name for name in backend_names() if not backend(name).unavailable()]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.fixture(scope="session")
def patches(phantom):
    data = preprocess(phantom[0], phantom_spec()).data
    return [np.ascontiguousarray(data[:, 32:64, 32:96, 48:112]), np.ascontiguousarray(data[:, :32, :64, :64])]


@pytest.mark.parametrize("name", HERE)
def test_fp32_engines_equal_the_network(name, fp32_package, patches):
    from MedQuantINT8Lib.engines.onnxruntime import session

    made = prepare(fp32_package, backend(name), BuildOptions("fp32", PATCH))
    network = graph.fixed_shape(graph.load_network(fp32_package.onnx_path("fp32")), PATCH)
    expected = session(network.SerializeToString(), "fp32").run(None, {"image": patches[0][None]})[0]
    assert np.linalg.norm(made.engine.infer(patches[0][None]) - expected) / np.linalg.norm(expected) < 1e-4
    assert made.describe().verdict == "not INT8"


def test_openvino_runs_int8_and_says_so_layer_by_layer(int8_package, patches):
    made = prepare(int8_package, backend("openvino"), BuildOptions("int8", PATCH), patches)
    description = made.describe()
    assert description.verdict == "INT8" and description.int8_mac_share == 1.0
    # It is asked for at every scan.
    assert made.describe() is description
    assert description.to_json()["layers"][0] == asdict(description.layers[0])
    convolutions = [layer for layer in description.layers if layer.kind == "Convolution"]
    assert all(layer.int8 and "I8" in layer.kernel for layer in convolutions)
    deconvolutions = [layer for layer in description.layers if layer.kind == "Deconvolution"]
    assert len(deconvolutions) == 4 and all(layer.int8 for layer in deconvolutions)
    # The engine's own count of the work is that of the graph.
    expected = sum(
        layer.macs
        for layer in weighted_layers(graph.fixed_shape(graph.load_network(int8_package.onnx_path("int8")), PATCH))
    )
    assert sum(layer.macs for layer in description.layers) == pytest.approx(expected, rel=1e-6)


def test_onnx_runtime_never_calls_its_simulation_int8(int8_package, patches):
    made = prepare(int8_package, backend("onnxruntime"), BuildOptions("int8", PATCH), patches)
    assert made.describe().verdict == "not INT8" and "simulated" in made.describe().layers[0].precision


def test_real_int8_is_compared_with_the_simulation_once(int8_package, patches, own_cache):
    options = BuildOptions("int8", PATCH)
    blind = prepare(int8_package, backend("openvino"), options)
    assert blind.fidelity is None and "no scan" in blind.note and not blind.cached
    first = prepare(int8_package, backend("openvino"), options, patches)
    assert first.cached and first.fidelity is not None and first.fidelity.trusted
    assert first.fidelity.relative_error <= max(0.02, first.fidelity.simulated_relative_error)

    class Untouched(list):
        def __getitem__(self, index):
            raise AssertionError("the engine was compared again")

    again = prepare(int8_package, backend("openvino"), options, Untouched(patches))
    assert again.fidelity == first.fidelity


def test_batches_smaller_than_the_engines_are_padded(fp32_package, patches):
    made = prepare(fp32_package, backend("openvino"), BuildOptions("fp32", PATCH, batch=2))
    single = made.engine.infer(patches[0][None]).copy()
    both = made.engine.infer(np.stack(patches))
    assert single.shape[0] == 1 and both.shape[0] == 2
    assert np.allclose(single[0], both[0], atol=1e-4)


def concat_network(tmp_path):
    """The smallest network that shows what OpenVINO does to a signed quantized Concat: Concat, Q/DQ, Conv."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (8, 16, 1, 1, 1)).astype(np.int8)
    constants = {
        "s": np.float32(0.04),
        "z": np.int8(0),
        "w": weight,
        "ws": np.full(8, 0.01, np.float32),
        "wz": np.zeros(8, np.int8),
        "half": np.float32(0.5),
    }
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["h"], name="half_of_it"),
        helper.make_node("Concat", ["x", "h"], ["c"], name="concat", axis=1),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], name="conv", kernel_shape=[1, 1, 1]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 8, 8, 8]) for n in "xy"]
    made = helper.make_model(
        helper.make_graph(
            nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    onnx.save(made, str(tmp_path / "concat.onnx"))
    return tmp_path / "concat.onnx"


@pytest.mark.parametrize("signed", [True, False])
def test_openvino_gets_a_quantized_concat_right_only_with_unsigned_activations(tmp_path, signed):
    """Signed: values come out rounded to whole numbers, their scale lost (OpenVINO 2026.4). If the first half of this
    test fails, OpenVINO was mended and qdq.as_unsigned can go."""
    from MedQuantINT8Lib.engines.onnxruntime import session
    from MedQuantINT8Lib.system import cpu_features

    if signed and "amx_int8" in cpu_features():
        pytest.skip("the kernels for AMX keep the scale")
    path = concat_network(tmp_path)
    data = np.random.default_rng(1).normal(size=(1, 8, 8, 8, 8)).astype(np.float32)
    expected = session(path.read_bytes(), "int8").run(None, {"x": data})[0]
    made = OpenVINOBackend(signed_activations=signed)
    made.build(path, tmp_path, BuildOptions("int8", (8, 8, 8)))
    engine = made.load(tmp_path, BuildOptions("int8", (8, 8, 8)))
    assert engine.describe().verdict == "INT8"
    error = float(np.linalg.norm(engine.infer(data) - expected) / np.linalg.norm(expected))
    assert error > 0.1 if signed else error < 1e-3


def behind_concats(model):
    """Quantized layers whose input is a Concat, with the DequantizeLinear node before each."""
    found = graph.Graph(model)
    behind = {}
    for layer in weighted_layers(model):
        node = next(n for n in model.graph.node if n.name == layer.name)
        dequantize = found.producer.get(node.input[0])
        if layer.quantized and dequantize is not None:
            source = found.producer.get(found.producer[dequantize.input[0]].input[0])
            if source is not None and source.op_type == "Concat":
                behind[layer.name] = dequantize
    return behind


class WrongBehindConcats(OpenVINOBackend):
    """A real engine that loses the scale behind every quantized Concat, on any processor: what OpenVINO does to signed ones without AMX."""

    def build(self, network, folder, options):
        import onnx
        from onnx import numpy_helper

        if options.precision == "int8":
            model = graph.load_network(network)
            found = graph.Graph(model)
            for name, dequantize in behind_concats(model).items():
                if name not in options.high_precision:
                    wrong = numpy_helper.from_array(found.array(dequantize.input[1]) * np.float32(0.5), f"{name}_wrong")
                    model.graph.initializer.append(wrong)
                    dequantize.input[1] = wrong.name
            network = folder / "wrong.onnx"
            onnx.save(model, str(network))
        super().build(network, folder, options)


@pytest.mark.slow
def test_a_wrong_engine_is_caught_and_rebuilt_without_the_layers_at_fault(int8_package, patches, own_cache):
    register("wrong", f"{__name__}:WrongBehindConcats")
    try:
        made = prepare(int8_package, backend("wrong"), BuildOptions("int8", PATCH), patches)
    finally:
        from MedQuantINT8Lib.engines import registry

        del registry._REGISTRY["wrong"]
    at_fault = set(behind_concats(graph.load_network(int8_package.onnx_path("int8"))))
    assert set(made.fallback) == at_fault and len(at_fault) == 4
    assert "high precision" in made.note and made.fidelity is not None and made.fidelity.trusted
    assert 0 < made.describe().int8_mac_share < 0.95
    again = prepare(int8_package, WrongBehindConcats(), BuildOptions("int8", PATCH), patches)
    assert again.cached and again.fallback == made.fallback


def test_an_operator_that_the_engine_lacks_is_named(fp32_package, tmp_path):
    import onnx

    model = graph.load_network(fp32_package.onnx_path("fp32"))
    model.graph.node[3].op_type, model.graph.node[3].domain = "MadeUpOperator", "example.org"
    model.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
    onnx.save(model, str(tmp_path / "strange.onnx"))
    for name in HERE:
        with pytest.raises(EngineError, match="MadeUpOperator"):
            backend(name).build(tmp_path / "strange.onnx", tmp_path, BuildOptions("fp32", PATCH))


def test_unknown_engines_and_missing_networks_are_refused(fp32_package):
    with pytest.raises(EngineError, match="openvino, onnxruntime"):
        choose_backend("tensorflow", "int8")
    with pytest.raises(PackageError, match=r"model\.int8\.onnx"):
        fp32_package.onnx_path("int8")


def test_auto_prefers_real_int8():
    assert choose_backend("auto", "int8").real_int8


def test_a_damaged_engine_is_built_anew(fp32_package, own_cache):
    options = BuildOptions("fp32", PATCH)
    made = prepare(fp32_package, backend("openvino"), options)
    blob = made.entry.folder / "network.blob"
    blob.write_bytes(blob.read_bytes()[:100])
    again = prepare(fp32_package, backend("openvino"), options)
    assert not again.cached and again.entry.bytes > 1000


def test_an_interrupted_build_leaves_no_entry(own_cache):
    def build(folder):
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make({"model_name": "m"}, build)
    assert list(own_cache.iterdir()) == [] and cache.entries() == []


def test_no_space_is_said_in_words_and_leaves_nothing(own_cache):
    def build(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="no space left"):
        cache.make({"model_name": "m"}, build)
    assert list(own_cache.iterdir()) == []


def _build_slowly(root, barrier, results):
    os.environ["MEDQUANT_CACHE"] = root

    def build(folder):
        (folder / "file").write_text(str(os.getpid()))
        barrier.wait(30)
        return {}

    entry = cache.make({"model_name": "both"}, build)
    results.put((entry.folder / "file").read_text())


def test_two_processes_that_build_the_same_engine_end_with_one(own_cache):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_build_slowly, args=(str(own_cache), barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0] == found[1]
    assert len(cache.entries()) == 1 and len(list(own_cache.iterdir())) == 1


def test_cache_lists_and_clears_by_model(own_cache):
    for name in ("a", "a", "b"):
        cache.make({"model_name": name, "n": len(cache.entries())}, lambda folder: {})
    assert [e.record["key"]["model_name"] for e in cache.entries()] == ["a", "a", "b"]
    assert cache.clear("a") == 2 and cache.clear() == 1 and cache.entries() == []


def test_engines_without_padded_inputs_of_dilated_layers_are_built_anew(fp32_package, own_cache):
    """Format 4 had no such inputs: an engine of a dilated network may end the process, and what is found is not built."""
    key = engine_key(fp32_package, backend("openvino"), BuildOptions("fp32", PATCH))
    for earlier in range(1, 5):
        cache.make({**key, "format": earlier}, lambda folder: {})
    assert cache.find(key) is None


def test_an_entry_holds_its_key_and_build_time(fp32_package, own_cache):
    made = prepare(fp32_package, backend("openvino"), BuildOptions("fp32", PATCH))
    record = json.loads((made.entry.folder / "engine.json").read_text())
    assert record["key"]["engine_version"] == backend("openvino").version()
    assert record["key"]["options"]["patch"] == list(PATCH) and record["build_seconds"] >= 0


def test_auto_precision_times_both_and_says_why(int8_package, fp32_package, own_cache, patches):
    from MedQuantINT8Lib.engines.int8_or_float import MARGIN, prepare_faster
    from MedQuantINT8Lib.progress import Task

    made = prepare_faster(int8_package, backend("openvino"), BuildOptions("int8", PATCH), patches, Task())
    times = made.choice.times
    assert (
        made.options.precision
        == made.choice.precision
        == ("fp32" if MARGIN * times["fp32_ms"] < times["int8_ms"] else "int8")
    )
    bare = prepare_faster(fp32_package, backend("openvino"), BuildOptions("int8", PATCH), patches, Task())
    assert bare.options.precision == "fp32" and "no INT8 network" in bare.note


def test_widths_that_slow_openvino_down_are_filled_up_in_its_build(tmp_path):
    """Fifteen channels behind an instance normalization; the package's own network keeps its width."""
    from onnx import helper

    from graphs import network, weights

    nodes = [
        helper.make_node("Conv", ["x", "a_w"], ["a"], name="a", pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["n"], name="n"),
        helper.make_node("Conv", ["n", "b_w"], ["y"], name="b"),
    ]
    constants = weights(a_w=(15, 1, 3, 3, 3), scale=(15,), shift=(15,), b_w=(3, 15, 1, 1, 1))
    (tmp_path / "network.onnx").write_bytes(network(nodes, constants).SerializeToString())
    made, options = OpenVINOBackend(), BuildOptions("fp32", (8, 6, 10))
    made.build(tmp_path / "network.onnx", tmp_path, options)
    engine = made.load(tmp_path, options)
    first = next(layer for layer in engine.describe().layers if layer.macs)
    assert first.macs == 16 * 27 * 8 * 6 * 10


WATCHED = """
import multiprocessing.process, socket, sys
def refuse(*_, **__):
    print("LEFT THE MACHINE", flush=True)
    raise OSError("refused by the test")
multiprocessing.process.BaseProcess.start = refuse
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from pathlib import Path
from MedQuantINT8Lib.engines import BuildOptions, backend
for name in ("openvino", "onnxruntime"):
    made, options = backend(name), BuildOptions("fp32", (32, 64, 64))
    folder = Path(sys.argv[2]) / name
    folder.mkdir()
    made.build(Path(sys.argv[1]), folder, options)
    made.load(folder, options).describe()
import time
time.sleep(1)
print("telemetry" if sys.modules.get("openvino_telemetry") else "silent")
"""


@pytest.mark.slow
def test_engines_report_to_nobody(fp32_package, tmp_path):
    """OpenVINO's own package reports each import to analytics, unless it is kept from it."""
    import subprocess
    import sys

    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(LIBRARY),
    }
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(fp32_package.onnx_path("fp32")), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["silent"], done.stdout + done.stderr
    assert not (tmp_path / "intel").exists()


class _Fake:
    """Backends and engines of made numbers: a layer at fault changes the output when it is quantized."""

    def __init__(self, faults, seen=None):
        self.faults, self.seen = faults, seen

    def build(self, network, folder, options):
        if self.seen is not None:
            self.seen.append(options)
        quantized = {"a", "b", "c", "d", "e", "f", "g", "h"} - set(options.high_precision)
        (folder / "wrong").write_text(str(len(quantized & self.faults)))

    def load(self, folder, options):
        return _FakeEngine(float((folder / "wrong").read_text()))


class _FakeEngine:
    def __init__(self, wrong):
        self.wrong = wrong

    def infer(self, batch):
        made = np.zeros((1, 2, 8, 8, 8), np.float32)
        made[:, 0] = 1
        made[:, 1] = self.wrong * 2
        return made

    def close(self): ...


@pytest.mark.parametrize(("faults", "most"), [({"f"}, 8), ({"a", "h"}, 14), (set("abcdefgh"), 16)])
def test_layers_at_fault_are_found_by_halving(monkeypatch, faults, most):
    from types import SimpleNamespace

    from MedQuantINT8Lib.engines import fidelity, onnxruntime
    from MedQuantINT8Lib.models import layers
    from MedQuantINT8Lib.models import onnx_graph as graph

    monkeypatch.setattr(graph, "load_network", lambda path: None)
    monkeypatch.setattr(
        layers, "weighted_layers", lambda model: [SimpleNamespace(name=n, quantized=True, half="") for n in "abcdefgh"]
    )
    monkeypatch.setattr(onnxruntime, "OnnxRuntimeBackend", lambda: _Fake(set()))
    seen = []
    options = BuildOptions("int8", (8, 8, 8))
    labels = fidelity.patch_labels("softmax", activated=False, threshold=0.5)
    patch = np.zeros((1, 8, 8, 8), np.float32)
    networks = fidelity.Networks(None, None, labels)
    found = fidelity.LayerSearch(_Fake(faults, seen), networks, options, patch, Task()).find()
    assert set(found) == faults and len(seen) <= most
    monkeypatch.setattr(fidelity, "MOST_TRIALS", 2)
    hasty = fidelity.LayerSearch(_Fake(faults), networks, options, patch, Task()).find()
    assert faults <= set(hasty) and len(hasty) == len(set(hasty))


class _Cramped(OpenVINOBackend):
    """A GPU whose memory is too small."""

    name, title, needs_gpu = "cramped", "Cramped", True

    def load(self, folder, options):
        from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError

        raise GpuMemoryError("The GPU has not enough free memory to hold 900 MB more.")


def test_a_gpu_that_is_too_small_gives_way_to_the_processor(monkeypatch, int8_package, phantom):
    from MedQuantINT8Lib.engines import registry
    from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError
    from MedQuantINT8Lib.inference import pipeline
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions

    monkeypatch.setattr(registry, "_REGISTRY", {"cramped": f"{__name__}:_Cramped", **registry._REGISTRY})
    run = pipeline.segment(int8_package, phantom[0], EngineChoice("auto", "int8"), SegmentationOptions(), Task())
    assert run.engine["name"] == "openvino" and run.result.notes[0].startswith(
        "run on the processor: The GPU has not enough"
    )
    # Who asked for that engine, or for a GPU, is not given the processor.
    for choice in (EngineChoice("cramped", "int8"), EngineChoice("auto", "int8", device="gpu")):
        with pytest.raises(GpuMemoryError):
            pipeline.segment(int8_package, phantom[0], choice, SegmentationOptions(), Task())


class _Picky(OpenVINOBackend):
    """Has no kernel for something in the network."""

    name, title = "picky", "Picky"

    def build(self, network, folder, options):
        from MedQuantINT8Lib.engines.base import UnsupportedNetwork

        raise UnsupportedNetwork("Picky has no kernel for Conv (node first).", "Choose another engine with --engine.")


def test_a_network_that_an_engine_has_no_kernel_for_goes_to_the_next(monkeypatch, int8_package, phantom):
    from MedQuantINT8Lib.engines import registry
    from MedQuantINT8Lib.inference import pipeline
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions

    monkeypatch.setattr(registry, "_REGISTRY", {"picky": f"{__name__}:_Picky", **registry._REGISTRY})
    run = pipeline.segment(int8_package, phantom[0], EngineChoice("auto", "int8"), SegmentationOptions(), Task())
    assert run.engine["name"] == "openvino" and run.result.notes[0].startswith(
        "run on OpenVINO (CPU): Picky has no kernel for Conv (node first)"
    )
    assert (
        pipeline.build(int8_package, EngineChoice("auto", "int8"), SegmentationOptions(), None, Task()).backend.name
        == "openvino"
    )
    with pytest.raises(base.UnsupportedNetwork, match="no kernel for Conv"):
        pipeline.segment(int8_package, phantom[0], EngineChoice("picky", "int8"), SegmentationOptions(), Task())


class _Slow(OpenVINOBackend):
    """Takes steps to build, as TensorRT does."""

    name, title = "slow", "Slow"

    def build_with(self, network, folder, options, task):
        task.begin(3)
        for _ in range(3):
            task.step()
        self.build(network, folder, options)


def test_a_build_that_takes_long_reports_and_can_be_cancelled(fp32_package, own_cache):
    from MedQuantINT8Lib.errors import Cancelled

    events = []
    made = prepare(fp32_package, _Slow(), BuildOptions("fp32", PATCH), (), Task(events.append))
    assert [(e.done, e.total) for e in events if e.total == 3][-1] == (3, 3)
    made.close()
    cache.clear()
    task = Task(lambda event: task.cancel() if event.done == 2 else None)
    with pytest.raises(Cancelled):
        prepare(fp32_package, _Slow(), BuildOptions("fp32", PATCH), (), task)
    assert not [p for p in own_cache.rglob("*") if p.is_file()]


class _Carded(OpenVINOBackend):
    """An engine that needs a GPU; here it computes on the processor."""

    name, title, needs_gpu = "carded", "Carded", True


def test_the_batch_is_what_a_gpu_holds(monkeypatch, int8_package, phantom):
    from types import SimpleNamespace

    from MedQuantINT8Lib.engines import registry
    from MedQuantINT8Lib.inference import network_engines, pipeline
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.memory_estimate import MOST_WINDOWS, gpu_batch
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions

    sizes = [gpu_batch(int8_package, "int8", SegmentationOptions(), size << 20) for size in (1, 800, 8000)]
    assert sizes[0] == 1 < sizes[1] <= sizes[2] == MOST_WINDOWS
    monkeypatch.setattr(registry, "_REGISTRY", {"carded": f"{__name__}:_Carded", **registry._REGISTRY})
    monkeypatch.setattr(network_engines.cuda, "choose_gpu", lambda device: SimpleNamespace(total_bytes=8 << 30))
    choice = EngineChoice("carded", "int8", device="gpu")
    made = pipeline.build(int8_package, choice, SegmentationOptions(), None, Task())
    made.close()
    assert made.options.batch == MOST_WINDOWS
    asked = network_engines.with_batch(SegmentationOptions(batch=2), int8_package, backend("carded"), choice)
    assert asked.batch == 2
    assert network_engines.with_batch(SegmentationOptions(), int8_package, backend("openvino"), choice).batch == 1


def test_what_only_some_engines_have_is_found_by_the_protocols_of_base():
    """By class attributes of the backends that there are; one that says nothing is the processor's, in INT8 and FP32."""
    backends = [backend(name) for name in backend_names()]
    assert {b.name for b in backends if base.needs_gpu(b)} == {"tensorrt", "cuda_int8", "tensorrt_rtx"}
    assert {b.name: base.precisions_of(b) for b in backends}["cuda_int8"] == ("int8", "fp16")
    assert {b.name for b in backends if base.distribution_of(b)} == {"openvino", "onnxruntime"}
    silent = type("Silent", (), {"name": "silent", "title": "Silent", "real_int8": True})()
    assert not base.needs_gpu(silent) and base.precisions_of(silent) == ("int8", "fp32")
    assert base.distribution_of(silent) == "" and base.device_of(silent, "auto") == "cpu"


def test_a_mean_of_engines_gives_away_a_single_engines_network_alone():
    from MedQuantINT8Lib.inference.ensemble import MeanEngine

    class OnGpu:
        gpu, gpu_network, pipeline = "the GPU", "the network", "the pipeline"

    class OnProcessor:
        pass

    for engines, expected in (
        ([OnGpu()], ("the GPU", "the network", "the pipeline")),
        ([OnProcessor()], (None, None, None)),
    ):
        mean = MeanEngine(engines)
        assert (base.gpu_of(mean), base.gpu_network_of(mean), base.pipeline_of(mean)) == expected


def test_no_attribute_of_an_engine_is_looked_for_by_a_string():
    """Named protocols say what an engine may have; a string would say it to nobody, and a typing error in it would be no error."""
    names = "needs_gpu|precisions|distribution|gpu_network|gpu|pipeline|clear"
    pattern = re.compile(rf"(getattr|hasattr)\([^()]*[\"']({names})[\"']")
    library = Path(base.__file__).parent.parent
    assert not [path.name for path in library.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]


SIGNAL = """
import gc, signal, sys
from pathlib import Path
from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
network, folder = Path(sys.argv[1]), Path(sys.argv[2])
options = BuildOptions("int8", tuple(map(int, sys.argv[3:])))
OpenVINOBackend().build(network, folder, options)
engines = [OpenVINOBackend().load(folder, options) for _ in range(2)]
while engines:
    engines.pop(0).close()
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_hears_signals_after_its_engines_are_gone(int8_package, tmp_path):
    """OpenVINO frees the stack for signal handlers of a processor with AMX while it is in use; Ctrl-C was a segmentation fault."""
    command = [sys.executable, "-c", SIGNAL, str(int8_package.folder / INT8), str(tmp_path), *map(str, PATCH)]
    done = subprocess.run(command, capture_output=True, text=True, env=library_environment())
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
