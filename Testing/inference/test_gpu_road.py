"""Scores to labels on the scan's grid by the GPU's kernels, run on the processor over a stand-in driver of two GPUs, beside the processor's way."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import gpu_computing
import kernels_on_processor
import nvrtc_at_hand
from MedQuantINT8Lib.engines import cache
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import transfers
from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError
from MedQuantINT8Lib.errors import Cancelled, DependencyError, EngineError
from MedQuantINT8Lib.imaging.array_layout import ArrayLayout
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.spatial_steps import Cut, Turn
from MedQuantINT8Lib.imaging.volume import Grid, axis_map
from MedQuantINT8Lib.inference import gpu_kernels, gpu_road_check, gpu_sliding_window, segmenter
from MedQuantINT8Lib.inference.ensemble import MeanEngine
from MedQuantINT8Lib.inference.gpu_arrays import GpuArrays
from MedQuantINT8Lib.inference.gpu_mean import MeanNetwork
from MedQuantINT8Lib.inference.gpu_preparation import deferred
from MedQuantINT8Lib.inference.gpu_road import GpuRoad
from MedQuantINT8Lib.inference.gpu_road_check import CheckEngine, ProcessVerdicts, check_patch_size, check_volume
from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
from MedQuantINT8Lib.inference.score_reduction import BlendingMemory, ScorePath, ScoreReduction
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.shared_preprocessing import SharedPreprocessing
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models.spec import Geometry
from MedQuantINT8Lib.progress import Task
from road_models import ROADS, road_spec
from scans import GEOMETRIES


@pytest.fixture
def driver(monkeypatch):
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(gpu_road_check, "_OF_THIS_PROCESS", ProcessVerdicts())
    return gpu_computing.install_kernels(monkeypatch)


class Engine(CheckEngine):
    """The network of the check, with counted calls."""

    def __init__(self, gpu, dtype, spec, averages=False):
        super().__init__(gpu, dtype, spec, averages)
        self.on_gpu, self.on_processor, self.fail_at = 0, 0, None

    def enqueue_share(self, share, batch, source, target, stream):
        self.on_gpu += 1
        if self.on_gpu == self.fail_at:
            raise EngineError("The network failed.")
        super().enqueue_share(share, batch, source, target, stream)

    def infer(self, batch):
        self.on_processor += 1
        return super().infer(batch)


def run(engine, volume, spec, task=None, **options):
    network_input = preprocess(volume, spec)
    engine.look_at(network_input.data)
    patch = check_patch_size(network_input.data.shape[1:], spec)
    spec = replace(spec, window=replace(spec.window, patch_size=patch))
    if engine.gpu_network is not None:
        network_input = deferred(volume, spec, preprocess)
    return segmenter.segment(network_input, spec, engine, SegmentationOptions(batch=2, **options), task)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", list(ROADS))
def test_labels_on_the_scan_s_grid_are_the_processor_s(driver, name, dtype, monkeypatch):
    spec = road_spec(name)
    volume = replace(check_volume(spec), ijk_to_ras=GEOMETRIES["oblique and flipped"])
    # On one and on the other of two GPUs.
    with cuda.Gpu(int(dtype == "float16")) as gpu:
        engine = Engine(gpu, dtype, spec)
        there = run(engine, volume, spec)
        assert engine.on_gpu and not engine.on_processor
        how = "these brought to" if "brought back" in name else "scores resampled to"
        assert any(f"{how} the scan's grid, on the GPU" in note for note in there.notes), there.notes
        prepared = any("brought to network space on the GPU" in note for note in there.notes)
        assert prepared == (name != "turned last")
        # Added up in a ring, as where memory is short.
        monkeypatch.setattr(gpu_sliding_window, "fits", lambda *arguments: False)
        assert np.array_equal(run(engine, volume, spec).labels, there.labels)
        plain = Engine(gpu, dtype, spec)
        plain.gpu_network = None
        here = run(plain, volume, spec)
        assert plain.on_processor and not plain.on_gpu
    assert there.labels.dtype == here.labels.dtype and there.labels.shape == volume.data.shape[1:]
    assert len(np.unique(here.labels)) >= 3 and (there.labels != here.labels).mean() < 2e-4
    assert not driver.memory


def test_the_interpolation_is_the_processor_s_at_every_place_that_a_crop_leaves():
    """Labels of scores that are one voxel's own number say which voxel, and from which side."""
    grid = Grid((5, 6, 7), GEOMETRIES["sagittal"])
    steps = [Cut(grid, ((1, 5), (-2, 6), (3, 9)))]
    steps.append(Turn(steps[-1].target, axis_map(steps[-1].target, "PIR")))
    steps.append(Cut(steps[-1].target, ((0, 3), (1, 4), (-1, 5))))
    steps.append(Turn(steps[-1].target, axis_map(steps[-1].target, "LAS")))
    whole = np.arange(1, 1 + 5 * 6 * 7, dtype=np.int32).reshape(7, 6, 5)
    cut = whole
    for step in steps:
        cut = step.forward(cut)
    layout = ArrayLayout.of(grid.size, tuple(steps))
    assert tuple(axis.size for axis in layout.axes) == cut.shape[::-1] == steps[-1].target.size
    for order in ("KJI", "IJK"):
        first, steps_in_memory = layout.steps(order)
        axes, tensor = layout.along(order), cut if order == "KJI" else cut.swapaxes(0, 2)
        inside = np.zeros(tensor.shape, bool)
        for index in np.ndindex(*tensor.shape):
            if all(axis.low <= n < axis.high for n, axis in zip(index, axes, strict=True)):
                place = first + sum(n * step for n, step in zip(index, steps_in_memory, strict=True))
                assert whole.ravel()[place] == tensor[index]
                inside[index] = True
        # What a cut pads and another one leaves is outside as well.
        assert inside.any() and not tensor[~inside].any()


@pytest.mark.skipif(nvrtc_at_hand.library() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)], ids=str)
def test_the_kernels_compile_for_every_generation(capability, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    sources = [getattr(gpu_kernels, name)() for name in dir(gpu_kernels) if name.endswith("source")]
    binaries = nvrtc_at_hand.compiler(capability).binaries(sources)
    assert len(binaries) >= 3 and all(binary[:4] == b"\x7fELF" for binary in binaries)


@pytest.fixture
def verdicts():
    return ProcessVerdicts()


def with_verdicts(engine, verdicts):
    engine.road_verdicts = verdicts
    return engine


def test_a_gpu_is_compared_with_the_processor_once(driver, verdicts, monkeypatch):
    spec, compared = road_spec("MONAI's"), []
    real = gpu_road_check._compared
    monkeypatch.setattr(gpu_road_check, "_compared", lambda *a: compared.append(real(*a)) or compared[-1])
    with cuda.Gpu(0) as gpu:
        for _ in range(2):
            result = run(with_verdicts(Engine(gpu, "float32", spec), verdicts), check_volume(spec), spec)
            assert any("on the GPU" in note for note in result.notes)
        assert len(compared) == 1 and compared[0].difference < 2e-4 and not compared[0].doubt
        # Another type of scores, and another description of the model, are not what was compared.
        run(with_verdicts(Engine(gpu, "float16", spec), verdicts), check_volume(spec), spec)
        run(with_verdicts(Engine(gpu, "float32", spec), verdicts), check_volume(spec), road_spec("linear by centers"))
    assert len(compared) == 3


BROKEN = {
    "a share of the wrong neighbor": ("share[k] = share_w[w]", "share[k] = 1.0f - share_w[w]"),
    "planes that are not cleared": (
        "ring[c * depth * plane + place] = 0.0f",
        "ring[c * depth * plane + place] *= 0.5f",
    ),
    "weights that are not divided by": ("read[k] / weight,", "read[k],"),
    "kept scores that are not divided": ("total[k] / weight_sum", "total[k]"),
    "a voxel beside the one": ("(inner - start_i[n]) * step_i", "(inner - start_i[n]) / 2 * 2 * step_i"),
    "the last of equal ones, with a margin": ("score > best[k])", "score > best[k] - 0.5f)"),
}


def test_labels_that_a_gpu_places_otherwise_are_placed_by_the_processor(driver, verdicts, monkeypatch):
    right = gpu_kernels.resampling_source()
    assert right.count("from_1[x1]) * n2") == 1
    broken = right.replace("from_1[x1]) * n2", "from_1[x1 / 2]) * n2")
    monkeypatch.setattr("MedQuantINT8Lib.inference.gpu_label_placing.resampling_source", lambda: broken)
    spec = road_spec("labels brought back")
    with cuda.Gpu(0) as gpu:
        result = run(with_verdicts(Engine(gpu, "float32", spec), verdicts), check_volume(spec), spec)
        plain = Engine(gpu, "float32", spec)
        plain.gpu_network = None
        expected = run(plain, check_volume(spec), spec)
    assert (result.labels != expected.labels).mean() < 2e-4
    assert any(note.startswith("warning") and "got another label" in note for note in result.notes)


NEXT_VOXEL = ("from[t * inner]", "from[t * inner + (inner > 1)]")
OFF_BY_LITTLE = ("(value - a) / b, 0.0f), 1.0f)", "(value - a) / b, 0.0f), 1.0f) + 0.02f")


@pytest.mark.parametrize(
    ("name", "fault"), [("nnU-Net", NEXT_VOXEL), ("nnU-Net", OFF_BY_LITTLE), ("not resampled", OFF_BY_LITTLE)]
)
def test_a_gpu_that_prepares_scans_otherwise_gets_them_from_the_processor(name, fault, driver, verdicts, monkeypatch):
    right = gpu_kernels.preparation_source()
    assert right.count(fault[0]) == 1
    broken = right.replace(*fault)
    monkeypatch.setattr("MedQuantINT8Lib.inference.gpu_arrays.preparation_source", lambda: broken)
    spec = road_spec("nnU-Net")
    if name == "not resampled":
        spec = replace(spec, geometry=replace(spec.geometry, spacing=None, interpolation="linear"))
    with cuda.Gpu(0) as gpu:
        engine = with_verdicts(Engine(gpu, "float32", spec), verdicts)
        result = run(engine, check_volume(spec), spec)
        # Where nothing is resampled, the network's windows stay on the GPU, as they always did.
        assert bool(engine.on_gpu) == (name == "not resampled")
        plain = Engine(gpu, "float32", spec)
        plain.gpu_network = None
        expected = run(plain, check_volume(spec), spec)
    assert (result.labels != expected.labels).mean() < 2e-4
    assert [note for note in result.notes if re.match(r"warning: .* % got another label", note)], result.notes
    assert not any("brought to network space on the GPU" in note for note in result.notes)


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_gpu_that_computes_otherwise_is_left_with_a_warning_that_names_the_difference(
    fault, driver, verdicts, monkeypatch
):
    right = gpu_kernels.resampling_source()
    assert right.count(BROKEN[fault][0]) == 1
    if fault in ("planes that are not cleared", "weights that are not divided by"):
        # Of the ring, which is taken where memory is short.
        monkeypatch.setattr(gpu_sliding_window, "fits", lambda *arguments: False)
    monkeypatch.setattr(
        "MedQuantINT8Lib.inference.gpu_sliding_window.resampling_source", lambda: right.replace(*BROKEN[fault])
    )
    spec = road_spec("nnU-Net")
    with cuda.Gpu(0) as gpu:
        engine = with_verdicts(Engine(gpu, "float32", spec), verdicts)
        result = run(engine, check_volume(spec), spec)
        again = run(engine, check_volume(spec), spec)
        assert engine.on_processor and not engine.on_gpu
    (warning,) = [note for note in result.notes if note.startswith("warning")]
    share = re.search(r"([\d.e+]+) % got another label there than on the processor \(at most 0.1 % may\)", warning)
    assert share and float(share[1]) > 0.1 and warning in again.notes
    assert not any("on the GPU" in note for note in result.notes if note is not warning)


MEANS = {
    "MONAI's": {},
    "regions by window": {},
    "not resampled": {"geometry": replace(road_spec("MONAI's").geometry, spacing=None)},
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", list(MEANS))
def test_the_mean_of_several_networks_is_made_on_the_gpu(name, dtype, driver, verdicts):
    spec = replace(road_spec("MONAI's" if name == "not resampled" else name), **MEANS[name])
    labels = {}
    with cuda.Gpu(0) as gpu:
        for how in ("GPU", "processor", "one"):
            engine = with_verdicts(Engine(gpu, dtype, spec, averages=how != "one"), verdicts)
            if how == "processor":
                engine.gpu_network = None
            labels[how] = run(engine, check_volume(spec), spec)
            assert bool(engine.on_gpu) == (how != "processor") and bool(engine.on_processor) == (how == "processor")
            engine.close()
        assert not [buffer for buffer in gpu._buffers.values() if len(buffer.shape) == 5]
    here, there, one = (labels[how].labels for how in ("processor", "GPU", "one"))
    assert (here != there).mean() < 2e-4 and len(np.unique(here)) >= 3
    if name == "regions by window":
        assert (one != there).mean() > 0.01
    assert not any(note.startswith("warning") for note in labels["GPU"].notes), labels["GPU"].notes


def test_a_mean_that_a_gpu_computes_otherwise_is_made_on_the_processor(driver, verdicts, monkeypatch):
    right = gpu_kernels.mean_source()
    assert right.count("sums[i] + sum") == 1
    monkeypatch.setattr(
        "MedQuantINT8Lib.inference.gpu_mean.mean_source", lambda: right.replace("sums[i] + sum", "sums[i]")
    )
    spec = road_spec("regions")
    spec = replace(spec, geometry=replace(spec.geometry, spacing=None))
    with cuda.Gpu(0) as gpu:
        engine = with_verdicts(Engine(gpu, "float32", spec, averages=True), verdicts)
        result = run(engine, check_volume(spec), spec)
        assert engine.on_processor and not engine.on_gpu
    assert any(note.startswith("warning") and "got another label" in note for note in result.notes)


def test_networks_of_two_gpus_or_of_none_meet_on_the_processor(driver):
    spec = road_spec("MONAI's")
    with cuda.Gpu(0) as first, cuda.Gpu(0) as again, cuda.Gpu(1) as second:
        one, other, far = (Engine(gpu, "float16", spec) for gpu in (first, again, second))
        wide, here = Engine(first, "float32", spec), Engine(first, "float16", spec)
        here.gpu_network = None
        assert isinstance(MeanEngine([one, other]).gpu_network, MeanNetwork)
        assert MeanEngine([one]).gpu_network is one
        for members in ([one, far], [one, wide], [one, here], [here, one]):
            assert MeanEngine(members).gpu_network is None


def test_the_verdict_is_kept_with_the_engine_s_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    parts = {"model_name": "m"}
    prepared = SimpleNamespace(entry=cache.make(parts, lambda folder: None))
    kept = gpu_road_check.EngineVerdicts(prepared)
    assert kept.read("k") is None
    prepared.entry.record["gpu_road"] = {"key": "k", "difference": "much"}
    assert kept.read("k") is None
    kept.keep("k", gpu_road_check.Verdict(0.25))
    for entry in (prepared.entry, cache.find(parts)):
        read = gpu_road_check.EngineVerdicts(SimpleNamespace(entry=entry))
        assert read.read("k") == gpu_road_check.Verdict(0.25) and read.read("other") is None
    assert "25 %" in read.read("k").doubt


def test_what_the_check_cannot_do_is_said(driver, verdicts, monkeypatch):
    spec = road_spec("MONAI's")
    volume = check_volume(spec)
    monkeypatch.setattr(gpu_road_check, "check_volume", lambda spec: replace(volume, data=volume.data * 0 + 1))
    with cuda.Gpu(0) as gpu:
        engine = with_verdicts(Engine(gpu, "float32", spec), verdicts)
        result = run(engine, volume, spec)
        assert any("the check failed" in note and "the same" not in note for note in result.notes), result.notes

        def full(*arguments):
            raise GpuMemoryError("The GPU has not enough free memory to hold 5 MB more.")

        def nothing_compiles(*arguments):
            raise DependencyError("NVIDIA's run-time compiler is not installed.")

        # For want of memory or of a compiler nothing is kept, and the next run asks again.
        engine.road_verdicts = ProcessVerdicts()
        with monkeypatch.context() as patch:
            patch.setattr(gpu_road_check, "_compared", full)
            assert any("not enough free memory" in note for note in run(engine, volume, spec).notes)
        flat = replace(spec, geometry=replace(spec.geometry, spacing=None))
        for model in (spec, flat):
            with monkeypatch.context() as patch:
                patch.setattr(cuda.Gpu, "kernels", nothing_compiles)
                assert any("compiler is not installed" in note for note in run(engine, volume, model).notes)
        assert not engine.road_verdicts._known and not engine.on_gpu


def small(gpu, spec):
    engine = Engine(gpu, "float32", spec)
    network_input = preprocess(check_volume(spec), spec)
    engine.look_at(network_input.data)
    patch = check_patch_size(network_input.data.shape[1:], spec)
    plan = plan_windows(network_input.data.shape[1:], spec.window, patch)
    path = ScorePath.of(spec, network_input, BlendingMemory.within(1 << 30, 1 << 30, plan, spec.output_channels), plan)
    reduction = ScoreReduction(spec, plan.volume_shape, path)
    labels = GpuRoad(engine, network_input, plan, spec.window, reduction, ())._grid_labels()
    runner = GpuSlidingWindow(gpu, engine, 1, spec.output_channels, plan, spec.window, 2, grid_labels=labels)
    return engine, runner, network_input.data


@pytest.mark.parametrize("name", ["MONAI's", "cropped, many labels"])
def test_a_run_that_fails_or_is_cancelled_leaves_everything_usable(driver, name):
    with cuda.Gpu(0) as gpu:
        engine, runner, data = small(gpu, road_spec(name))
        before = len(driver.memory)
        expected = runner.run(data)
        engine.fail_at = engine.on_gpu + 3
        with pytest.raises(EngineError, match="network failed"):
            runner.run(data)
        assert np.array_equal(runner.run(data), expected)
        task = Task(lambda event: task.cancel() if event.done > 5 else None)
        with pytest.raises(Cancelled):
            runner.run(data, task=task)
        assert np.array_equal(runner.run(data), expected) and len(driver.memory) == before
        runner.close()


@pytest.mark.parametrize("stage", ["preprocessing", "segmenting"])
def test_a_run_that_is_cancelled_frees_the_scan(driver, stage):
    spec = road_spec("MONAI's")
    with cuda.Gpu(0) as gpu:
        engine = Engine(gpu, "float32", spec)
        run(engine, check_volume(spec), spec)
        before = len(driver.memory)
        task = Task(lambda event: task.cancel() if event.stage == stage else None)
        with pytest.raises(Cancelled):
            run(engine, check_volume(spec), spec, task)
        assert len(driver.memory) == before


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
@pytest.mark.parametrize("name", ["by slices", "MONAI's", "cropped, many labels", "labels brought back", "flat"])
def test_planes_of_a_large_label_map_come_down_while_others_are_made(driver, monkeypatch, name, geometry):
    other = {"flat": Geometry("KJI", "RAS"), "by slices": Geometry("KJI", "RAS", spacing=(1.0, 3.0, 4.0))}
    spec = road_spec("MONAI's" if name in other else name)
    spec = replace(spec, geometry=other.get(name, spec.geometry))
    volume = replace(check_volume(spec), ijk_to_ras=GEOMETRIES[geometry])
    with cuda.Gpu(0) as gpu:
        expected = run(Engine(gpu, "float32", spec), volume, spec).labels
    monkeypatch.setattr(transfers, "LARGE", 1)
    monkeypatch.setattr(transfers, "_CHUNK", 999)
    begun = []
    real = transfers.Transfers.begin_download
    monkeypatch.setattr(
        transfers.Transfers, "begin_download", lambda *arguments: begun.append(arguments) or real(*arguments)
    )
    with cuda.Gpu(0) as gpu:
        assert np.array_equal(run(Engine(gpu, "float32", spec), volume, spec).labels, expected)
    if name == "by slices" and geometry in ("axial", "flipped"):
        assert len(begun) > 2


def test_a_run_that_is_cancelled_waits_for_planes_on_their_way(driver, monkeypatch):
    monkeypatch.setattr(transfers, "LARGE", 1)
    spec = replace(road_spec("MONAI's"), geometry=Geometry("KJI", "RAS", spacing=(1.0, 3.0, 4.0)))
    with cuda.Gpu(0) as gpu:
        _, runner, data = small(gpu, spec)
        expected = runner.run(data)
        before = len(driver.memory)
        task = Task(lambda event: task.cancel() if event.done > 5 else None)
        with pytest.raises(Cancelled):
            runner.run(data, task=task)
        assert np.array_equal(runner.run(data), expected) and len(driver.memory) == before
        runner.close()


def test_data_that_is_looked_at_afterwards_comes_down_once(driver):
    spec = road_spec("MONAI's")
    volume = check_volume(spec)

    def never(*arguments):
        raise AssertionError("the processor did it")

    expected = preprocess(volume, spec).data
    for stride in (1, 4):
        with cuda.Gpu(0) as gpu:
            network_input = deferred(volume, spec, never)
            network_input.wanted_later(stride)
            network_input.release(network_input.on_gpu(gpu))
            assert not driver.memory
        np.testing.assert_allclose(network_input.every(4), expected[:, ::4, ::4, ::4], rtol=0, atol=2e-5)
        if stride == 1:
            np.testing.assert_allclose(network_input.data, expected, rtol=0, atol=2e-5)


def test_a_scan_that_is_shared_stays_on_the_gpu_until_it_is_let_go(driver):
    spec = road_spec("MONAI's")
    network_input = deferred(check_volume(spec), spec, preprocess)
    network_input.share()
    with cuda.Gpu(0) as gpu:
        first = network_input.on_gpu(gpu)
        network_input.release(first)
        # Another engine on that GPU takes it over: the one before may be closed while it is used.
        other = cuda.Gpu(0)
        assert network_input.on_gpu(other) is first
    assert first.pointer in driver.memory
    network_input.release(first)
    # Another GPU has no part in it.
    with cuda.Gpu(1) as second:
        buffer = network_input.on_gpu(second)
        assert buffer is not first and not first.pointer
        network_input.release(buffer)
    other.enter()
    other.close()
    # The GPU that held it was left.
    with cuda.Gpu(0) as gpu:
        again = network_input.on_gpu(gpu)
        assert again.pointer in driver.memory
        network_input.let_go()
        network_input.release(again)
        assert not driver.memory


def test_a_shared_scan_is_freed_where_the_last_run_ends_before_it_asks_for_it(driver):
    spec = road_spec("MONAI's")
    volume, shared = check_volume(spec), SharedPreprocessing()
    with cuda.Gpu(0) as gpu:
        shared.keep = True
        first = shared.deferred(volume, spec)
        first.release(first.on_gpu(gpu))
        shared.keep = False
        assert shared.deferred(volume, spec) is first and driver.memory
        # It was cancelled here.
        shared.close()
        assert not driver.memory


def test_a_scan_of_which_nothing_more_can_come_down_is_freed(driver, monkeypatch):
    spec = road_spec("MONAI's")
    network_input = deferred(check_volume(spec), spec, preprocess)
    network_input.wanted_later(4)

    def fails(*_):
        raise GpuMemoryError("There is no room.")

    monkeypatch.setattr(GpuArrays, "every", fails)
    with cuda.Gpu(0) as gpu:
        with pytest.raises(GpuMemoryError):
            network_input.on_gpu(gpu)
        assert not driver.memory


def test_scores_that_the_gpu_has_no_room_for_are_blended_by_the_processor(driver, monkeypatch):
    spec = road_spec("MONAI's")
    real, limit = cuda.Gpu.allocate, []

    def allocate(gpu, shape, dtype):
        if limit and int(np.prod(shape)) * np.dtype(dtype).itemsize > limit[0]:
            raise GpuMemoryError("The GPU has not enough free memory to hold scores.")
        return real(gpu, shape, dtype)

    monkeypatch.setattr(cuda.Gpu, "allocate", allocate)
    with cuda.Gpu(0) as gpu:
        engine = Engine(gpu, "float32", spec)
        expected = run(engine, check_volume(spec), spec)
        limit.append(60_000)
        result = run(engine, check_volume(spec), spec)
        assert any("blended on the processor" in note for note in result.notes) and engine.on_processor
    assert (result.labels != expected.labels).mean() < 2e-4


@pytest.mark.parametrize("name", ["MONAI's", "labels brought back", "regions"])
@pytest.mark.parametrize("what", ["the scan", "labels"])
def test_a_scan_or_labels_that_the_gpu_has_no_room_for_go_by_the_processor(driver, monkeypatch, name, what):
    spec = road_spec(name)
    real, refuses, refused = cuda.Gpu.allocate, [], []

    def allocate(gpu, shape, dtype):
        voxels, integers = int(np.prod(shape)), np.dtype(dtype).kind in "iu"
        scan = voxels > 20_000 and not integers and len(shape) == 4 and shape[0] == 1
        labels = voxels > 20_000 and integers and len(shape) == 3 and np.dtype(dtype) != np.int16
        if refuses and (scan if what == "the scan" else labels):
            refused.append(shape)
            raise GpuMemoryError("The GPU has not enough free memory for it.")
        return real(gpu, shape, dtype)

    monkeypatch.setattr(cuda.Gpu, "allocate", allocate)
    with cuda.Gpu(0) as gpu:
        expected = run(Engine(gpu, "float32", spec), check_volume(spec), spec)
        refuses.append(True)
        engine = Engine(gpu, "float32", spec)
        result = run(engine, check_volume(spec), spec)
    assert refused and any("on the processor: The GPU has not enough" in note for note in result.notes)
    assert engine.on_processor and (result.labels != expected.labels).mean() < 2e-4
    assert not driver.memory


def test_scores_too_large_for_the_computer_are_resampled_on_the_gpu_all_the_same(driver):
    """Where the processor would bring labels, not scores, to the scan's grid for want of memory."""
    spec = road_spec("cropped, many labels")
    with cuda.Gpu(0) as gpu:
        engine = Engine(gpu, "float32", spec)
        result = run(engine, check_volume(spec), spec, memory_bytes=4_000_000)
        expected = run(engine, check_volume(spec), spec)
    assert np.array_equal(result.labels, expected.labels)
    assert not any("labels, not class scores" in note or "16-bit" in note for note in result.notes)


def test_nested_regions_margins_and_skipped_air_stay_with_the_processor(driver):
    spec = road_spec("regions")
    nested = replace(spec, output=replace(spec.output, paint="nested"))
    with cuda.Gpu(0) as gpu:
        for model, options in ((nested, {}), (spec, {"margins": True}), (spec, {"skip_air": True})):
            engine = Engine(gpu, "float32", model)
            run(engine, check_volume(model), model, **options)
            assert engine.on_processor and not engine.on_gpu
