"""The sliding window on the GPU over a stand-in driver whose streams do their work in any order that events allow."""

from __future__ import annotations

import numpy as np
import pytest

import gpu_ordering
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import transfers
from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError
from MedQuantINT8Lib.imaging.array_layout import ArrayLayout
from MedQuantINT8Lib.imaging.axis_interpolation import AxisInterpolation
from MedQuantINT8Lib.inference import gpu_importance, gpu_spread
from MedQuantINT8Lib.inference.gpu_kept_rows import rows_kept
from MedQuantINT8Lib.inference.gpu_label_resampling import GridLabels
from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
from MedQuantINT8Lib.inference.gpu_spread import SpreadSettings, SpreadSlidingWindow
from MedQuantINT8Lib.inference.gpu_strips import strip_rows, strips_of
from MedQuantINT8Lib.inference.gpu_team import GpuTeam
from MedQuantINT8Lib.inference.mirroring import flips_along
from MedQuantINT8Lib.inference.window_rows import RowPart
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models.spec import Window
from pointwise import Lopsided

SHAPE, FINER, PATCH, CLASSES = (11, 12, 13), (17, 15, 14), (6, 6, 6), 4
ORDERS = [(0, True), (0, False), *((seed, None) for seed in range(5))]


def window_on(gpu, *, resampled, batch=2, flips=((),), keep_rows=False):
    window = Window(PATCH, overlap=0.5)
    plan = plan_windows(SHAPE, window, PATCH)
    axes = [AxisInterpolation.linear(o / n * (np.arange(n) + 0.5) - 0.5, o) for o, n in zip(SHAPE, FINER, strict=True)]
    layout, values = ArrayLayout.of((FINER[2], FINER[1], FINER[0]), ()), np.arange(CLASSES, dtype=np.uint8)
    grid = GridLabels((axes[0], axes[1], axes[2]), layout, "KJI", values) if resampled else None
    network = Lopsided(gpu, CLASSES)
    return GpuSlidingWindow(gpu, network, 1, CLASSES, plan, window, batch, flips, grid, keep_rows=keep_rows)


def labels_of(resampled, flips=((),), batch=2, runs=1, keep_rows=False):
    volume = np.random.default_rng(0).uniform(0, CLASSES, (1, *SHAPE)).astype(np.float32)
    with cuda.Gpu(0) as gpu:
        runner = window_on(gpu, resampled=resampled, batch=batch, flips=flips, keep_rows=keep_rows)
        assert keep_rows == (runner._rows is not None)
        reduction = Reduction(np.arange(CLASSES, dtype=np.uint16))
        found = [runner.run(volume, reduction) for _ in range(runs)]
        runner.close()
    assert all(np.array_equal(found[0], labels) for labels in found)
    return found[0]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")


@pytest.mark.parametrize("resampled", [True, False])
@pytest.mark.parametrize("mirrored", [False, True])
def test_labels_are_the_same_in_every_order_that_events_allow(monkeypatch, resampled, mirrored):
    flips, found = flips_along((0, 2) if mirrored else ()), []
    for seed, urgent_first in ORDERS:
        driver = gpu_ordering.install(monkeypatch, seed, urgent_first)
        found.append(labels_of(resampled, flips, runs=2))
        assert not driver.memory
    assert all(np.array_equal(found[0], labels) for labels in found) and len(np.unique(found[0])) == CLASSES


def test_kept_rows_give_the_labels_of_the_ring_in_every_order_that_events_allow(monkeypatch):
    expected = None
    for seed, urgent_first in ORDERS:
        driver = gpu_ordering.install(monkeypatch, seed, urgent_first)
        expected = labels_of(True) if expected is None else expected
        for batch in (2, 9):
            assert np.array_equal(labels_of(True, batch=batch, runs=2, keep_rows=True), expected)
        assert not driver.memory


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(11, 12, 13), (13, 11, 9), (7, 12, 8), (6, 6, 30)])
def test_rows_are_kept_for_as_long_as_a_plane_is_made_of_them(shape, overlap):
    plan = plan_windows(shape, Window(PATCH, overlap=overlap), PATCH)
    slow = plan.order[0]
    starts, kept = plan.starts[slow], rows_kept(plan)
    for row, start in enumerate(starts):
        # Planes that this row finishes, and the next, which is run meanwhile, may not write over.
        touched = [other for other in range(row + 1) if starts[other] + PATCH[slow] > (start if row else 0)]
        assert len(touched) + (row + 1 < len(starts)) <= kept or kept == len(starts)
        assert touched == list(range(touched[0], row + 1))


@pytest.mark.parametrize("which", ["urgent", "other", "other by rows", "urgent by rows"])
def test_a_wait_that_is_missing_shows(monkeypatch, which):
    gpu_ordering.install(monkeypatch, 0, None)
    right = labels_of(True)
    real = cuda.Stream.wait_for
    monkeypatch.setattr(
        cuda.Stream,
        "wait_for",
        lambda self, event: None if self.urgent == which.startswith("urgent") else real(self, event),
    )
    wrong = 0
    for seed, urgent_first in ORDERS:
        gpu_ordering.install(monkeypatch, seed, urgent_first)
        wrong += not np.array_equal(labels_of(True, keep_rows="rows" in which), right)
    assert wrong


def test_one_place_for_scores_where_memory_is_short(monkeypatch):
    gpu_ordering.install(monkeypatch, 0, None)
    expected = labels_of(True)
    for least in (1, 2):
        gpu_ordering.install(monkeypatch, 1, None)
        real, shapes = cuda.Gpu.allocate, []

        def allocate(gpu, shape, dtype, least=least, real=real, shapes=shapes):
            # Room for so many windows' scores in all.
            if tuple(shape[1:]) == (CLASSES, *PATCH):
                held = sum(b.shape[0] for b in gpu._buffers.values() if tuple(b.shape[1:]) == (CLASSES, *PATCH))
                if held + shape[0] > least:
                    raise GpuMemoryError("The GPU has not enough free memory.")
                shapes.append(shape[0])
            return real(gpu, shape, dtype)

        with monkeypatch.context() as inner:
            inner.setattr(cuda.Gpu, "allocate", allocate)
            assert np.array_equal(labels_of(True), expected) and shapes[-1] == least


def test_a_gpu_that_was_closed_is_not_held_by_its_importance_maps(monkeypatch):
    gpu_ordering.install(monkeypatch, 0, None)
    before = len(gpu_importance._known_maps)
    with cuda.Gpu(0) as gpu:
        window_on(gpu, resampled=False).close()
        assert gpu in gpu_importance._known_maps
    assert gpu not in gpu_importance._known_maps and len(gpu_importance._known_maps) == before


def test_the_last_planes_are_finished_in_pieces():
    assert RowPart([], (3, 13)).finished_in(4) == [(3, 5), (5, 8), (8, 10), (10, 13)]
    assert RowPart([], (3, 5)).finished_in(4) == [(3, 4), (4, 5)]
    assert RowPart([], (3, 13)).finished_in(1) == [(3, 13)] and RowPart([], None).finished_in(4) == []


def labels_of_several(resampled, shape=(15, 14, 13), patch=PATCH, numbers=(0, 1)):
    """The labels of one GPU, and twice those of several."""
    window = Window(patch, overlap=0.5)
    plan = plan_windows(shape, window, patch)
    axes = [AxisInterpolation.linear(o / n * (np.arange(n) + 0.5) - 0.5, o) for o, n in zip(shape, FINER, strict=True)]
    layout, values = ArrayLayout.of((FINER[2], FINER[1], FINER[0]), ()), np.arange(CLASSES, dtype=np.uint8)
    grid = GridLabels((axes[0], axes[1], axes[2]), layout, "KJI", values) if resampled else None
    volume = np.random.default_rng(0).uniform(0, CLASSES, (1, *shape)).astype(np.float32)
    reduction, found = Reduction(np.arange(CLASSES, dtype=np.uint16)), []
    gpus = [cuda.Gpu(number) for number in numbers]
    gpus[0].enter()
    one = GpuSlidingWindow(gpus[0], Lopsided(gpus[0], CLASSES), 1, CLASSES, plan, window, 2, ((),), grid)
    found.append(one.run(volume, reduction))
    one.close()
    settings = SpreadSettings(1, CLASSES, plan, window, 2, ((),), grid)
    several = SpreadSlidingWindow(GpuTeam(gpus), [Lopsided(gpu, CLASSES) for gpu in gpus], settings)
    found += [several.run([volume] * len(gpus), reduction) for _ in range(2)]
    assert sum(several.windows) == 2 * plan.count and min(several.windows) > 1.8 / len(gpus) * plan.count
    several.close()
    for gpu in gpus:
        gpu.enter()
        gpu.close()
    return found


@pytest.mark.parametrize("way", ["strips", "one after the other"])
@pytest.mark.parametrize("resampled", [True, False])
def test_two_gpus_give_the_labels_of_one_in_every_order_that_events_allow(monkeypatch, resampled, way):
    monkeypatch.setattr(transfers, "LARGE", 1)
    if way != "strips":
        monkeypatch.setattr(gpu_spread, "strips_of", lambda *_: None)
    for seed, urgent_first in ORDERS[:4]:
        driver = gpu_ordering.install(monkeypatch, seed, urgent_first)
        one, *others = labels_of_several(resampled)
        assert all(np.array_equal(one, labels) for labels in others) and len(np.unique(one)) == CLASSES
        assert not driver.memory


def test_scores_that_are_partly_copied_and_partly_written_in_place_are_given_when_all_are_there(monkeypatch):
    """Of the middle GPU's windows in a row others need lines of three at both ends: of three batches the second is copied to its places."""
    shape, patch = (36, 30, 8), (18, 6, 4)
    plan = plan_windows(shape, Window(patch, overlap=0.5), patch)
    row = strip_rows(plan, ((),), strips_of(plan, 3))[1][0]
    assert [place for _, place in row.run[: row.shared]] == [3, 4, 5, 9, 10, 11]
    for seed in range(3):
        driver = gpu_ordering.install(monkeypatch, seed, False)
        one, *others = labels_of_several(False, shape, patch, (0, 1, 0))
        assert all(np.array_equal(one, labels) for labels in others) and len(np.unique(one)) == CLASSES
        assert not driver.memory
