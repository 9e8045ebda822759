"""Windows of one scan spread over several GPUs: labels are those of one, bit by bit. Over a stand-in driver whose kernels run on the processor."""

from __future__ import annotations

import _thread
import argparse
import ctypes
import itertools
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.cli import arguments, pool_options
from MedQuantINT8Lib.cohort.segment_work import SegmentSettings, SegmentWork
from MedQuantINT8Lib.devices import check_device, single_devices
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import transfers
from MedQuantINT8Lib.engines.cuda.device import DeviceBuffer, GpuMemoryError
from MedQuantINT8Lib.engines.cuda.several import gpus_of
from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
from MedQuantINT8Lib.errors import Cancelled, EngineError, InputError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume_files import ReadOptions
from MedQuantINT8Lib.inference import gpu_road_check, gpu_spread, segmenter
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.gpu_chunks import chunks_of
from MedQuantINT8Lib.inference.gpu_preparation import deferred
from MedQuantINT8Lib.inference.gpu_road_check import CheckEngine, ProcessVerdicts, check_patch_size, check_volume
from MedQuantINT8Lib.inference.gpu_team import GpuTeam
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.spread_engine import SpreadEngine
from MedQuantINT8Lib.inference.windows import plan_windows, window_starts
from MedQuantINT8Lib.models.spec import Window
from MedQuantINT8Lib.progress import Task
from road_models import ROADS, road_spec
from scans import GEOMETRIES
from task_packages import bands, spotted


class OwnMemoryKernel:
    """A kernel that may look at its own GPU's memory alone, as where GPUs have no link."""

    def __init__(self, driver, gpu, kernel):
        self._driver, self._gpu, self._kernel = driver, gpu, kernel

    def __call__(self, grid, block, stream, *arguments):
        assert self._driver.current == self._gpu.context, "another GPU is current"
        for argument in arguments:
            if isinstance(argument, DeviceBuffer):
                assert argument.gpu.info.index == self._gpu.info.index
            elif isinstance(argument, ctypes.c_void_p) and argument.value:
                assert self._driver.owner(argument.value) == self._gpu.info.index
        self._kernel(grid, block, stream, *arguments)


@pytest.fixture
def driver(monkeypatch):
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(gpu_road_check, "_OF_THIS_PROCESS", ProcessVerdicts())
    driver = gpu_computing.install_kernels(monkeypatch, count=3)
    real = cuda.Gpu.kernels
    monkeypatch.setattr(
        cuda.Gpu,
        "kernels",
        lambda gpu, source, names: {n: OwnMemoryKernel(driver, gpu, k) for n, k in real(gpu, source, names).items()},
    )
    return driver


class Engine(CheckEngine):
    """The network of the check, with counted calls."""

    def __init__(self, gpu, dtype, spec, averages=False):
        super().__init__(gpu, dtype, spec, averages)
        self.windows, self.on_processor, self.fail_at = 0, 0, None
        self.road_verdicts = ProcessVerdicts()

    def enqueue_share(self, share, batch, source, target, stream):
        self.windows += batch
        if self.fail_at is not None and self.windows >= self.fail_at:
            raise EngineError("The network failed.")
        super().enqueue_share(share, batch, source, target, stream)

    def infer(self, batch):
        self.on_processor += len(batch)
        return super().infer(batch)


def run(engines, volume, spec, task=None, patch=None, **options):
    """Segment with an engine on each GPU."""
    network_input = preprocess(volume, spec)
    for engine in engines:
        engine.look_at(network_input.data)
    patch = patch or check_patch_size(network_input.data.shape[1:], spec)
    spec = replace(spec, window=replace(spec.window, patch_size=patch))
    engine = engines[0] if len(engines) == 1 else SpreadEngine(engines)
    if engine.gpu_network is not None:
        network_input = deferred(volume, spec, preprocess)
    options = SegmentationOptions(**{"batch": 2, **options})
    return segmenter.segment(network_input, spec, engine, options, task)


def opened(numbers, spec, dtype="float16", averages=False):
    return [Engine(cuda.Gpu(number), dtype, spec, averages) for number in numbers]


def closed(engines):
    for engine in engines:
        engine.gpu.enter()
        engine.close()
        engine.gpu.close()


@pytest.mark.parametrize("name", list(ROADS))
def test_labels_are_those_of_one_gpu(driver, name):
    spec = road_spec(name)
    volume = replace(check_volume(spec), ijk_to_ras=GEOMETRIES["oblique and flipped"])
    one = opened([1], spec)
    expected = run(one, volume, spec)
    closed(one)
    engines = opened([0, 2], spec)
    driver.calls.clear()
    result = run(engines, volume, spec)
    closed(engines)
    assert np.array_equal(result.labels, expected.labels) and len(np.unique(result.labels)) >= 3
    note = next(note for note in result.notes if "spread over" in note)
    shares = [engine.windows for engine in engines]
    assert note == f"windows were spread over gpu:0, gpu:2: {shares[0]} and {shares[1]}" and min(shares) > 0
    assert 0 <= shares[1] - shares[0] <= max(1, 0.15 * shares[1]) and sum(shares) == one[0].windows == result.windows
    assert "cuMemcpyPeerAsync" in driver.calls and not driver.memory
    assert not any(note.startswith("warning") for note in result.notes), result.notes


@pytest.mark.parametrize("numbers", [(0, 1), (0, 0, 2)], ids=str)
@pytest.mark.parametrize(
    ("name", "by_planes"), [("cropped, many labels", True), ("MONAI's", False), ("regions by window", True)]
)
def test_planes_of_a_large_map_come_down_from_the_gpu_that_makes_them(driver, monkeypatch, name, by_planes, numbers):
    spec = road_spec(name)
    volume = check_volume(spec)
    if name == "regions by window":
        # In network space; the first axis is the longest.
        volume = replace(volume, data=np.concatenate([volume.data] * 2, axis=1))
        spec = replace(spec, geometry=replace(spec.geometry, spacing=None), output=replace(spec.output, thresholds=()))
    one = opened([1], spec)
    expected = run(one, volume, spec)
    closed(one)
    shares, real = [], gpu_spread.SpreadSlidingWindow._bring_down
    monkeypatch.setattr(transfers, "LARGE", 1)
    monkeypatch.setattr(
        gpu_spread.SpreadSlidingWindow, "_bring_down", lambda *how: shares.append(how[1].number) or real(*how)
    )
    engines = opened(numbers, spec)
    result = run(engines, volume, spec)
    closed(engines)
    assert np.array_equal(result.labels, expected.labels) and len(np.unique(result.labels)) >= 3
    assert sorted(shares) == ([] if by_planes else list(range(len(numbers))))
    assert not driver.memory


@pytest.mark.parametrize("large", [1, 1 << 40, "whole"], ids=["rows come down", "merged", "large as a whole"])
@pytest.mark.parametrize("numbers", [(0, 1), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("name", ["cropped, many labels", "MONAI's", "regions by window", "softmax"])
def test_strips_of_planes_give_the_labels_of_one_gpu(driver, monkeypatch, name, numbers, large):
    spec = road_spec("MONAI's" if name == "softmax" else name)
    if name == "softmax":
        spec = replace(spec, geometry=replace(spec.geometry, spacing=None))
    volume = replace(check_volume(spec), ijk_to_ras=GEOMETRIES["oblique and flipped"])
    shape = preprocess(volume, spec).data.shape[1:]
    # Windows along each axis that can be dealt out evenly.
    overlap, placement, share = spec.window.overlap, spec.window.placement, len(numbers)
    patch = tuple(
        next(p for p in range(4, size) if len(window_starts(size, p, overlap, placement)) in (share, 2 * share))
        for size in shape
    )
    one = opened([1], spec)
    expected = run(one, volume, spec, patch=patch)
    closed(one)
    rows = []
    real = gpu_spread.SpreadSlidingWindow._strip_rows
    monkeypatch.setattr(gpu_spread.SpreadSlidingWindow, "_strip_rows", lambda *how: rows.append(real(*how)) or rows[-1])
    # Of a map that is large, a strip's rows need not be.
    monkeypatch.setattr(transfers, "LARGE", expected.labels.nbytes if large == "whole" else large)
    engines = opened(numbers, spec)
    result = run(engines, volume, spec, patch=patch)
    counts = [engine.windows for engine in engines]
    closed(engines)
    assert np.array_equal(result.labels, expected.labels) and len(np.unique(result.labels)) >= 3
    (rows,) = rows
    assert rows is not None and sum(counts) == one[0].windows and len(set(counts)) == 1
    # Only what reaches over a border is received.
    assert all(0 < len(row.received) < len(row.blended) for own in rows for row in own)
    assert not driver.memory


def test_strips_hold_mirrored_windows_where_a_gpu_has_the_memory(driver, monkeypatch):
    spec = road_spec("MONAI's")
    spec = replace(spec, mirroring=replace(spec.mirroring, axes=(0, 2)))
    volume = check_volume(spec)
    shape = preprocess(volume, spec).data.shape[1:]
    patch = tuple(next(p for p in range(4, n) if len(window_starts(n, p, 0.5, "monai")) in (2, 4)) for n in shape)
    one = opened([1], spec)
    expected = run(one, volume, spec, patch=patch, mirroring=True)
    closed(one)
    rows, real = [], gpu_spread.SpreadSlidingWindow._strip_rows
    monkeypatch.setattr(gpu_spread.SpreadSlidingWindow, "_strip_rows", lambda *how: rows.append(real(*how)) or rows[-1])
    monkeypatch.setattr(gpu_spread, "_MOST_STORED", 1_000_000)
    for share in (1 / 8, 0):
        monkeypatch.setattr(gpu_spread, "_STRIP_SHARE", share)
        engines = opened([0, 2], spec)
        result = run(engines, volume, spec, patch=patch, mirroring=True)
        closed(engines)
        assert np.array_equal(result.labels, expected.labels) and len(np.unique(result.labels)) >= 3
    assert rows[0] is not None and rows[1] is None and not driver.memory


NOT_RESAMPLED = {"softmax": "MONAI's", "regions": "regions by window"}


@pytest.mark.parametrize("numbers", [(0, 1, 2), (0, 0), (2, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("name", [*NOT_RESAMPLED, "labels brought back", "MONAI's"])
def test_any_number_of_gpus_and_one_that_is_opened_several_times(driver, name, numbers):
    spec = road_spec(NOT_RESAMPLED.get(name, name))
    if name in NOT_RESAMPLED:
        spec = replace(spec, geometry=replace(spec.geometry, spacing=None))
        if name == "regions":
            spec = replace(spec, output=replace(spec.output, thresholds=()))
    volume = check_volume(spec)
    one = opened([0], spec)
    expected = run(one, volume, spec)
    closed(one)
    engines = opened(numbers, spec)
    result = run(engines, volume, spec, batch=3)
    closed(engines)
    assert np.array_equal(result.labels, expected.labels) and len(np.unique(result.labels)) >= 3
    assert not any(engine.on_processor for engine in (*one, *engines)) and all(engine.windows for engine in engines)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_mirrored_windows_and_the_mean_of_several_networks(driver, dtype):
    spec = road_spec("regions by window")
    spec = replace(spec, mirroring=replace(spec.mirroring, axes=(0, 2)))
    labels = []
    for numbers in ([0], [0, 1]):
        engines = opened(numbers, spec, dtype, averages=True)
        labels.append(run(engines, check_volume(spec), spec, mirroring=True).labels)
        closed(engines)
    assert np.array_equal(*labels)
    assert not driver.memory


def test_scores_that_wait_are_bounded(driver, monkeypatch):
    """With room for few scores each GPU runs several chunks, in turn with the others."""
    spec = road_spec("cropped, many labels")
    one, engines = opened([0], spec), opened([0, 1], spec)
    expected = run(one, check_volume(spec), spec)
    kept = []
    real = gpu_spread.chunks_of
    monkeypatch.setattr(gpu_spread, "_MOST_STORED", 4_000_000)
    monkeypatch.setattr(gpu_spread, "chunks_of", lambda *a: kept.append(real(*a)) or kept[-1])
    result = run(engines, check_volume(spec), spec)
    assert len(kept[0]) > 2 and np.array_equal(result.labels, expected.labels)
    monkeypatch.setattr(gpu_spread, "_MOST_STORED", 1000)
    result = run(engines, check_volume(spec), spec)
    assert np.array_equal(result.labels, expected.labels)
    assert any(note.startswith("windows were not spread over gpu:0, gpu:1: The GPU has not") for note in result.notes)
    closed([*one, *engines])
    assert not driver.memory


def cancelled_in(stage):
    """A task that is cancelled when a stage has begun."""
    task = Task(lambda event: task.cancel() if event.stage == stage else None)
    return task


@pytest.mark.parametrize("numbers", [[0, 1], [0, 1, 2]], ids=["one after the other", "strips"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_run_that_fails_or_is_cancelled_on_one_gpu_ends_on_all(driver, failing, numbers):
    spec = road_spec("MONAI's")
    engines = opened(numbers, spec)
    expected = run(engines, check_volume(spec), spec)
    before = len(driver.memory)
    engines[failing].fail_at = engines[failing].windows + 3
    with pytest.raises(EngineError, match="network failed"):
        run(engines, check_volume(spec), spec)
    engines[failing].fail_at = None
    for stage in ("preprocessing", "segmenting"):
        with pytest.raises(Cancelled):
            run(engines, check_volume(spec), spec, cancelled_in(stage))
    assert len(driver.memory) == before
    assert np.array_equal(run(engines, check_volume(spec), spec).labels, expected.labels)
    closed(engines)
    assert not driver.memory


def test_a_gpu_without_room_leaves_it_to_the_first(driver, monkeypatch):
    spec = road_spec("MONAI's")
    engines = opened([0, 1], spec)
    expected = run(engines, check_volume(spec), spec)
    real = cuda.Gpu.allocate

    def allocate(gpu, shape, dtype):
        if gpu.info.index == 1 and int(np.prod(shape)) > 200_000:
            raise GpuMemoryError("The GPU has not enough free memory to hold scores.")
        return real(gpu, shape, dtype)

    monkeypatch.setattr(cuda.Gpu, "allocate", allocate)
    result = run(engines, check_volume(spec), spec)
    closed(engines)
    assert np.array_equal(result.labels, expected.labels) and not driver.memory
    assert any("not spread" in note for note in result.notes) and not engines[0].on_processor


def test_one_gpu_that_is_not_trusted_stops_all(driver, monkeypatch):
    spec = road_spec("MONAI's")
    engines = opened([0, 1], spec)
    engines[1].road_verdicts.read = lambda key: gpu_road_check.Verdict(0.5)
    result = run(engines, check_volume(spec), spec)
    closed(engines)
    assert any(note.startswith("warning") and "50 %" in note for note in result.notes)
    assert engines[0].on_processor


def test_batches_that_the_processor_blends_go_to_the_gpus_in_turn(driver):
    spec = road_spec("regions")
    nested = replace(spec, output=replace(spec.output, paint="nested"))
    one, engines = opened([0], nested), opened([0, 1], nested)
    expected, result = (run(some, check_volume(nested), nested) for some in (one, engines))
    assert np.array_equal(result.labels, expected.labels)
    assert abs(engines[0].on_processor - engines[1].on_processor) <= 2 and engines[1].on_processor
    closed([*one, *engines])


@pytest.mark.parametrize("gpus", [1, 2, 3, 5])
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_chunks_hold_every_window_once_in_the_order_of_blending(gpus, most):
    plan = plan_windows((40, 25, 31), Window((16, 16, 16), overlap=0.5), (16, 16, 16))
    flips = ((), (0,))
    chunks = chunks_of(plan, flips, gpus, most)
    assert len(chunks) % gpus == 0
    assert all(chunk.windows <= max(most, -(-2 * plan.count // len(chunks))) for chunk in chunks)
    windows = [window for chunk in chunks for part in chunk.parts for window in part.windows]
    assert windows == [(window, flip) for window in plan.windows() for flip in flips]
    planes = [part.finished for chunk in chunks for part in chunk.parts if part.finished is not None]
    assert planes[0][0] == 0 and planes[-1][1] == plan.shape[plan.order[0]]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(planes))
    for chunk in chunks:
        done = [part.finished[1] for one in chunks[: chunk.number] for part in one.parts if part.finished]
        assert chunk.finished == max(done, default=0)


def test_names_of_several_gpus(driver):
    assert [check_device(name) for name in ("gpu:0,1", "gpu:all", "gpu:12")] == ["gpu:0,1", "gpu:all", "gpu:12"]
    for name in ("gpu:0,", "gpu:0,0", "gpu:1,01", "gpu:all,1", "cpu:0,1", "gpu:0 1", "gpu:-1"):
        with pytest.raises(InputError):
            check_device(name)
    assert single_devices("gpu:2,0") == ["gpu:2", "gpu:0"] and single_devices("auto") == ["auto"]
    assert gpus_of("gpu:all") == ["gpu:0", "gpu:1", "gpu:2"] and gpus_of("gpu:2,0") == ["gpu:2", "gpu:0"]
    with pytest.raises(EngineError, match="no GPU number 7"):
        gpus_of("gpu:0,7")
    with pytest.raises(EngineError, match="One GPU is wanted"):
        cuda.choose_gpu("gpu:0,1")


def test_many_scans_get_a_worker_on_each(driver):
    def workers(*words):
        command = argparse.ArgumentParser()
        command.add_argument("--device", type=arguments.device, default="auto")
        pool_options.add_pool_options(command)
        return pool_options.worker_devices(command.parse_args(words))

    assert workers("--devices", "gpu:0,2") == workers("--device", "gpu:0,2") == ["gpu:0", "gpu:2"]
    assert workers("--devices", "gpu:1,gpu:0,cpu") == ["gpu:1", "gpu:0", "cpu"] and workers() == ["auto"]
    assert workers("--device", "gpu:all", "--workers", "4") == ["gpu:0", "gpu:1", "gpu:2", "gpu:0"]
    for words in (("--devices", "gpu:0,gpu:9"), ("--device", "gpu:9,0")):
        with pytest.raises(EngineError, match="no GPU number 9"):
            workers(*words)
    with pytest.raises(InputError, match="all GPUs, and a device by itself"):
        workers("--devices", "gpu:all,gpu:0")


def test_a_worker_of_many_scans_leaves_preprocessing_to_its_gpu(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    model = str(bands(tmp_path, "one", {"grey": 0.4}, spacing=2.0).folder)
    (tmp_path / "out").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(spotted().data[0]), str(tmp_path / "a.nrrd"))
    case = {"id": "a", "channels": [str(tmp_path / "a.nrrd")], "more_folders": [], "labels": "", "masks": []}
    records = {}
    for choice in (
        EngineChoice("cuda_int8", "fp16", device="gpu:1"),
        EngineChoice("onnxruntime", "fp32", device="cpu"),
    ):
        options = SegmentationOptions(check_ranges=False)
        settings = SegmentSettings(
            model, "", choice, options, ReadOptions(), str(tmp_path / "out"), f"{choice.name}.mha"
        )
        work = SegmentWork(settings)
        loaded = work.read(case, Task())
        assert (loaded.network_input is None) == (choice.name == "cuda_int8")
        records[choice.name] = work.finish(work.run(loaded, Task()), Task())
        work.close()
    labels = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / record["output"]))) for record in records.values()
    ]
    assert np.array_equal(*labels) and labels[0].any()
    assert any("brought to network space on the GPU" in note for note in records["cuda_int8"]["warnings"])
    assert all(record["seconds"]["preprocessing"] > 0 for record in records.values()) and not driver.memory
    # Another worker loads the engine, which is there by now, before its first case is read.
    loads, load = [], CudaInt8Backend.load
    monkeypatch.setattr(CudaInt8Backend, "load", lambda *how: loads.append(how) or load(*how))
    work = SegmentWork(replace(settings, choice=EngineChoice("cuda_int8", "fp16", device="gpu:1")))
    work.warm_up()
    assert len(loads) == 1
    work.run(work.read(case, Task()), Task())
    assert len(loads) == 1
    work.close()
    assert not driver.memory


def test_ctrl_c_in_a_program_that_uses_several_gpus_waits_until_all_have_ended(monkeypatch):
    gpu_computing.install(monkeypatch)
    gpus, ended = [cuda.Gpu(0), cuda.Gpu(1)], []
    # Where tests run in the background of a shell, Ctrl-C is ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work(member):
        member.team.meet()
        if member.number == 0:
            _thread.interrupt_main()
        try:
            for _ in range(2000):
                time.sleep(0.005)
                member.team.check()
        finally:
            time.sleep(0.05)
            ended.append(member.number)

    try:
        with pytest.raises(KeyboardInterrupt):
            GpuTeam(gpus).run(work)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert sorted(ended) == [0, 1]
    for gpu in gpus:
        gpu.close()
