"""Parts of a task merged on a GPU, by the kernels run on the processor over a stand-in driver, beside the processor's merge."""

from __future__ import annotations

import numpy as np
import pytest

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError
from MedQuantINT8Lib.inference import gpu_label_merging
from MedQuantINT8Lib.inference.label_merging import merge_labels
from MedQuantINT8Lib.inference.task_merging import MergedLabels

SHAPE = (6, 9, 11)
WHOLE = ((0, 11), (0, 9), (0, 6))
#: The box of each part, along (I, J, K), its type, and what its values become; the second paints over the first, and leaves out a value.
PARTS = [
    (WHOLE, np.uint8, {1: 1, 2: 2}),
    (((2, 9), (1, 8), (0, 5)), np.uint16, {1: 3, 300: 1}),
    (WHOLE, np.uint8, {3: 200}),
    (((4, 11), (0, 3), (2, 6)), np.uint8, {1: 2, 2: 5}),
]


@pytest.fixture
def driver(monkeypatch):
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(gpu_label_merging, "_TRUSTED", {})
    return gpu_computing.install_kernels(monkeypatch)


def parts():
    rng = np.random.default_rng(3)
    for box, dtype, targets in PARTS:
        size = tuple(stop - start for start, stop in reversed(box))
        yield rng.choice(np.array([0, 0, 1, 2, 3, 300 if dtype is np.uint16 else 7], dtype), size), box, targets


def merged_by_processor(dtype):
    merged = np.zeros(SHAPE, dtype)
    for labels, ((i, right), (j, back), (k, top)), targets in parts():
        merge_labels(merged[k:top, j:back, i:right], labels, targets)
    return merged


def kept(merged, index, labels):
    """What the engine of a part gives: its label map on a GPU, which is closed afterwards."""
    with cuda.Gpu(index) as gpu:
        buffer, stream = gpu.allocate(labels.shape, labels.dtype), gpu.stream()
        buffer.upload(labels, stream)
        stream.synchronize()
        stream.free()
        return buffer if merged.keep(buffer) else labels


def merge(dtype, on):
    """The merged map of parts that are made on the GPUs of these numbers, or, for None, on the processor."""
    merged = MergedLabels(SHAPE, dtype)
    try:
        for (labels, box, targets), index in zip(parts(), on, strict=True):
            merged.paint(labels if index is None else kept(merged, index, labels), box, targets)
        return merged.end()
    finally:
        merged.close()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("on", [(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, None, 1), (None, 1, 0, 0), (None,) * 4], ids=str)
def test_parts_are_merged_wherever_they_are_made_as_on_the_processor(driver, monkeypatch, on, dtype):
    on_processor = []
    monkeypatch.setattr(
        "MedQuantINT8Lib.inference.task_merging.merge_labels",
        lambda *how: on_processor.append(how) or merge_labels(*how),
    )
    labels = merge(dtype, on)
    assert labels.dtype == dtype and np.array_equal(labels, merged_by_processor(dtype))
    # Once a part was made on the processor, all that follow are merged there.
    assert len(on_processor) == (len(on) - on.index(None) if None in on else 0)
    assert not driver.memory


def test_parts_come_down_where_the_gpus_do_not_reach_each_other_or_have_no_memory(driver, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gpu_label_merging, "reaches", lambda one, other: one.info.index == other.info.index)
        assert np.array_equal(merge(np.uint8, (1, 0, 1, 0)), merged_by_processor(np.uint8))
    allocate = cuda.Gpu.allocate

    def full(gpu, shape, dtype):
        if tuple(shape) == SHAPE and dtype == np.uint16:
            raise GpuMemoryError("The GPU has not enough free memory.")
        return allocate(gpu, shape, dtype)

    monkeypatch.setattr(cuda.Gpu, "allocate", full)
    assert np.array_equal(merge(np.uint16, (1, 0, 1, 0)), merged_by_processor(np.uint16))
    assert not driver.memory


def test_a_gpu_that_paints_otherwise_leaves_it_to_the_processor(driver, monkeypatch):
    right = gpu_label_merging.merging_source()
    assert right.count("if (painted)") == 1
    broken = right.replace("if (painted)", "if (painted && x)")
    monkeypatch.setattr(gpu_label_merging, "merging_source", lambda: broken)
    merged = MergedLabels(SHAPE, np.uint8)
    labels = next(parts())[0]
    assert kept(merged, 0, labels) is labels
    merged.close()
    assert np.array_equal(merge(np.uint8, (0, 1, 0, 1)), merged_by_processor(np.uint8))
    assert not driver.memory


def test_what_was_kept_goes_with_a_run_that_fails(driver):
    merged = MergedLabels(SHAPE, np.uint8)
    for (labels, box, targets), index in zip(parts(), (0, 1, 0, 1), strict=True):
        buffer = kept(merged, index, labels)
        if index == 0:
            merged.paint(buffer, box, targets)
    merged.close()
    assert not driver.memory
