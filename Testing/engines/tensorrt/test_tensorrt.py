"""The TensorRT backend without a TensorRT GPU: held against the real bindings of three versions, against the real parser and
builder of TensorRT for RTX, and driven through a scripted runtime. What stays unproven is in docs/verification.md."""

from __future__ import annotations

import ast
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import gpu_computing
import tensorrt_at_hand as at_hand
from MedQuantINT8Lib.engines import BuildOptions, backend
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import driver as cuda_driver
from MedQuantINT8Lib.engines.provenance import check_note
from MedQuantINT8Lib.engines.tensorrt import backend as tensorrt
from MedQuantINT8Lib.engines.tensorrt import lowering
from MedQuantINT8Lib.engines.tensorrt.engine import TensorRTEngine
from MedQuantINT8Lib.engines.tensorrt.layer_table import from_inspector, from_log, without_double_work
from MedQuantINT8Lib.errors import Cancelled, DependencyError, EngineError
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.progress import Task

ENGINES = Path(tensorrt.__file__).parent
#: What each variable of the engine's code is in TensorRT.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "error": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}


def touched():
    """Every name of TensorRT that the engine's code uses: "Class.member" and "Enum.VALUE"."""
    found = set()
    for name in ("backend.py", "engine.py"):
        for node in ast.walk(ast.parse((ENGINES / name).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            path, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                path.insert(0, inner.attr)
                inner = inner.value
            if not isinstance(inner, ast.Name):
                continue
            if inner.id == "trt" or (inner.id == "self" and path[0] == "_trt"):
                rest = path if inner.id == "trt" else path[1:]
                if rest and rest[0] != "__version__":
                    found.add(".".join(rest))
            elif inner.id in CLASSES and inner.id != "error":
                found.add(f"{CLASSES[inner.id]}.{path[0]}")
            elif inner.id == "self" and path[0] in CLASSES and len(path) > 1:
                found.add(f"{CLASSES[path[0]]}.{path[1]}")
    found |= {"ParserError.desc", "ParserError.node_name", "ParserError.node_operator"}
    return sorted(found)


LOOK = """
import json, sys
import tensorrt as trt
def has(path):
    thing = trt
    for part in path.split("."):
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True
print(json.dumps({"version": trt.__version__, "missing": [name for name in json.loads(sys.argv[1]) if not has(name)],
    "doc": {name: (getattr(getattr(trt, name.split(".")[0]), name.split(".")[1]).__doc__ or "") for name in json.loads(sys.argv[2])}}))
"""
#: Calls with the arguments that the engine gives: their signatures in the bindings must name as many.
ARITY = {
    "Builder.create_network": 1,
    "OnnxParser.parse": 1,
    "IBuilderConfig.set_memory_pool_limit": 2,
    "IBuilderConfig.clear_flag": 1,
    "IBuilderConfig.add_optimization_profile": 1,
    "IBuilderConfig.create_timing_cache": 1,
    "IBuilderConfig.set_timing_cache": 2,
    "IOptimizationProfile.set_shape": 4,
    "Builder.build_serialized_network": 2,
    "Runtime.deserialize_cuda_engine": 1,
    "ICudaEngine.get_tensor_name": 1,
    "ICudaEngine.get_tensor_mode": 1,
    "ICudaEngine.get_tensor_shape": 1,
    "IExecutionContext.set_input_shape": 2,
    "IExecutionContext.set_tensor_address": 2,
    "IExecutionContext.execute_async_v3": 1,
    "EngineInspector.get_engine_information": 1,
}


def test_the_list_of_touched_names_is_not_empty_and_holds_what_matters():
    names = touched()
    assert len(names) > 35
    for name in (
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "IExecutionContext.execute_async_v3",
        "TensorIOMode.INPUT",
    ):
        assert name in names
    # Gone in TensorRT 11: touching one would be an AttributeError there.
    assert not [
        n
        for n in names
        if n in ("BuilderFlag.INT8", "BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH")
    ]


@pytest.mark.parametrize("version", at_hand.VERSIONS)
def test_every_name_is_in_the_real_bindings(version, tmp_path):
    if at_hand.bindings(version) is None or at_hand.compiler() is None:
        pytest.skip(f"needs the bindings of TensorRT {version} in {at_hand.FOLDER} and a C compiler")
    libraries = [at_hand.stub_libraries(version, tmp_path)]
    # A name that is not there must be found missing: the test can fail.
    found = at_hand.run(
        version, libraries, LOOK, json.dumps([*touched(), "Builder.build_nothing_at_all"]), json.dumps(list(ARITY))
    )
    assert found["version"].startswith(version)
    assert found["missing"] == ["Builder.build_nothing_at_all"]
    for name, count in ARITY.items():
        # The bindings' own signature, such as "set_shape(self: ..., input: str, min: ..., opt: ..., max: ...) -> None".
        signatures = [line for line in found["doc"][name].splitlines() if name.split(".")[1] + "(" in line]
        assert any(_fits(line, count) for line in signatures), (name, signatures)


def test_a_name_that_a_version_drops_is_found(tmp_path):
    version = at_hand.VERSIONS[-1]
    if at_hand.bindings(version) is None or at_hand.compiler() is None:
        pytest.skip(f"needs the bindings of TensorRT {version} in {at_hand.FOLDER} and a C compiler")
    libraries = [at_hand.stub_libraries(version, tmp_path)]
    dropped = LOOK.replace(
        "def has(path)", "del trt.Builder.build_serialized_network, trt.MemoryPoolType.WORKSPACE\ndef has(path)", 1
    )
    found = at_hand.run(version, libraries, dropped, json.dumps(sorted(touched())), "[]")
    assert set(found["missing"]) == {"Builder.build_serialized_network", "MemoryPoolType.WORKSPACE"}


def _fits(signature, count):
    inside, depth, parts = signature.split("(", 1)[1].rsplit(")", 1)[0], 0, [""]
    for letter in inside:
        depth += letter in "[(<"
        depth -= letter in "])>"
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    arguments = [p for p in parts if p.strip() and p.strip() not in ("/", "*")][1:]
    needed = [p for p in arguments if "=" not in p]
    return len(needed) <= count <= len(arguments)


@pytest.fixture(scope="module")
def rtx(tmp_path_factory):
    if at_hand.rtx() is None or at_hand.compiler() is None:
        pytest.skip(f"needs TensorRT for RTX and the bindings of TensorRT 11.4 in {at_hand.FOLDER}, and a C compiler")
    return at_hand.rtx_libraries(tmp_path_factory.mktemp("rtx"))


def test_the_real_compiler_places_the_work_in_int8(rtx, int8_package):
    found = {
        precision: at_hand.run(
            "11.4", rtx, at_hand.COMPILE, str(int8_package.onnx_path(precision)), precision, "64", "64", "64"
        )
        for precision in ("int8", "fp16", "fp32")
    }
    # All of it, the transposed convolutions as well: their kernel is their stride.
    network = graph.load_network(int8_package.onnx_path("int8")).graph
    assert any(node.op_type == "ConvTranspose" for node in network.node)
    assert found["int8"]["verdict"] == "INT8" and found["int8"]["share"] == 1.0 and not found["int8"]["not_int8"]
    assert found["fp16"]["share"] == found["fp32"]["share"] == 0 and found["fp32"]["verdict"] == "not INT8"
    for row in found.values():
        assert row["macs"] == row["all_macs"] and row["events"] >= 2
    assert "deconv" in found["fp32"]["kinds"] and "deconv" not in found["int8"]["kinds"]
    assert found["fp16"]["traffic"] < found["fp32"]["traffic"]


@pytest.mark.data
def test_the_real_compiler_takes_a_network_with_instance_norm_and_skips(rtx, tmp_path):
    """The shapes that a graph of nnU-Net's kind holds: strided, InstanceNorm, LeakyReLU, concat, transposed convolution."""
    from data_models import DATA

    found = at_hand.run(
        "11.4", rtx, at_hand.COMPILE, str(DATA / "networks" / "abdomen_ct_obelisk.onnx"), "fp16", "144", "144", "144"
    )
    assert found["macs"] == found["all_macs"]


def test_a_node_that_cannot_be_read_is_named(rtx, tmp_path):
    onnx = graph.require_onnx()
    shape = [1, 1, 8, 8, 8]
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["r"], name="first"),
        onnx.helper.make_node("Bernoulli", ["r"], ["y"], name="dice_thrower"),
    ]
    value = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [value("x", 1, shape)], [value("y", 1, shape)]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    onnx.save(model, str(tmp_path / "n.onnx"))
    code = at_hand.COMPILE.replace(
        "plan = backend", "from MedQuantINT8Lib.errors import EngineError\ntry:\n  plan = backend"
    ).replace(
        "layers = without",
        "except EngineError as error:\n  print(json.dumps(str(error)))\n  sys.exit()\nlayers = without",
    )
    assert "dice_thrower (Bernoulli)" in at_hand.run("11.4", rtx, code, str(tmp_path / "n.onnx"), "fp32", "8", "8", "8")


def test_a_build_is_cancelled_by_its_task(rtx, int8_package):
    code = at_hand.COMPILE.replace("Task(events.append)", "task").replace(
        "log, events",
        "task = Task(lambda event: (events.append(event), task.cancel()) if event.total else None)\nlog, events",
    )
    code = code.replace(
        "plan = backend", "from MedQuantINT8Lib.errors import Cancelled\ntry:\n  plan = backend"
    ).replace(
        "layers = without",
        "except Cancelled as error:\n  print(json.dumps(str(error)))\n  sys.exit()\nlayers = without",
    )
    assert "Canceled" in at_hand.run("11.4", rtx, code, str(int8_package.onnx_path("int8")), "int8", "64", "64", "64")


# ---- lowering


def computed(model, values):
    """The network operator by operator in ONNX Runtime, with nothing fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return made.run(None, {model.graph.input[0].name: values})[0]


def test_half_precision_around_int8_computes_the_same(int8_package, phantom):
    patch = np.random.default_rng(0).random((1, 1, 64, 64, 64)).astype(np.float32)
    for precision in ("fp32", "int8"):
        model = graph.fixed_shape(graph.load_network(int8_package.onnx_path(precision)), (64, 64, 64))
        half = lowering.lowered(model, "int8" if precision == "int8" else "fp16")
        graph.require_onnx().checker.check_model(half, full_check=True)
        before, after = (computed(m, patch) for m in (model, half))
        assert after.dtype == np.float32 and (before.argmax(1) != after.argmax(1)).mean() < 2e-3
        types = {i.data_type for i in half.graph.initializer if i.name.endswith("_half")}
        assert types == {graph.require_onnx().TensorProto.FLOAT16}
    same = lowering.lowered(model, "fp32")
    assert [n.op_type for n in same.graph.node] == [n.op_type for n in model.graph.node] and same is not model


@pytest.mark.parametrize("opset", [17, 18])
def test_norms_are_written_out_without_leaving_the_range_of_half_precision(opset):
    onnx = graph.require_onnx()
    helper = onnx.helper
    rng = np.random.default_rng(0)
    constants = [onnx.numpy_helper.from_array(rng.normal(1, 0.2, 4).astype(np.float32), n) for n in ("scale", "shift")]
    groups = [
        onnx.numpy_helper.from_array(v, n)
        for v, n in ((np.array([0, 2, -1]), "flat"), (np.ones(2, np.float32), "one"), (np.zeros(2, np.float32), "zero"))
    ]
    nodes = [
        helper.make_node("InstanceNormalization", ["x", "scale", "shift"], ["a"], name="norm", epsilon=1e-3),
        helper.make_node("Reshape", ["a", "flat"], ["b"], name="flatten"),
        helper.make_node("InstanceNormalization", ["b", "one", "zero"], ["y"], name="groups"),
    ]
    shape = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 6, 5, 4])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 240])
    body = helper.make_graph(nodes, "g", [shape], [result], constants + groups)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    written = lowering.with_norms_written_out(model)
    assert "InstanceNormalization" not in {n.op_type for n in written.graph.node}
    x = rng.normal(100, 900, (1, 4, 6, 5, 4)).astype(np.float32)
    assert np.allclose(computed(written, x), computed(model, x), atol=1e-5)
    half = lowering.lowered(model, "fp16")
    onnx.checker.check_model(half, full_check=True)
    # Squares of such values are far beyond 65504.
    assert np.allclose(computed(half, x), computed(model, x), atol=1e-2)


def test_what_half_precision_cannot_hold_stays():
    onnx = graph.require_onnx()
    helper = onnx.helper
    constants = [onnx.numpy_helper.from_array(np.array([v], np.float32), n) for n, v in (("huge", 1e6), ("one", 1.0))]
    nodes = [
        helper.make_node("Mul", ["x", "huge"], ["a"], name="large"),
        helper.make_node("Div", ["a", "huge"], ["b"], name="back"),
        helper.make_node("Add", ["b", "one"], ["c"], name="small"),
        helper.make_node("ReduceMean", ["c"], ["y"], name="mean", keepdims=1),
    ]
    shape = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 4, 4, 4])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [shape], [result], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    half = lowering.with_half(model)
    x = np.random.default_rng(0).random((1, 1, 4, 4, 4)).astype(np.float32)
    before, after = (computed(m, x) for m in (model, half))
    assert np.isfinite(after).all() and np.allclose(before, after, atol=2e-3)


# ---- layers

LINE = (
    "Name: conv_myl0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,16,8,8,8], Strides: [8192,512,64,8,1], Datatype: Int8, "
    "Format: (NDHWC) } ], Constants: [], Outputs: [ { Name: b, Dimensions: [1,16,8,8,8], Datatype: Half, Format: (NDHWC) } ], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv][ONNX Layer: relu]"
)


def test_layers_are_read_in_both_forms_and_from_the_log():
    ten = {
        "Layers": [
            {
                "Name": "conv",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {"Name": "a", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
                ],
                "Outputs": [],
                "TacticName": "t",
                "Metadata": "[ONNX Layer: conv]",
            },
            {
                "Name": "head",
                "LayerType": "CaskConvolution",
                "Inputs": [{"Name": "b", "Format/Datatype": "Row major linear FP16 format"}],
                "Outputs": [],
                "Metadata": "[ONNX Layer: head]",
            },
        ],
        "Bindings": ["a"],
    }
    eleven = {
        "Layers": [
            {
                "Name": "conv",
                "LayerType": "correlation",
                "Inputs": [{"Name": "a", "Datatype": "Int8", "Format": "NDHWC"}],
                "Outputs": [],
                "Metadata": "[ONNX Layer: conv]",
            },
            {
                "Name": "requantize",
                "LayerType": "kgen",
                "Inputs": [{"Name": "a", "Datatype": "Half"}],
                "Outputs": [],
                "Metadata": "[ONNX Layer: conv]",
            },
            {
                "Name": "head",
                "LayerType": "correlation",
                "Inputs": [{"Name": "b", "Datatype": "Half"}],
                "Outputs": [],
                "Metadata": "[ONNX Layer: head]",
            },
        ],
        "I/O Tensors": [],
    }
    for value in (ten, eleven):
        layers = without_double_work(from_inspector(json.dumps(value), {"conv": 900, "head": 100}))
        assert sum(layer.macs for layer in layers if layer.int8) == 900 and sum(layer.macs for layer in layers) == 1000
    assert from_inspector(json.dumps({"Layers": ["conv", "head"]}), {"conv": 1})[0].name == "conv"
    [layer] = from_log([LINE, "nothing"], {"conv": 7})
    assert layer.int8 and layer.macs == 7 and layer.sources == ("conv", "relu")


def test_work_that_two_layers_name_counts_once():
    layers = without_double_work(from_log([LINE, LINE.replace("conv_myl0_1", "again")], {"conv": 7}))
    assert sum(layer.macs for layer in layers) == 7


# ---- versions, notes, faults


def fake_module(version):
    module = ModuleType("tensorrt")
    module.__version__ = version
    module.__spec__ = ModuleSpec("tensorrt", None)
    return module


@pytest.mark.parametrize(
    ("version", "message"), [("10.9.0.34", "is too old"), ("8.6.1", "is too old"), ("12.0.0", "newer than what")]
)
def test_other_versions_are_refused_with_what_to_install(monkeypatch, version, message):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module(version))
    with pytest.raises(DependencyError, match=message):
        tensorrt.tensorrt_module()
    assert message in backend("tensorrt").unavailable()


@pytest.mark.parametrize("version", ["10.12.0", "10.16.1.11", "11.4.0.106"])
def test_versions_that_are_known_are_taken(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module(version))
    assert tensorrt.tensorrt_module().__version__ == version
    monkeypatch.setattr(cuda, "gpus", list)
    assert "no NVIDIA GPU" in backend("tensorrt").unavailable()


def test_bindings_without_their_library_are_told(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DependencyError, match=r"library cannot be loaded: libnvinfer\.so\.10"):
        tensorrt.tensorrt_module()
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


NOTE = {"tensorrt": "10.13.3", "gpu": "RTX", "compute_capability": [8, 9], "driver": 13000, "options": {"batch": 1}}


def test_a_plan_is_only_loaded_where_it_was_made(tmp_path):
    tensorrt.write_plan(tmp_path, b"plan", NOTE, {"conv": 1})
    check_note(tmp_path / "engine.plan", NOTE)
    check_note(tmp_path / "engine.plan", {**NOTE, "driver": 13010})
    for key, value in (
        ("tensorrt", "11.4.0"),
        ("gpu", "H100"),
        ("compute_capability", [9, 0]),
        ("options", {"batch": 2}),
    ):
        with pytest.raises(EngineError, match="made for another"):
            check_note(tmp_path / "engine.plan", {**NOTE, key: value})
    (tmp_path / "engine.plan").write_bytes(b"pla")
    with pytest.raises(EngineError, match="damaged"):
        check_note(tmp_path / "engine.plan", NOTE)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(EngineError, match="no note of how it was made"):
        check_note(tmp_path / "engine.plan", NOTE)


# ---- the scripted runtime


class HostGpu:
    """A GPU whose memory is the computer's: every copy is one, every graph a call."""

    def __init__(self):
        self.buffers = {}

    def enter(self): ...

    def close(self): ...

    def stream(self):
        return SimpleNamespace(handle=7, synchronize=lambda: None, free=lambda: None, wait_for=lambda event: None)

    def event(self):
        event = SimpleNamespace(wait=lambda: None, free=lambda: None)
        event.record = lambda stream: event
        return event

    def allocate(self, shape, dtype):
        array = np.zeros(shape, dtype)
        buffer = SimpleNamespace(
            shape=tuple(shape), dtype=np.dtype(dtype), pointer=array.ctypes.data, array=array, free=lambda: None
        )
        buffer.upload = lambda given, stream, keep: array.reshape(-1).__setitem__(
            slice(0, given.size), given.reshape(-1)
        )
        buffer.download = lambda target, stream: target.reshape(-1).__setitem__(
            slice(None), array.reshape(-1)[: target.size]
        )
        self.buffers[buffer.pointer] = array
        return buffer

    def pinned(self, shape, dtype):
        return SimpleNamespace(array=np.zeros(shape, dtype), free=lambda: None)


class ScriptedContext:
    def __init__(self, gpu):
        self.gpu, self.addresses, self.shape, self.fails, self.runs = gpu, {}, None, False, 0

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= 2

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 7
        self.runs += 1
        if self.fails:
            return False
        source, target = self.gpu.buffers[self.addresses["x"]], self.gpu.buffers[self.addresses["y"]]
        target[: self.shape[0], 0] = source[: self.shape[0], 0] + 1
        target[: self.shape[0], 1] = -source[: self.shape[0], 0]
        return True


class ScriptedEngine:
    num_io_tensors = 2

    def __init__(self, gpu):
        self.context = ScriptedContext(gpu)

    def create_execution_context(self):
        return self.context

    def get_tensor_name(self, n):
        return ("y", "x")[n]

    def get_tensor_mode(self, name):
        return {"x": "in", "y": "out"}[name]

    def get_tensor_shape(self, name):
        return (-1, 1 if name == "x" else 2, 4, 4, 4)

    def create_engine_inspector(self):
        text = json.dumps(
            {
                "Layers": [
                    {
                        "Name": "conv",
                        "LayerType": "correlation",
                        "Inputs": [{"Datatype": "Int8"}],
                        "Metadata": "[ONNX Layer: conv]",
                    }
                ]
            }
        )
        return SimpleNamespace(get_engine_information=lambda form: text)


@pytest.fixture
def scripted(monkeypatch):
    class Replay:
        """Runs the work each time, as an eager first run does."""

        def __init__(self, gpu, stream, enqueue):
            self.run, self.keys = lambda: enqueue(stream), []

        def launch(self, key):
            self.keys.append(key)
            self.run()

        def free(self): ...

    monkeypatch.setattr("MedQuantINT8Lib.engines.cuda.pipeline.CapturedGraph", Replay)
    trt = SimpleNamespace(
        __version__="10.13.3",
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    gpu = HostGpu()
    engine = ScriptedEngine(gpu)
    return TensorRTEngine(
        trt, object(), engine, gpu, BuildOptions("int8", (4, 4, 4), 2), {"conv": 5}, "Scripted"
    ), engine


def test_the_whole_road_of_a_run_through_a_scripted_runtime(scripted):
    engine, script = scripted
    batch = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 4, 4, 4)
    found = engine.infer(batch)
    assert np.array_equal(found[:, 0], batch[:, 0] + 1) and np.array_equal(found[:, 1], -batch[:, 0])
    one = engine.infer(batch[:1])
    assert one.shape == (1, 2, 4, 4, 4) and np.array_equal(one[:, 0], batch[:1, 0] + 1)
    assert [key for slot in engine.pipeline._slots for key in slot.graph.keys] == [2, 1]
    description = engine.describe()
    assert description.verdict == "INT8" and description.int8_mac_share == 1 and description.device == "Scripted"
    script.context.fails = True
    with pytest.raises(EngineError, match="could not run the network"):
        engine.infer(batch)
    script.context.fails = False
    assert np.array_equal(engine.infer(batch)[:, 0], batch[:, 0] + 1)
    engine.close()
    engine.close()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_segment_road_uses_the_pipeline_where_scores_come_down(scripted, phantom, activation):
    from dataclasses import replace

    from MedQuantINT8Lib.imaging.phantom import phantom_spec
    from MedQuantINT8Lib.imaging.volume import Volume
    from MedQuantINT8Lib.inference import network_run
    from MedQuantINT8Lib.inference.ensemble import MeanEngine
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment_volume
    from MedQuantINT8Lib.inference.timed_engine import TimedEngine
    from MedQuantINT8Lib.models.spec import Label, Normalization, Output, Window

    engine, _ = scripted
    # skip_air keeps the window on the processor.
    engine.gpu_network = engine
    labels = (Label(3, "a", 0), Label(5, "b", 1)) if activation == "sigmoid" else (Label(5, "b", 1),)
    spec = replace(
        phantom_spec(),
        labels=labels,
        output=Output(activation),
        window=Window((4, 4, 4), overlap=0.5),
        normalization=(Normalization("zscore"),),
    )
    volume = Volume(
        np.random.default_rng(0).integers(-900, 900, (1, 9, 10, 11)).astype(np.int16), np.diag([2.0, 2, 2, 1]), "noise"
    )
    seen = []
    collect = engine.pipeline.collect
    engine.pipeline.collect = lambda: (seen.append(len(engine.pipeline._busy)), collect())[1]
    options = SegmentationOptions(skip_air=True, batch=2)
    found = segment_volume(
        volume, spec, lambda _input: TimedEngine(MeanEngine([engine]), [], SimpleNamespace()), options
    )
    plain = SimpleNamespace(infer=lambda batch: np.concatenate([batch + 1, -batch], axis=1))
    expected = segment_volume(volume, spec, lambda _input: plain, options)
    calls = network_run._calls_ms([], found, 2)
    assert len(calls) == -(-found.patches // 2) and min(calls) >= 0
    assert max(seen) == 2 and np.array_equal(found.labels, expected.labels) and len(np.unique(found.labels)) > 1


def test_a_context_that_does_not_fit_is_told(scripted):
    engine, _ = scripted
    script = SimpleNamespace(create_execution_context=lambda: None)
    with pytest.raises(cuda.GpuMemoryError, match="not enough free memory for this engine"):
        TensorRTEngine(engine._trt, None, script, HostGpu(), BuildOptions("int8", (4, 4, 4)), {}, "Scripted")


@pytest.mark.parametrize("built", [True, False])
def test_blocks_that_wait_for_their_next_use_go_before_tensorrt_needs_memory(monkeypatch, tmp_path, built):
    gpu_computing.install(monkeypatch)
    (tmp_path / "engine.plan").write_bytes(b"plan")
    left = []

    def reached(*_how):
        left.append(other.blocks.nbytes)
        raise EngineError("It was reached.")

    for name, value in (("tensorrt_module", lambda: None), ("check_note", lambda *_: None), ("note_of", lambda *_: {})):
        monkeypatch.setattr(tensorrt, name, value)
    for name in ("listening", "prepared"):
        monkeypatch.setattr(tensorrt, name, reached)
    with cuda.Gpu(0) as other:
        other.allocate((1 << 22,), np.uint8).free()
        assert other.blocks.nbytes
        road, options = tensorrt.TensorRTBackend(), BuildOptions("int8", (4, 4, 4), device="gpu:0")
        with pytest.raises(EngineError, match="It was reached"):
            road.build(tmp_path / "network.onnx", tmp_path, options) if built else road.load(tmp_path, options)
    assert left == [0]


def test_builders_and_parsers_that_fail_say_why():
    error = SimpleNamespace(node_name=lambda: "conv_3", node_operator=lambda: "Conv", desc=lambda: "no kernel")
    parser = SimpleNamespace(num_errors=1, get_error=lambda n: error)
    assert tensorrt.parse_errors(parser) == "conv_3 (Conv): no kernel"
    with pytest.raises(Cancelled):
        task = Task()
        task.cancel()
        task.check()


def test_a_gpu_that_is_lost_during_a_run_is_told_and_closing_is_quiet(scripted, monkeypatch):
    engine, _ = scripted
    batch = np.ones((1, 1, 4, 4, 4), np.float32)
    expected = engine.infer(batch).copy()
    fault = cuda.GpuError("The GPU could not finish its work: unspecified launch failure.", "Restart the program.")

    def lost(*_arguments):
        raise fault

    [slot, _] = engine.pipeline._slots
    pipeline = engine.pipeline
    held = [
        (thing, name, getattr(thing, name))
        for thing, name in [(s.done, "wait") for s in pipeline._slots] + [(pipeline._up, "synchronize")]
    ]
    for thing, name, _real in held:
        setattr(thing, name, lost)
    with pytest.raises(EngineError, match="unspecified launch failure"):
        engine.infer(batch)
    for thing, name, real in held:
        setattr(thing, name, real)
    assert np.array_equal(engine.infer(batch), expected)
    slot.source.free = lost
    engine._gpu.close = lost
    engine.close()


def test_a_library_that_does_not_start_is_told():
    def nothing(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    log = SimpleNamespace(logger=None, errors=[], last_words=lambda: "CUDA initialization failure with error: 35")
    with pytest.raises(EngineError, match=r"does not start: CUDA initialization failure.*Install NVIDIA's driver"):
        tensorrt.started(nothing, log)


@pytest.mark.parametrize(
    ("driver_installed", "words"),
    [
        (False, "no NVIDIA driver here. Install NVIDIA's driver"),
        (True, "cannot be used by the installed cuda-python: Failed to dlopen libcuda.so.1."),
    ],
)
def test_a_library_without_a_driver_is_told(monkeypatch, driver_installed, words):
    class NoDriver(ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("11.4.0"))
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", NoDriver("cuda.bindings"))
    monkeypatch.setattr(cuda_driver, "has_driver", lambda: driver_installed)
    assert words in backend("tensorrt").unavailable()


class ScriptedBuilder:
    """What a build touches; gives no plan, as TensorRT does when the GPU's memory is full."""

    def __init__(self, logger):
        logger.log(1, "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 900 bytes.)")

    def create_network(self, flags):
        return SimpleNamespace(get_input=lambda n: SimpleNamespace(name="x", shape=(-1, 1, 4, 4, 4)))

    def create_builder_config(self):
        known = ("set_memory_pool_limit", "clear_flag", "add_optimization_profile", "create_timing_cache")
        return SimpleNamespace(set_timing_cache=lambda *given: True, **{name: lambda *given: None for name in known})

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda *given: None)

    def build_serialized_network(self, network, config):
        return None


class ScriptedLogger:
    Severity = SimpleNamespace(WARNING=2)


def test_a_build_without_memory_says_so(tmp_path):
    class Monitor: ...

    trt = SimpleNamespace(
        ILogger=ScriptedLogger,
        IProgressMonitor=Monitor,
        Builder=ScriptedBuilder,
        OnnxParser=lambda network, logger: SimpleNamespace(parse=lambda model: True),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        BuilderFlag=SimpleNamespace(TF32=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED=0),
    )
    model = SimpleNamespace(SerializeToString=lambda: b"")
    with pytest.raises(
        cuda.GpuMemoryError, match=r"cannot build this network: .*OutOfMemory.*Close other programs that use the GPU"
    ):
        tensorrt.build_plan(trt, model, BuildOptions("int8", (4, 4, 4)), 1 << 20, tmp_path / "timing", Task())
    assert not (tmp_path / "timing").exists()


def test_a_timing_cache_of_another_version_is_begun_anew(tmp_path):
    class Config:
        def __init__(self):
            self.made, self.set = [], []

        def create_timing_cache(self, held):
            self.made.append(held)
            return held

        def set_timing_cache(self, cache, mismatch):
            self.set.append(cache)
            return cache == b""

    config = Config()
    (tmp_path / "old").write_bytes(b"of another version")
    assert tensorrt._timing_cache(config, tmp_path / "old") == b"" and config.set == [b"of another version", b""]
    assert tensorrt._timing_cache(Config(), tmp_path / "none") == b"" and tensorrt._timing_cache(Config(), None) is None


def test_half_precision_alone_needs_a_gpu():
    from MedQuantINT8Lib.engines import choose_backend

    for name in ("auto", "openvino", "onnxruntime"):
        with pytest.raises(EngineError, match="FP16.*(another --precision)"):
            choose_backend(name, "fp16")
