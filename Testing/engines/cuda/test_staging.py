"""Large arrays go through pinned memory by several threads; over a stand-in driver whose GPU's memory is the computer's."""

from __future__ import annotations

import numpy as np
import pytest

import gpu_computing
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import staging
from MedQuantINT8Lib.engines.cuda.staging import staging_of


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(staging, "CHUNK", 1000)
    monkeypatch.setattr(staging, "LEAST", 5000)
    monkeypatch.setattr(staging, "cpu_count", lambda: 3)
    return gpu_computing.install(monkeypatch)


@pytest.mark.parametrize("size", [10, 4999, 5000, 8000, 100_001])
def test_an_array_comes_back_as_it_went_up(driver, size):
    array = np.random.default_rng(size).integers(-9, 9, size).astype(np.int16)
    with cuda.Gpu(0) as gpu:
        stream, buffer = gpu.stream(), gpu.allocate((size + 7,), np.int16)
        for _ in range(2):
            staging_of(gpu).upload(buffer, array[::-1], stream)
            result = np.zeros_like(array)
            staging_of(gpu).download(result, buffer, stream)
            np.testing.assert_array_equal(result, array[::-1])
        buffer.free()
        stream.free()
    pinned = driver.calls.count("cuMemFreeHost")
    assert pinned == len(driver.memory) == (6 if array.nbytes >= 5000 else 0)


def test_a_copy_that_fails_says_so_and_the_next_one_works(driver, monkeypatch):
    array = np.arange(9000, dtype=np.int32)
    with cuda.Gpu(0) as gpu:
        stream, buffer = gpu.stream(), gpu.allocate(array.shape, np.int32)
        real = type(driver).cuMemcpyHtoDAsync
        monkeypatch.setattr(type(driver), "cuMemcpyHtoDAsync", lambda *given: (700,))
        with pytest.raises(cuda.GpuError, match="copy to the GPU"):
            staging_of(gpu).upload(buffer, array, stream)
        monkeypatch.setattr(type(driver), "cuMemcpyHtoDAsync", real)
        staging_of(gpu).upload(buffer, array, stream)
        result = np.empty_like(array)
        staging_of(gpu).download(result, buffer, stream)
        np.testing.assert_array_equal(result, array)


def test_each_gpu_has_its_own_and_it_goes_with_the_gpu(driver):
    with cuda.Gpu(0) as first, cuda.Gpu(1) as second:
        assert staging_of(first) is staging_of(first) is not staging_of(second)
        known = len(staging._KNOWN)
    assert len(staging._KNOWN) == known - 2
