"""The sliding window against MONAI's, in bounded memory, with progress and cancel."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from MedQuantINT8Lib.errors import Cancelled, InputError
from MedQuantINT8Lib.imaging.regions import Regions
from MedQuantINT8Lib.inference import blending
from MedQuantINT8Lib.inference.blending import LabelSink, RegionSink, ScoreSink
from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, slide
from MedQuantINT8Lib.inference.windows import check_patch, importance_map, plan_windows, window_starts
from MedQuantINT8Lib.models.spec import Window
from MedQuantINT8Lib.progress import Task

SHAPES = [
    ((50, 37, 61), (16, 16, 16), 0.5),
    ((10, 37, 20), (16, 16, 16), 0.25),
    ((40, 40, 40), (24, 16, 20), 0.6),
    ((16, 16, 16), (16, 16, 16), 0.5),
    ((2, 40, 9), (8, 16, 16), 0.3),
]


@pytest.fixture
def network():
    """A convolution, for our arrays and for MONAI's tensors."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Conv3d(1, 5, 3, padding=1)

    def on_arrays(batch):
        with torch.no_grad():
            return layer(torch.from_numpy(np.ascontiguousarray(batch))).numpy()

    return layer, on_arrays


@pytest.mark.parametrize(("shape", "patch", "overlap"), SHAPES)
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_blending_equals_monais(network, shape, patch, overlap, blend):
    import torch
    from monai.inferers import sliding_window_inference

    layer, infer = network
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = sliding_window_inference(torch.from_numpy(data)[None], patch, 2, layer, overlap=overlap, mode=blend)[
            0
        ].numpy()
    window = Window(patch, overlap=overlap, blend=blend)
    plan = plan_windows(shape, window, patch)
    scores = ScoreSink(5, shape)
    slide(data, infer, scores, SlidingWindow(plan, window, 5, normalized=True, batch_size=3))
    assert np.abs(scores.scores - expected).max() < 1e-5
    labels = LabelSink(shape, np.arange(5, dtype=np.uint8))
    slide(data, infer, labels, SlidingWindow(plan, window, 5, batch_size=2))
    assert np.array_equal(labels.labels, expected.argmax(0))


@pytest.mark.parametrize(("shape", "patch", "overlap"), SHAPES)
@pytest.mark.parametrize("planes", [1, 5])
def test_slabs_of_a_window_give_the_same_as_all_of_it(network, shape, patch, overlap, planes, monkeypatch):
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    window = Window(patch, overlap=overlap)
    plan = plan_windows(shape, window, patch)
    whole, in_slabs = ScoreSink(5, shape), ScoreSink(5, shape)
    slide(data, network[1], whole, SlidingWindow(plan, window, 5))
    monkeypatch.setattr(blending, "_SLAB_BYTES", 4 * planes * patch[1] * patch[2])
    slide(data, network[1], in_slabs, SlidingWindow(plan, window, 5))
    assert np.array_equal(whole.scores, in_slabs.scores)


@pytest.mark.parametrize("placement", ["monai", "nnunet"])
@pytest.mark.parametrize(("patch", "overlap"), [(2, 0.625), (3, 0.75), (8, 0.9), (8, 0.5)])
def test_no_window_is_run_twice(patch, overlap, placement):
    """A window's step is a voxel at least: two that begin at the same voxel would be blended as one."""
    for size in range(patch, 30):
        starts = window_starts(size, patch, overlap, placement)
        assert starts == sorted(set(starts)) and (starts[0], starts[-1]) == (0, size - patch)


@pytest.mark.parametrize(("shape", "patch", "overlap"), SHAPES)
def test_half_precision_carry_changes_next_to_nothing(network, shape, patch, overlap):
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    window = Window(patch, overlap=overlap)
    plan = plan_windows(shape, window, patch)
    found = []
    for dtype in (np.float32, np.float16):
        found.append(LabelSink(shape, np.arange(5, dtype=np.uint8)))
        slide(data, network[1], found[-1], SlidingWindow(plan, window, 5, carried_dtype=dtype))
    assert (found[0].labels != found[1].labels).mean() < 1e-3


def test_memory_is_that_of_the_carried_parts():
    shape, patch, classes = (48, 48, 400), (16, 16, 16), 16
    window = Window(patch, overlap=0.5)
    plan = plan_windows(shape, window, patch)
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    bias = np.random.default_rng(1).random((1, classes, 1, 1, 1)).astype(np.float32)
    labels = LabelSink(shape, np.arange(classes, dtype=np.uint8))
    tracemalloc.start()
    slide(data, lambda batch: batch * bias, labels, SlidingWindow(plan, window, classes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = 4 * classes * int(np.prod(shape))
    assert plan.order[0] == 2
    assert peak < plan.carried_bytes(classes, 4) + 8 * 4 * classes * 16**3 < whole / 8


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("placement", ["monai", "nnunet"])
def test_columns_give_the_same_scores_in_less_memory(network, normalized, placement):
    shape, patch = (30, 70, 100), (16, 16, 16)
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    window = Window(patch, overlap=0.5, placement=placement)
    plan = plan_windows(shape, window, patch)
    whole, parts = ScoreSink(5, shape), ScoreSink(5, shape)
    slide(data, network[1], whole, SlidingWindow(plan, window, 5, normalized=normalized))
    budget = plan.carried_bytes(5, 4) * 7 // 10
    result = slide(
        data,
        network[1],
        parts,
        SlidingWindow(plan, window, 5, normalized=normalized, carried_bytes=budget, batch_size=2),
    )
    assert result.columns > 1
    assert all(column.plan.carried_bytes(5, 4) <= budget for column in plan.columns(result.columns))
    assert plan.count < result.windows < 2 * plan.count
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-5, atol=1e-6)


def test_columns_are_as_few_as_memory_allows_and_no_more_than_there_are_windows():
    window = Window((16, 16, 16), overlap=0.5)
    plan = plan_windows((40, 60, 80), window, (16, 16, 16))
    assert len(plan.columns_within(5, 4, 1 << 40)) == 1
    assert len(plan.columns_within(5, 4, 1)) == len(plan.starts[plan.order[1]])


def test_no_columns_where_they_would_only_run_every_window_twice():
    plan = plan_windows((24, 24, 24), Window((16, 16, 16), overlap=0.5), (16, 16, 16))
    assert len(plan.columns_within(5, 4, 1)) == 1


def test_windows_are_placed_as_monai_and_nnunet_place_them():
    assert window_starts(100, 32, 0.5) == [0, 16, 32, 48, 64, 68]
    assert window_starts(32, 32, 0.5) == [0]
    # nnU-Net: ceil((100 - 32) / 16) + 1 = 6 windows, spread evenly.
    assert window_starts(100, 32, 0.5, "nnunet") == [0, 14, 27, 41, 54, 68]


def test_gaussian_is_monais():
    import torch
    from monai.data.utils import compute_importance_map

    assert np.allclose(
        importance_map((9, 16, 20), "gaussian"),
        compute_importance_map((9, 16, 20), "gaussian", 0.125, torch.device("cpu")).numpy(),
        atol=1e-6,
    )


def test_windows_of_air_are_skipped_only_when_asked():
    data = np.zeros((1, 64, 16, 16), np.float32)
    data[:, 40:] = 1
    window = Window((16, 16, 16), overlap=0.0, air_threshold=0.0)
    plan = plan_windows((64, 16, 16), window, (16, 16, 16))
    calls = []

    def infer(batch):
        calls.append(len(batch))
        return np.concatenate([np.full_like(batch, 0.5), batch], axis=1)

    labels = LabelSink((64, 16, 16), np.array([0, 3], np.uint8))
    result = slide(data, infer, labels, SlidingWindow(plan, window, 2, skip_air=True))
    assert (result.windows, result.skipped, sum(calls)) == (4, 2, 2)
    assert np.array_equal(labels.labels > 0, data[0] > 0)
    calls.clear()
    slide(data, infer, labels, SlidingWindow(plan, window, 2))
    assert sum(calls) == 4


def test_regions_are_painted_in_order():
    probabilities = np.zeros((2, 4, 4, 4), np.float32)
    probabilities[0, :3] = 0.9
    probabilities[1, 2:] = 0.8
    sink = RegionSink((4, 4, 4), Regions((0, 1), np.array([1, 2], np.uint8), np.array([0.5, 0.5], np.float32)))
    sink((0, 0, 0), probabilities)
    assert [int(sink.labels[n, 0, 0]) for n in range(4)] == [1, 1, 2, 2]


def test_progress_counts_windows_and_cancel_stops_within_one():
    window = Window((8, 8, 8), overlap=0.5)
    plan = plan_windows((40, 40, 40), window, (8, 8, 8))
    events, calls = [], []
    task = Task(events.append)

    def infer(batch):
        calls.append(1)
        if len(calls) == 10:
            task.cancel()
        return batch

    with pytest.raises(Cancelled):
        slide(
            np.ones((1, 40, 40, 40), np.float32),
            infer,
            LabelSink((40, 40, 40), np.zeros(1, np.uint8)),
            SlidingWindow(plan, window, 1),
            task,
        )
    assert len(calls) == 10
    assert events[-1].total == plan.count == 729
    assert events[-1].seconds_left is not None


def test_a_patch_that_is_no_multiple_is_refused():
    with pytest.raises(InputError, match="multiple"):
        check_patch((30, 32, 32), Window((32, 32, 32), multiples=(16, 16, 16)))


class Device:
    """A network that works by itself: what was submitted is computed when it is collected, into memory that is used again."""

    ahead = 1

    def __init__(self, infer):
        self.infer, self.waiting, self.results, self.most, self.drained = infer, [], [], 0, 0

    def submit(self, batch):
        assert len(self.waiting) <= self.ahead
        self.waiting.append(batch.copy())
        self.most = max(self.most, len(self.waiting))

    def collect(self):
        found = self.infer(self.waiting.pop(0))
        self.results.append(found)
        if len(self.results) > self.ahead + 1:
            self.results.pop(0)[:] = np.nan
        return found

    def drain(self):
        self.waiting.clear()
        self.drained += 1


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("skip_air", [False, True])
def test_a_device_works_ahead_and_gives_the_same(batch, skip_air):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(1, 21, 30, 18)).astype(np.float32)
    data[:, :, 12:] = -5
    window = Window((8, 8, 8), overlap=0.5, air_threshold=-4.0)
    plan = plan_windows(data.shape[1:], window, (8, 8, 8))

    def infer(values):
        return np.concatenate([values, values * values, 1 - values], axis=1)

    device, found = Device(infer), []
    for network in (infer, device):
        scores = np.zeros((3, *data.shape[1:]), np.float32)

        def sink(start, block, scores=scores):
            scores[(slice(None), *(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True)))] = block

        result = slide(
            data, network, sink, SlidingWindow(plan, window, 3, batch_size=batch, skip_air=skip_air, normalized=True)
        )
        found.append((scores, result.skipped))
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1] and (found[0][1] > 0) == skip_air
    assert device.most == 2 and device.drained == 1 and not device.waiting


def test_a_device_is_left_empty_by_a_run_that_stops():
    data = np.zeros((1, 20, 20, 20), np.float32)
    window = Window((8, 8, 8), overlap=0.5)
    plan = plan_windows(data.shape[1:], window, (8, 8, 8))
    device = Device(lambda values: values)
    task = Task(lambda event: task.cancel() if event.done > 4 else None)
    with pytest.raises(Cancelled):
        slide(data, device, lambda start, block: None, SlidingWindow(plan, window, 1), task)
    assert device.drained == 1 and not device.waiting


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("shape", "patch", "overlap"), SHAPES)
def test_scores_written_where_they_are_kept_are_those_that_are_handed_on(network, shape, patch, overlap, normalized):
    """A sink that keeps scores has them written in place, whatever is cropped; one that does not is given the same blocks."""
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    window = Window(patch, overlap=overlap)
    plan = plan_windows(shape, window, patch)
    kept, handed = ScoreSink(5, shape), ScoreSink(5, shape)
    filled = []
    keep = kept.filled
    kept.filled = lambda *at: (filled.append(at), keep(*at))
    sliding = SlidingWindow(plan, window, 5, normalized=normalized)
    slide(data, network[1], kept, sliding)
    slide(data, network[1], lambda start, block: handed(start, block), sliding)
    assert np.array_equal(kept.scores, handed.scores)
    assert len(filled) == (plan.count if shape == plan.shape else 0)
