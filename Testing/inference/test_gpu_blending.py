"""Windows that are blended at once on the GPU: the same sums, bit by bit, as one after the other. The kernel runs on the processor."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

import kernels_on_processor
from MedQuantINT8Lib.inference import gpu_kernels, gpu_label_resampling
from MedQuantINT8Lib.inference.gpu_blending import BLENDED_AT_ONCE, box_around, near_windows
from MedQuantINT8Lib.inference.gpu_kernels import source

PATCH, PLANES, CLASSES = (5, 6, 4), (7, 20, 14), 5
#: In one row along the first axis; the last lies elsewhere in it.
WINDOWS = [
    ((3, 0, 0), ()),
    ((3, 3, 0), (0,)),
    ((3, 3, 2), (1, 2)),
    ((3, 0, 2), ()),
    ((3, 1, 1), (2,)),
    ((3, 14, 10), ()),
]


def blended(groups, scores, sigmoid, counted, dtype):
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    kernel = kernels_on_processor.kernels(source(), ("blend_f32", "blend_f16"))[f"blend_f{dtype().itemsize * 8}"]
    weights = np.random.default_rng(1).random(PATCH, np.float32)
    ring = np.random.default_rng(2).random((CLASSES, *PLANES), np.float32)
    total = np.random.default_rng(3).random(PLANES, np.float32)
    pointer = lambda array: ctypes.c_void_p(array.ctypes.data)  # noqa: E731
    first = 0
    for group in groups:
        begin, size = box_around([start for start, _ in group], PATCH)
        places = [number for start, flip in group for number in (*start, sum(1 << axis for axis in flip))]
        places += [0] * (4 * BLENDED_AT_ONCE - len(places))
        numbers = (CLASSES, int(sigmoid), len(group), *places, *PATCH, *begin, *size, 0, *PLANES)
        arrays = (
            pointer(scores[first]),
            pointer(weights),
            pointer(ring),
            pointer(total) if counted else ctypes.c_void_p(0),
        )
        kernel((-(-math.prod(size) // 64), 1, 1), (64, 1, 1), None, *arrays, *map(ctypes.c_int, numbers))
        first += len(group)
    return ring, total


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("sigmoid", "counted"), [(False, False), (True, True), (False, True)])
def test_windows_blended_at_once_give_the_sums_of_one_after_the_other(dtype, sigmoid, counted):
    scores = (np.random.default_rng(4).normal(size=(len(WINDOWS), CLASSES, *PATCH)) * 9).astype(dtype)
    at_once = blended(list(near_windows(WINDOWS, PATCH)), scores, sigmoid, counted, dtype)
    in_turn = blended([[window] for window in WINDOWS], scores, sigmoid, counted, dtype)
    for one, other in zip(at_once, in_turn, strict=True):
        np.testing.assert_array_equal(one, other)
    untouched = np.random.default_rng(2).random((CLASSES, *PLANES), np.float32)
    assert (at_once[0] != untouched).any() and (at_once[0][:, 1] == untouched[:, 1]).all()


def test_windows_are_grouped_while_the_box_around_them_is_no_larger_than_they_are():
    groups = list(near_windows(WINDOWS, PATCH))
    assert [window for group in groups for window in group] == WINDOWS
    assert [len(group) for group in groups] == [4, 1, 1]
    # Eight mirrored forms of one window.
    forms = [((0, 2, 2), flip) for flip in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))]
    assert [len(group) for group in near_windows(forms, PATCH)] == [4, 4]
    assert list(near_windows([], PATCH)) == []


def test_numbers_that_kernels_and_launches_share_are_the_same():
    assert f"#define AT_ONCE {BLENDED_AT_ONCE}\n" in gpu_kernels.source()
    assert f"#define PLANES_AT_ONCE {gpu_label_resampling._PLANES_AT_ONCE}\n" in gpu_kernels.resampling_source()
