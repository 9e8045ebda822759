"""Large arrays on their way to a GPU and back, over a stand-in driver whose memory is the computer's; on a real GPU where there is one."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpu_computing
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import transfers
from MedQuantINT8Lib.engines.cuda.driver import GpuError
from pointwise import needs_gpu

_CHUNK = 1000


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(transfers, "_CHUNK", _CHUNK)
    monkeypatch.setattr(transfers, "LARGE", 2 * _CHUNK)
    return gpu_computing.install(monkeypatch)


def there_and_back(gpu, array, offset):
    stream, buffer = gpu.stream(), gpu.allocate((array.nbytes + offset,), np.uint8)
    whole = np.empty(array.nbytes + offset, np.uint8)
    transfers.upload(buffer, array.view(np.uint8), stream, offset)
    transfers.download(buffer, whole, stream)
    part = np.empty_like(array)
    transfers.download(buffer, part, stream, offset)
    buffer.free()
    stream.free()
    assert np.array_equal(part, array) and np.array_equal(whole[offset:], array.view(np.uint8))


@pytest.mark.parametrize("size", [1, _CHUNK - 1, 2 * _CHUNK, 2 * _CHUNK + 1, 57 * _CHUNK + 3])
@pytest.mark.parametrize("offset", [0, 12])
def test_every_byte_arrives(driver, size, offset):
    with cuda.Gpu(0) as gpu:
        there_and_back(gpu, np.random.default_rng(0).integers(0, 256, size).astype(np.uint8), offset)
    assert not driver.memory, "pinned memory is freed with the GPU"


def test_arrays_that_are_not_contiguous_are_uploaded_in_their_order(driver):
    array = np.arange(40 * 50 * 30, dtype=np.int16).reshape(40, 50, 30).T[::-1]
    with cuda.Gpu(0) as gpu:
        stream, buffer = gpu.stream(), gpu.allocate(array.shape, array.dtype)
        transfers.upload(buffer, array, stream)
        result = np.empty(array.shape, array.dtype)
        transfers.download(buffer, result, stream)
        assert np.array_equal(result, array)


def test_many_threads_share_the_pinned_memory(driver):
    arrays = [np.random.default_rng(n).integers(0, 256, 30 * _CHUNK + n).astype(np.uint8) for n in range(6)]
    errors = []
    with cuda.Gpu(0) as gpu:

        def work(array):
            try:
                gpu.enter()
                there_and_back(gpu, array, 0)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(array,)) for array in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors and not driver.memory


@pytest.mark.parametrize("call", ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"])
def test_a_copy_that_fails_is_an_error_and_the_next_one_works(driver, monkeypatch, call):
    array = np.random.default_rng(0).integers(0, 256, 20 * _CHUNK).astype(np.uint8)
    with cuda.Gpu(0) as gpu:
        with monkeypatch.context() as patch:
            patch.setattr(driver, call, lambda *arguments: (700,), raising=False)
            with pytest.raises(GpuError, match="GPU"):
                there_and_back(gpu, array, 0)
        there_and_back(gpu, array, 0)


def test_no_pinned_memory_is_left_where_there_is_not_enough(driver, monkeypatch):
    real, count = cuda.Gpu.pinned, []

    def pinned(gpu, shape, dtype):
        count.append(1)
        if len(count) > 3:
            raise GpuError("no more")
        return real(gpu, shape, dtype)

    monkeypatch.setattr(cuda.Gpu, "pinned", pinned)
    with cuda.Gpu(0) as gpu:
        with pytest.raises(GpuError, match="no more"):
            transfers.transfers_of(gpu)
        assert not driver.memory


@needs_gpu
def test_a_real_gpu_gives_back_what_it_got():
    array = np.random.default_rng(0).integers(0, 256, 3 * transfers.LARGE + 12345).astype(np.uint8)
    with cuda.Gpu() as gpu:
        for offset in (0, 4096):
            there_and_back(gpu, array, offset)
