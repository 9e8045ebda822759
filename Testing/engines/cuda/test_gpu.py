"""The CUDA layer and the sliding window on the GPU. Most of it needs an NVIDIA GPU and skips where there is none."""

from __future__ import annotations

import ast
import ctypes
import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from gpu_stand_in import ENUMERATIONS, FUNCTIONS, ContextDriver
from MedQuantINT8Lib.engines.cache import cache_root
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import interop as gpu_arrays
from MedQuantINT8Lib.engines.cuda.graph_capture import CapturedGraph
from MedQuantINT8Lib.engines.cuda.pipeline import DevicePipeline
from MedQuantINT8Lib.errors import Cancelled, DependencyError, EngineError
from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, slide
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models.spec import Window
from MedQuantINT8Lib.progress import Task
from places import LIBRARY
from pointwise import POINTWISE, Lopsided, Pointwise, mirrored, needs_gpu, on_the_processor


@pytest.fixture(scope="module")
def gpu():
    with cuda.Gpu() as made:
        yield made


def test_calls_that_fail_say_what_was_tried_and_what_to_do():
    class Code(int):
        name = "CUDA_ERROR_ILLEGAL_ADDRESS"

    class Full(int):
        name = "CUDA_ERROR_OUT_OF_MEMORY"

    assert (
        cuda.checked((0,), "do it") is None
        and cuda.checked((0, 5), "do it") == 5
        and cuda.checked((0, 5, 6), "do it") == (5, 6)
    )
    with pytest.raises(cuda.GpuError, match=r"could not copy to the GPU: illegal address\..*driver"):
        cuda.checked((Code(700),), "copy to the GPU")
    with pytest.raises(cuda.GpuMemoryError, match=r"not enough free memory to hold 5 MB more\..*smaller batch"):
        cuda.checked((Full(2),), "hold 5 MB more")


def test_the_gpu_is_chosen_by_number_or_by_free_memory(monkeypatch):
    known = [
        cuda.GpuInfo(0, "Old", (7, 5), 1 << 30),
        cuda.GpuInfo(1, "Small", (8, 6), 1 << 30),
        cuda.GpuInfo(2, "Large", (9, 0), 1 << 34),
    ]
    monkeypatch.setattr(cuda, "gpus", lambda: known)
    monkeypatch.setattr(cuda, "free_memory", lambda index: {0: 99, 1: 7, 2: 5}[index])
    assert cuda.choose_gpu("gpu").name == "Small" and cuda.choose_gpu("gpu:2").name == "Large"
    with pytest.raises(EngineError, match=r"no GPU number 7.*gpu:1 Small"):
        cuda.choose_gpu("gpu:7")
    with pytest.raises(EngineError, match=r"compute capability 7\.5\) is too old"):
        cuda.choose_gpu("gpu:0")
    monkeypatch.setattr(cuda, "gpus", list)
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        cuda.choose_gpu("gpu")


def test_without_cuda_python_the_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DependencyError, match="pip install cuda-python"):
        cuda.bindings()


def test_contiguity_is_looked_at():
    assert gpu_arrays._contiguous((2, 3, 4), (12, 4, 1)) and gpu_arrays._contiguous((1, 3), (999, 1))
    assert not gpu_arrays._contiguous((2, 3), (1, 2))


def test_where_an_array_lies_is_asked():
    torch = pytest.importorskip("torch")
    assert not gpu_arrays.is_on_gpu(np.zeros(3)) and not gpu_arrays.is_on_gpu(torch.zeros(3))
    gpu = SimpleNamespace(info=SimpleNamespace(index=0))
    with pytest.raises(EngineError, match="another device than GPU 0"):
        gpu_arrays._from_dlpack(gpu, torch.zeros(2, 3).__dlpack__())


def test_a_capsule_of_dlpack_is_read(monkeypatch):
    torch = pytest.importorskip("torch")
    # A tensor of the processor, taken for one of the GPU: the struct is the same.
    monkeypatch.setattr(gpu_arrays, "_CUDA_DEVICE", 1)
    gpu = SimpleNamespace(info=SimpleNamespace(index=0))
    for tensor in (torch.arange(24, dtype=torch.int16).reshape(2, 3, 4), torch.rand(5, 6)[2:]):
        buffer = gpu_arrays._from_dlpack(gpu, tensor.__dlpack__())
        assert buffer.pointer == tensor.data_ptr() and buffer.shape == tuple(tensor.shape)
        assert buffer.dtype == tensor.numpy().dtype and buffer.nbytes == tensor.numpy().nbytes
    with pytest.raises(EngineError, match="not contiguous"):
        gpu_arrays._from_dlpack(gpu, torch.rand(4, 5).T.__dlpack__())
    with pytest.raises(EngineError, match="type that is not known"):
        gpu_arrays._from_dlpack(gpu, torch.zeros(3, dtype=torch.bfloat16).__dlpack__())


@needs_gpu
def test_arrays_go_up_and_come_back(gpu):
    stream, rng = gpu.stream(), np.random.default_rng(0)
    for dtype in (np.float32, np.int16, np.uint8, np.float16):
        array = (rng.normal(size=(3, 7, 5)) * 50).astype(dtype)
        buffer, pinned = gpu.allocate(array.shape, dtype), gpu.pinned(array.shape, dtype)
        buffer.upload(array, stream)
        buffer.download(pinned.array, stream)
        stream.synchronize()
        assert np.array_equal(pinned.array, array)
        buffer.free()
        pinned.free()
    stream.free()


@needs_gpu
def test_a_kernel_that_does_not_compile_is_shown(gpu):
    with pytest.raises(cuda.GpuError, match="does not compile for sm_.*undefined_thing"):
        gpu.kernels('extern "C" __global__ void f() { undefined_thing(); }', ["f"])


@needs_gpu
def test_binaries_are_kept(gpu):
    gpu.kernels(POINTWISE, ["pointwise"])
    assert list((cache_root() / "kernels").glob("*.cubin"))


@needs_gpu
def test_a_graph_is_replayed_and_recorded_anew_when_something_changes(gpu):
    network = Pointwise(gpu, 2)
    stream = gpu.stream()
    first, second, out = (gpu.allocate((1, c, 4, 4, 4), np.float32) for c in (1, 1, 2))
    for value, buffer in ((1.0, first), (3.0, second)):
        buffer.upload(np.full(buffer.shape, value, np.float32), stream)
    current = [first]
    graph = CapturedGraph(gpu, stream, lambda s: network.enqueue(1, current[0], out, s))
    host = np.empty(out.shape, np.float32)

    def result():
        graph.launch((current[0].pointer, out.pointer))
        out.download(host, stream)
        stream.synchronize()
        return float(host[0, 0, 0, 0, 0])

    assert [result() for _ in range(3)] == [-1.0] * 3 and graph.captures == 1
    current[0] = second
    assert [result() for _ in range(3)] == [-9.0] * 3 and graph.captures == 2
    failing = CapturedGraph(gpu, stream, _fails_when_recorded())
    with pytest.raises(EngineError, match="while recording"):
        failing.launch("x")
    assert result() == -9.0
    graph.free()
    for buffer in (first, second, out):
        buffer.free()
    stream.free()


def _fails_when_recorded():
    calls = []

    def enqueue(stream):
        calls.append(1)
        if len(calls) == 2:
            raise EngineError("A fault while recording.")

    return enqueue


CASES = {
    "odd sizes": ((37, 61, 45), (16, 16, 16), 0.5),
    "smaller than a window": ((9, 40, 11), (16, 24, 16), 0.5),
    "long first axis": ((80, 33, 30), (16, 16, 16), 0.25),
    "long last axis": ((20, 33, 90), (16, 16, 24), 0.6),
    "one window": ((16, 16, 16), (16, 16, 16), 0.5),
}


def test_opening_a_gpu_does_not_ask_for_the_compiler():
    from MedQuantINT8Lib.engines.cuda.compiler import Compiler

    def missing():
        raise RuntimeError("Failed to dlopen libnvrtc.so.13")

    compiler = Compiler(SimpleNamespace(nvrtcVersion=missing), (9, 0))
    assert compiler.binaries([]) == []
    with pytest.raises(DependencyError, match="pip install nvidia-cuda-nvrtc"):
        compiler.binary("extern")


@pytest.fixture
def contexts(monkeypatch):
    driver = ContextDriver()
    monkeypatch.setattr(cuda, "bindings", lambda: (driver, None))
    return driver


def test_an_engine_that_is_closed_does_not_take_the_gpu_from_the_one_beside_it(contexts):
    first, second = cuda.Gpu(), cuda.Gpu()
    second.close()
    assert first.stream() and first.event()
    other = cuda.Gpu(1)
    first.close()
    assert contexts.current == 101 and contexts.holders == {0: 0, 1: 1}
    other.close()
    assert contexts.current == 0
    # Of another device than the one that is in use.
    first, other = cuda.Gpu(), cuda.Gpu(1)
    first.enter()
    other.close()
    assert contexts.current == 100
    first.close()


def test_a_pipeline_goes_on_when_another_engine_was_closed_and_in_another_thread(contexts):
    gpu, calls = cuda.Gpu(), []
    pipeline = DevicePipeline(
        gpu, lambda count, source, target, stream: calls.append(count), (2, 1, 4, 4, 4), (2, 3, 4, 4, 4)
    )
    batch = np.zeros((2, 1, 4, 4, 4), np.float32)
    pipeline.submit(batch)
    pipeline.collect()
    # Opened later, it is the one in use; when it goes, none is.
    cuda.Gpu(1).close()
    assert contexts.current == 0
    # The second set of buffers has not been recorded yet.
    pipeline.submit(batch)
    assert pipeline.collect().shape == (2, 3, 4, 4, 4)
    cuda.Gpu(1).close()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipeline.submit, batch[:1]).result()
    pipeline.collect()
    assert calls == [2, 2, 2, 2, 1, 1]
    gpu.enter()
    pipeline.close()
    gpu.close()


class StandInNvrtc:
    """Compiles by turning letters round; "slow" waits until it is told to go on, "wrong" does not compile."""

    def __init__(self):
        self.compiled, self.go_on = [], threading.Event()

    def nvrtcVersion(self):
        return 0, 13, 0

    def nvrtcCreateProgram(self, source, *_):
        return 0, source

    def nvrtcCompileProgram(self, program, *_):
        if program == b"slow":
            assert self.go_on.wait(10)
        self.compiled.append(program)
        return (int(program == b"wrong"),)

    def nvrtcGetProgramLogSize(self, program):
        return 0, 8

    def nvrtcGetProgramLog(self, program, log):
        """Nothing to say."""

    def nvrtcGetCUBINSize(self, program):
        return 0, len(program)

    def nvrtcGetCUBIN(self, program, into):
        ctypes.memmove(into, program[::-1], len(program))
        return (0,)

    def nvrtcDestroyProgram(self, program):
        return (0,)


def test_what_was_begun_is_compiled_once_and_what_nobody_asks_for_is_given_up(monkeypatch, tmp_path):
    from MedQuantINT8Lib.engines.cuda import compiler as gpu_compiler

    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_compiler.os, "cpu_count", lambda: 1)
    nvrtc = StandInNvrtc()
    compiler = gpu_compiler.Compiler(nvrtc, (9, 0))
    compiler.begin(["one", "two"])
    assert compiler.binaries(["two", "one", "three"]) == [b"owt", b"eno", b"eerht"]
    assert sorted(nvrtc.compiled) == [b"one", b"three", b"two"]
    # One thread: what comes after "slow" is not begun when everything is given up.
    compiler.begin(["slow", "never"])
    threading.Timer(0.2, nvrtc.go_on.set).start()
    compiler.stop()
    assert b"never" not in nvrtc.compiled
    with pytest.raises(cuda.GpuError, match="does not compile"):
        compiler.binaries(["wrong", "four", "five"])
    compiler.warm_up()
    assert compiler.binaries(["four"]) == [b"ruof"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("compiler")]


@needs_gpu
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_labels_as_on_the_processor(gpu, case, dtype, batch):
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow, Intensity

    shape, patch, overlap = CASES[case]
    window = Window(patch, overlap=overlap)
    plan = plan_windows(shape, window, patch)
    volume = np.random.default_rng(1).integers(-500, 3500, (1, *shape)).astype(dtype)
    intensity = Intensity(-200, 3000, 0.001, 0.1)
    network = Pointwise(gpu, 4)
    prepared = (
        np.clip(volume.astype(np.float32), np.float32(-200), np.float32(3000)) * np.float32(0.001) + np.float32(0.1)
    ).astype(np.float32)
    values = np.array([0, 5, 2, 300], np.uint16)
    expected = on_the_processor(prepared, network, plan, window, values)
    runner = GpuSlidingWindow(gpu, network, 1, 4, plan, window, batch)
    found = runner.run(volume, Reduction(values), intensity)
    again = runner.run(volume, Reduction(values), intensity)
    runner.close()
    assert np.array_equal(found, again) and set(np.unique(found)) <= {0, 5, 2, 300}
    # Sums of windows are rounded in another order: only exact ties of two classes can fall to the other side.
    assert (found != expected).mean() <= 1e-4


@needs_gpu
def test_regions_of_probabilities(gpu):
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow

    window = Window((16, 16, 16), overlap=0.5)
    plan = plan_windows((30, 41, 22), window, (16, 16, 16))
    volume = np.random.default_rng(2).normal(size=(1, 30, 41, 22)).astype(np.float32)
    network = Pointwise(gpu, 3)
    values = np.array([1, 2, 3], np.uint16)
    expected = on_the_processor(volume, network, plan, window, values, 0.4)
    runner = GpuSlidingWindow(gpu, network, 1, 3, plan, window)
    found = runner.run(volume, Reduction(values, 0.4))
    runner.close()
    assert (found != expected).mean() <= 1e-4 and len(np.unique(found)) == 4


@needs_gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_mirrored_windows_are_averaged(gpu, batch):
    from types import SimpleNamespace

    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
    from MedQuantINT8Lib.inference.mirroring import flips_along

    window = Window((16, 8, 12), overlap=0.5)
    plan = plan_windows((30, 41, 22), window, (16, 8, 12))
    volume = np.random.default_rng(2).normal(1, 1, (1, 30, 41, 22)).astype(np.float32)
    network, values = Lopsided(gpu, 3), np.array([1, 2, 3], np.uint16)
    expected = on_the_processor(
        volume, SimpleNamespace(classes=3, infer=mirrored(network, (0, 1, 2))), plan, window, values
    )
    runner = GpuSlidingWindow(gpu, network, 1, 3, plan, window, batch, flips_along((0, 1, 2)))
    labels = runner.run(volume, Reduction(values))
    runner.close()
    once = on_the_processor(volume, network, plan, window, values)
    assert (labels != expected).mean() <= 1e-3 and (labels != once).mean() > 0.01


def small(gpu, batch=2):
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow

    window = Window((16, 16, 16), overlap=0.5)
    plan = plan_windows((40, 40, 40), window, (16, 16, 16))
    volume = np.random.default_rng(3).normal(1, 1, (1, 40, 40, 40)).astype(np.float32)
    network = Pointwise(gpu, 3)
    runner = GpuSlidingWindow(gpu, network, 1, 3, plan, window, batch)
    return runner, network, volume, Reduction(np.arange(3, dtype=np.uint16))


@needs_gpu
def test_a_run_that_fails_or_is_cancelled_leaves_everything_usable(gpu):
    runner, network, volume, reduction = small(gpu)
    expected = runner.run(volume, reduction)
    network.fail_at = network.calls + 5
    with pytest.raises(EngineError, match="network failed"):
        runner.run(volume, reduction)
    assert np.array_equal(runner.run(volume, reduction), expected)
    task = Task(lambda event: task.cancel() if event.done > 10 else None)
    with pytest.raises(Cancelled):
        runner.run(volume, reduction, task=task)
    assert np.array_equal(runner.run(volume, reduction), expected)
    runner.close()


@needs_gpu
def test_the_batch_shrinks_until_it_fits(gpu, monkeypatch):
    real = gpu.allocate
    limit = 6 * 16**3 * 4 * 3

    def allocate(shape, dtype):
        if len(shape) == 5 and int(np.prod(shape)) * np.dtype(dtype).itemsize > limit:
            raise cuda.GpuMemoryError("no room")
        return real(shape, dtype)

    monkeypatch.setattr(gpu, "allocate", allocate)
    runner, _, volume, reduction = small(gpu, 32)
    assert runner.batch == 4 and runner.run(volume, reduction).any()
    runner.close()
    monkeypatch.undo()
    free = gpu.free_bytes
    with pytest.raises(cuda.GpuMemoryError):
        gpu.allocate((free + (1 << 30),), np.uint8)
    assert small(gpu)[0].run(volume, reduction).any()


@needs_gpu
@pytest.mark.slow
def test_a_thousand_runs_take_no_memory_and_agree(gpu):
    runner, _, volume, reduction = small(gpu)
    expected = runner.run(volume, reduction)
    before = gpu.free_bytes
    for _ in range(1000):
        assert np.array_equal(runner.run(volume, reduction), expected)
    assert gpu.free_bytes >= before - (1 << 21)
    runner.close()


@needs_gpu
def test_a_volume_of_torch_that_is_on_the_gpu_is_not_copied(gpu):
    torch = pytest.importorskip("torch")
    runner, _, volume, reduction = small(gpu)
    expected = runner.run(volume, reduction)
    stream = gpu.stream()
    # Made on torch's own stream and handed over at once: DLPack orders the two.
    there = torch.from_numpy(volume).cuda() + 0
    assert gpu_arrays.borrowed(gpu, there, stream).pointer == there.data_ptr()
    assert np.array_equal(runner.run(there, reduction), expected)
    assert np.array_equal(runner.run((there * 2) / 2, reduction), expected)
    with pytest.raises(EngineError, match="not contiguous"):
        runner.run(there.transpose(1, 2), reduction)

    class Interface:
        __cuda_array_interface__ = there.__cuda_array_interface__

    torch.cuda.synchronize()
    assert np.array_equal(runner.run(Interface(), reduction), expected)
    stream.free()
    runner.close()


@needs_gpu
def test_batches_overlap_and_come_back_in_order(gpu):
    network = Pointwise(gpu, 3)
    pipeline = DevicePipeline(gpu, network.enqueue, (2, 1, 8, 8, 8), (2, 3, 8, 8, 8))
    assert pipeline.ahead == 1
    rng = np.random.default_rng(4)
    batches = [rng.normal(size=(2 if n != 3 else 1, 1, 8, 8, 8)).astype(np.float32) for n in range(7)]
    expected, found = [network.infer(batch) for batch in batches], []
    for n, batch in enumerate(batches):
        given = batch.copy()
        pipeline.submit(given)
        given[:] = np.nan
        if n:
            found.append(pipeline.collect().copy())
    found.append(pipeline.collect().copy())
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    network.fail_at = network.calls + 1
    pipeline.submit(batches[0])
    with pytest.raises(EngineError, match="network failed"):
        pipeline.submit(batches[3])
    pipeline.drain()
    network.fail_at = None
    pipeline.submit(batches[1])
    assert np.array_equal(pipeline.collect(), expected[1])
    pipeline.close()


@needs_gpu
def test_the_window_of_the_processor_runs_ahead_of_its_blending(gpu):
    window = Window((16, 16, 16), overlap=0.5)
    plan = plan_windows((37, 40, 45), window, (16, 16, 16))
    volume = np.random.default_rng(5).normal(size=(1, 37, 40, 45)).astype(np.float32)
    network = Pointwise(gpu, 3)
    values = np.arange(3, dtype=np.uint16)
    expected = on_the_processor(volume, network, plan, window, values)
    for batch in (1, 4):
        pipeline = DevicePipeline(gpu, network.enqueue, (batch, 1, 16, 16, 16), (batch, 3, 16, 16, 16))
        labels = np.zeros(volume.shape[1:], np.uint16)

        def sink(start, block, labels=labels):
            labels[tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))] = block.argmax(0)

        slide(volume, pipeline, sink, SlidingWindow(plan, window, 3, batch_size=batch))
        assert np.array_equal(labels, expected)
        pipeline.close()


@needs_gpu
def test_one_set_of_buffers_is_enough(gpu, monkeypatch):
    real, made = gpu.allocate, []

    def allocate(shape, dtype):
        made.append(shape)
        if len(made) == 4:
            raise cuda.GpuMemoryError("no room")
        return real(shape, dtype)

    before = len(gpu._buffers)
    monkeypatch.setattr(gpu, "allocate", allocate)
    network = Pointwise(gpu, 3)
    made.clear()
    pipeline = DevicePipeline(gpu, network.enqueue, (1, 1, 8, 8, 8), (1, 3, 8, 8, 8))
    assert pipeline.ahead == 0
    pipeline.submit(np.ones((1, 1, 8, 8, 8), np.float32))
    assert np.array_equal(pipeline.collect(), network.infer(np.ones((1, 1, 8, 8, 8), np.float32)))
    pipeline.close()
    assert len(gpu._buffers) <= before


def test_what_to_install_is_told_for_each_gpu(monkeypatch):
    from MedQuantINT8Lib.engines.cuda import setup_hints as gpu_advice

    monkeypatch.setattr(gpu_advice, "has_driver", lambda: False)
    assert "no NVIDIA GPU" in gpu_advice.advice_for_gpus()[0] and gpu_advice.gpu_names() == []
    monkeypatch.setattr(gpu_advice, "has_driver", lambda: True)
    monkeypatch.setattr(gpu_advice.importlib.util, "find_spec", lambda name: None)
    assert "pip install tensorrt cuda-python" in gpu_advice.advice_for_gpus()[0]
    # Where the tests run on a GPU the engine can run; here none can.
    monkeypatch.setattr(gpu_advice, "backend", lambda name: SimpleNamespace(unavailable=lambda: "not installed"))
    known = [
        cuda.GpuInfo(0, "Turing", (7, 5), 8 << 30),
        cuda.GpuInfo(1, "Ada", (8, 9), 24 << 30),
        cuda.GpuInfo(2, "Hopper", (9, 0), 80 << 30),
    ]
    monkeypatch.setattr(cuda, "gpus", lambda: known)
    monkeypatch.setattr(gpu_advice.importlib.util, "find_spec", lambda name: object() if name == "cuda" else None)
    old, ada, hopper = gpu_advice.advice_for_gpus()
    assert (
        "too old" in old
        and "TensorRT for RTX" in ada
        and "does not take" in hopper
        and "pip install tensorrt" in hopper
    )
    assert [name for name, _ in gpu_advice.gpu_names()] == ["gpu:1", "gpu:2"]


class OnGpu:
    """An engine as the segment road sees one, whose network is on the GPU (and can be computed on the processor)."""

    def __init__(self, gpu, network):
        self.gpu, self.gpu_network, self.infer = gpu, network, network.infer

    def describe(self): ...

    def close(self): ...


@needs_gpu
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("resample", [None, "logits", "probabilities"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_segment_road_takes_the_gpus_window_and_gives_the_same(gpu, activation, resample, inclusive, monkeypatch):
    from dataclasses import replace

    from MedQuantINT8Lib.imaging.phantom import phantom_spec
    from MedQuantINT8Lib.imaging.volume import Volume
    from MedQuantINT8Lib.inference import gpu_sliding_window as gpu_window
    from MedQuantINT8Lib.inference import segmenter
    from MedQuantINT8Lib.models.spec import Label, Normalization, Output

    labels = tuple(Label(v, f"s{v}", c) for v, c in ((1, 1), (7, 2)))
    spec = replace(
        phantom_spec(),
        geometry=replace(phantom_spec().geometry, spacing=None),
        normalization=(Normalization("window", low=0, high=200),),
        labels=labels if activation == "softmax" else (Label(4, "s4", 0), *labels),
        output=Output(activation, threshold=0.4, resample=resample, inclusive=inclusive),
        window=Window((16, 16, 16), overlap=0.5),
    )
    volume = Volume(np.random.default_rng(5).integers(0, 200, (1, 40, 33, 21)).astype(np.int16), np.eye(4), "noise")
    engine = OnGpu(gpu, Pointwise(gpu, 3))
    there = segmenter.segment_volume(volume, spec, lambda _input: engine)
    plain = SimpleEngine(engine.infer)
    here = segmenter.segment_volume(volume, spec, lambda _input: plain)
    assert any("on the GPU" in note for note in there.notes) and not any("on the GPU" in note for note in here.notes)
    assert (
        there.labels.dtype == here.labels.dtype and (there.labels != here.labels).mean() <= 1e-4 and there.labels.any()
    )

    def full(*_arguments, **_options):
        raise cuda.GpuMemoryError("The GPU has not enough free memory to hold scores.")

    monkeypatch.setattr(gpu_window, "GpuSlidingWindow", full)
    back = segmenter.segment_volume(volume, spec, lambda _input: engine)
    assert np.array_equal(back.labels, here.labels) and any("blended on the processor" in note for note in back.notes)


class SimpleEngine:
    def __init__(self, infer):
        self.infer = infer

    def describe(self): ...

    def close(self): ...


def test_a_driver_that_is_too_old_is_told(monkeypatch):
    from types import SimpleNamespace

    for code, error, words in ((35, cuda.GpuError, "too old"), (999, cuda.GpuError, "could not start")):
        monkeypatch.setattr(cuda, "bindings", lambda code=code: (SimpleNamespace(cuInit=lambda flags: (code,)), None))
        with pytest.raises(error, match=words):
            cuda.gpus()
    monkeypatch.setattr(cuda, "bindings", lambda: (SimpleNamespace(cuInit=lambda flags: (100,)), None))
    assert cuda.gpus() == []


def driver_calls():
    """Of the library's own text: the calls of the driver with the number of their arguments, and the members of enumerations."""
    calls, members = set(), set()
    for path in (LIBRARY / "MedQuantINT8Lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if re.fullmatch(r"cu[A-Z]\w+", node.func.attr) and not any(
                    isinstance(a, ast.Starred) for a in node.args
                ):
                    calls.add((node.func.attr, len(node.args)))
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"CU_[A-Z0-9_]+", node.attr):
                members.add(node.attr)
    return calls, members


def test_the_real_bindings_have_every_call_that_is_made_of_them():
    calls, members = driver_calls()
    assert len(calls) > 30 and {name: FUNCTIONS.get(name) for name, _ in calls} == dict(calls)
    assert members and members <= {name for one in ENUMERATIONS.values() for name in vars(one)}


def test_the_stand_in_refuses_what_the_real_bindings_do_not_have():
    driver = ContextDriver()
    with pytest.raises(AttributeError, match="has no cuMemAlocate"):
        driver.cuMemAlocate(8)
    with pytest.raises(TypeError, match="cuStreamSynchronize takes 1 arguments, not 2"):
        driver.cuStreamSynchronize(1, 2)
    with pytest.raises(AttributeError):
        driver.CUstream_flags.CU_STREAM_BLOCKING  # noqa: B018


def test_the_list_of_the_bindings_is_true_of_those_installed():
    driver = pytest.importorskip("cuda.bindings.driver")
    for name, count in FUNCTIONS.items():
        assert len(inspect.signature(getattr(driver, name)).parameters) == count, name
    for name, members in ENUMERATIONS.items():
        assert set(vars(members)) <= set(getattr(driver, name).__members__), name
