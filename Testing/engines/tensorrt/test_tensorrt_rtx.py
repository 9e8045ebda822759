"""TensorRT for RTX: the real plug-in registered over a driver that finds no GPU; sessions through ONNX Runtime's own processor
device in place of a card's; the compiler's process with a stand-in for the compiler. What stays unproven is in docs/verification.md."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import tensorrt_at_hand as at_hand
from MedQuantINT8Lib.engines import BuildOptions, backend
from MedQuantINT8Lib.engines.cuda import setup_hints as gpu_advice
from MedQuantINT8Lib.engines.cuda.device import GpuInfo
from MedQuantINT8Lib.engines.tensorrt import rtx_backend as tensorrt_rtx
from MedQuantINT8Lib.engines.tensorrt import rtx_compile, rtx_provider
from MedQuantINT8Lib.errors import Cancelled, DependencyError, EngineError
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.system import library_environment

PATCH = (64, 64, 64)


# ---- the real plug-in


@pytest.fixture(scope="module")
def plugin():
    found = at_hand.rtx()
    if found is None or at_hand.compiler() is None:
        pytest.skip(f"needs TensorRT for RTX in {at_hand.FOLDER}, and a C compiler")
    return found


def in_process(plugin, code, driver=None):
    environment = library_environment()
    environment["PYTHONPATH"] += os.pathsep + str(plugin.parent)
    environment["LD_LIBRARY_PATH"] = str(driver or "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_plugin_is_registered_and_says_that_it_takes_no_gpu(plugin, tmp_path):
    code = "from MedQuantINT8Lib.engines import backend; from MedQuantINT8Lib.engines.tensorrt import rtx_provider\nprint(rtx_provider.devices())\nprint(backend('tensorrt_rtx').unavailable())"
    driver = at_hand.stub_driver(tmp_path)
    first, second = in_process(plugin, code, driver).splitlines()
    assert first == "[]" and "takes no GPU of this computer" in second and "RTX 30" in second


def test_without_a_driver_nothing_is_loaded(plugin):
    if gpu_advice.has_driver():
        pytest.skip("this machine has NVIDIA's driver")
    code = "import sys\nfrom MedQuantINT8Lib.engines import backend\nprint(backend('tensorrt_rtx').unavailable())\nprint('onnxruntime' in sys.modules)"
    first, second = in_process(plugin, code).splitlines()
    assert "driver is missing" in first and second == "False"
    code = "from MedQuantINT8Lib.engines.tensorrt import rtx_provider\ntry:\n  rtx_provider.devices()\nexcept Exception as error:\n  print(error)"
    assert re.search(r"cannot be loaded: libcuda\.so\.1.*Install NVIDIA's driver", in_process(plugin, code))


def test_every_option_is_one_that_the_plugin_knows(plugin):
    known = set(re.findall(r'"(\w+)"', (plugin / "tensorrt_rtx_provider_options.h").read_text()))
    source = Path(tensorrt_rtx.__file__).read_text()
    used = set(re.findall(r'"(nv_\w+)"', source))
    assert {"nv_profile_min_shapes", "nv_runtime_cache_path", "nv_detailed_build_log"} <= used <= known


# ---- sessions, on the processor's device


@pytest.fixture
def stand_in(monkeypatch):
    """The plug-in's package, whose device is the processor's; its compiler copies."""
    module = ModuleType(rtx_provider.MODULE)
    module.__version__, module.__spec__ = "0.5.0", ModuleSpec(rtx_provider.MODULE, None)
    module.get_ep_name = lambda: "CPUExecutionProvider"
    monkeypatch.setitem(sys.modules, rtx_provider.MODULE, module)
    monkeypatch.setattr(rtx_provider, "_registered", {"CPUExecutionProvider"})
    monkeypatch.setattr(tensorrt_rtx, "has_driver", lambda: True)
    asked = []

    def session_options(ort, device, provider):
        asked.append(provider)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_provider_for_devices([device], {})
        return options

    def compile_in_process(source, target, device, provider, task):
        asked.append(provider)
        target.write_bytes(source.read_bytes())
        return [line for line in LOG.splitlines() if line]

    monkeypatch.setattr(tensorrt_rtx, "session_options", session_options)
    monkeypatch.setattr(tensorrt_rtx, "compile_in_process", compile_in_process)
    return asked


LOG = """
2026-11-24 12:00:00.0 [V:onnxruntime:, nv.cc:1 log] Name: a, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,8,8,8,8], Datatype: Int8, Format: (NDHWC) } ], Constants: [], Outputs: [ { Name: y, Dimensions: [1,8,8,8,8], Datatype: Half } ], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: %s]
"""


def test_a_network_is_built_loaded_and_run(stand_in, int8_package, tmp_path, monkeypatch):
    made, reference = backend("tensorrt_rtx"), backend("onnxruntime")
    assert made.unavailable() == "" and made.device_name("gpu") and made.version().startswith("0.5.0, ONNX Runtime 1.")
    options = BuildOptions("fp32", PATCH, 2)
    macs = tensorrt_rtx.prepared(int8_package.onnx_path("fp32"), options)[1]
    first = next(iter(macs))
    monkeypatch.setattr(f"{__name__}.LOG", LOG % first)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, by in ((ours, made), (theirs, reference)):
        folder.mkdir()
        by.build(int8_package.onnx_path("fp32"), folder, options)
    assert sorted(path.name for path in ours.iterdir()) == ["layers.json", "network_ctx.onnx", "plan.json"]
    engine, expected = made.load(ours, options), reference.load(theirs, options)
    batch = np.random.default_rng(0).random((2, 1, *PATCH)).astype(np.float32)
    assert np.allclose(engine.infer(batch), expected.infer(batch), atol=1e-4)
    assert np.allclose(engine.infer(batch[1:]), expected.infer(batch[1:]), atol=1e-4)
    described = engine.describe()
    assert (
        described.engine == "tensorrt_rtx" and described.int8_mac_share == 1 and described.layers[0].sources == (first,)
    )
    name = engine._input
    assert (
        stand_in[0]["nv_profile_min_shapes"] == f"{name}:1x1x64x64x64"
        and stand_in[0]["nv_profile_max_shapes"] == f"{name}:2x1x64x64x64"
    )
    assert stand_in[0]["nv_detailed_build_log"] == "1" and stand_in[1]["nv_runtime_cache_path"] == str(ours / "kernels")
    engine.close()
    with pytest.raises(EngineError, match="made for another options"):
        made.load(ours, replace(options, batch=1))
    (ours / "network_ctx.onnx").write_bytes(b"other")
    with pytest.raises(EngineError, match="compiled network of TensorRT for RTX is damaged"):
        made.load(ours, options)


def test_without_a_table_of_layers_nothing_counts_as_int8(stand_in, int8_package, tmp_path):
    made, options = backend("tensorrt_rtx"), BuildOptions("int8", PATCH)
    made.build(int8_package.onnx_path("int8"), tmp_path, options)
    (tmp_path / "layers.json").write_text("[]")
    described = made.load(tmp_path, options).describe()
    assert described.verdict == "not INT8" and "not reported" in described.layers[0].precision


def test_devices_are_chosen_by_number(stand_in):
    number, device = rtx_provider.choose_device("gpu:0")
    assert number == 0 and device.ep_name == "CPUExecutionProvider"
    for wanted in ("gpu:7", "gpu:x"):
        with pytest.raises(EngineError, match=r"no GPU number .*There are: gpu:0"):
            rtx_provider.choose_device(wanted)


def test_a_run_that_fails_says_why(stand_in):
    session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name="x")],
        get_outputs=lambda: [SimpleNamespace(name="y", shape=["n", 2, 4, 4, 4])],
        io_binding=lambda: SimpleNamespace(bind_cpu_input=lambda *a: None, bind_ortvalue_output=lambda *a: None),
        run_with_iobinding=lambda binding: (_ for _ in ()).throw(
            RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA error: device lost")
        ),
    )
    engine = tensorrt_rtx.TensorRTRTXEngine(session, None)
    with pytest.raises(EngineError, match="could not run the network: device lost"):
        engine.infer(np.zeros((1, 1, 4, 4, 4), np.float32))


# ---- packages, advice


def test_what_is_missing_is_named(monkeypatch):
    if importlib.util.find_spec(rtx_provider.MODULE) is None:
        with pytest.raises(DependencyError, match="pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"):
            rtx_provider.modules()
    module = ModuleType(rtx_provider.MODULE)
    module.__spec__ = ModuleSpec(rtx_provider.MODULE, None)
    monkeypatch.setitem(sys.modules, rtx_provider.MODULE, module)
    monkeypatch.setattr("onnxruntime.__version__", "1.20.1")
    with pytest.raises(DependencyError, match=r"1\.20\.1 is too old for TensorRT for RTX"):
        rtx_provider.modules()


@pytest.mark.parametrize(
    ("capability", "advice"),
    [
        ((7, 5), "too old"),
        ((8, 0), "does not take this GPU"),
        ((8, 6), "170 MB"),
        ((8, 9), "170 MB"),
        ((9, 0), "does not take"),
        ((12, 0), "170 MB"),
    ],
)
def test_the_doctor_says_which_of_the_two_fits(monkeypatch, capability, advice):
    monkeypatch.setattr(gpu_advice, "has_driver", lambda: True)
    monkeypatch.setattr(gpu_advice.importlib.util, "find_spec", lambda name: object() if name == "cuda" else None)
    monkeypatch.setattr(gpu_advice.cuda, "gpus", lambda: [GpuInfo(0, "Card", capability, 8 << 30)])
    [line] = gpu_advice.advice_for_gpus()
    assert advice in line and line.startswith("0: Card, 9 GB: ")


# ---- the compiler's process


@pytest.fixture
def child(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code):
        (tmp_path / "stand_in_compiler.py").write_text(code)
        return "stand_in_compiler"

    return make


def test_the_log_of_the_compiler_comes_back(child, tmp_path):
    module = child(
        "import json, sys\nr = json.loads(sys.argv[1])\nprint(r['device'], r['provider']['a'], file=sys.stderr)\nopen(r['target'], 'w').close()"
    )
    assert rtx_compile.compile_in_process(tmp_path / "s", tmp_path / "t", 3, {"a": "b"}, Task(), module) == ["3 b\n"]
    assert (tmp_path / "t").exists()


def test_a_compiler_that_fails_says_why(child, tmp_path):
    module = child("raise ValueError('Error: no kernel for conv_3')")
    with pytest.raises(EngineError, match="cannot compile this network: ValueError: Error: no kernel for conv_3"):
        rtx_compile.compile_in_process(tmp_path / "s", tmp_path / "t", 0, {}, Task(), module)


def test_a_build_is_stopped_by_its_task(child, tmp_path):
    module, task = child("import time\ntime.sleep(60)"), Task()
    threading.Timer(0.5, task.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        rtx_compile.compile_in_process(tmp_path / "s", tmp_path / "t", 0, {}, task, module)
    assert time.monotonic() - began < 10


def test_the_child_compiles_for_the_device_that_was_chosen(monkeypatch, tmp_path):
    import onnxruntime as ort

    made = {}

    class Compiler:
        def __init__(self, options, source, embed_compiled_data_into_model):
            made.update(options=options, source=source, embedded=embed_compiled_data_into_model)

        def compile_to_file(self, target):
            made["target"] = target

    # The real class has these parameters; a version without them must fail here.
    import inspect

    assert {"sess_options", "input_model_path_or_bytes", "embed_compiled_data_into_model"} <= set(
        inspect.signature(ort.ModelCompiler).parameters
    )
    monkeypatch.setattr(ort, "ModelCompiler", Compiler)
    monkeypatch.setattr(ort, "set_default_logger_severity", lambda level: made.update(level=level))
    monkeypatch.setattr(rtx_compile, "devices", lambda: ["first", "second"])
    monkeypatch.setattr(
        rtx_compile, "session_options", lambda o, device, provider: SimpleNamespace(device=device, provider=provider)
    )
    rtx_compile.compile_network({"source": "s", "target": "t", "device": 1, "provider": {"a": "b"}})
    assert made["options"].device == "second" and made["options"].log_severity_level == 0 and made["level"] == 0
    assert (made["source"], made["target"], made["embedded"]) == ("s", "t", True)
