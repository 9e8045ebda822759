"""Freed memory of a GPU waits for its next use: within bounds, only after the GPU has ended its work, and no longer than it may."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import gpu_computing
from MedQuantINT8Lib.engines.cuda import block_cache, graph_capture
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda.block_cache import BlockCache
from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError

MB = 1 << 20


class OutOfMemory(int):
    name = "CUDA_ERROR_OUT_OF_MEMORY"


class Driver:
    """Memory of so many bytes, and a note of each call."""

    def __init__(self, total=1 << 40):
        self.total, self.held, self.calls, self._addresses = total, {}, [], itertools.count(1 << 12, 1 << 12)

    def cuMemAlloc(self, size):
        self.calls.append("allocate")
        if sum(self.held.values()) + size > self.total:
            return OutOfMemory(2), 0
        address = next(self._addresses)
        self.held[address] = size
        return 0, address

    def cuMemFree(self, pointer):
        del self.held[pointer]
        self.calls.append("free")
        return (0,)

    def cuCtxSynchronize(self):
        self.calls.append("synchronize")
        return (0,)


def test_a_block_is_used_again_once_the_gpu_has_ended_its_work():
    driver = Driver()
    cache = BlockCache(driver, 1 << 40)
    one, other = cache.allocate(30 * MB, "hold it"), cache.allocate(30 * MB, "hold it")
    assert one != other
    cache.free(one, 30 * MB)
    cache.free(other, 30 * MB)
    assert driver.calls == ["allocate"] * 2 and cache.nbytes == 60 * MB
    # One that is freed last comes first, and one wait is enough for both.
    assert cache.allocate(29 * MB + 1, "hold it") == other
    assert cache.allocate(30 * MB, "hold it") == one
    assert driver.calls[2:] == ["synchronize"] and cache.nbytes == 0
    # What was freed since is waited for again.
    cache.free(one, 30 * MB)
    assert cache.allocate(30 * MB, "hold it") == one
    assert driver.calls[3:] == ["synchronize"]


def test_small_and_unlike_blocks_are_the_drivers():
    driver = Driver()
    cache = BlockCache(driver, 1 << 40)
    cache.free(cache.allocate(1000, "hold it"), 1000)
    assert not driver.held and cache.nbytes == 0
    cache.free(cache.allocate(30 * MB, "hold it"), 30 * MB)
    cache.allocate(40 * MB, "hold it")
    cache.allocate(20 * MB, "hold it")
    assert driver.calls[2:] == ["allocate"] * 3


@pytest.mark.parametrize("size", [MB, 2 * MB, 2 * MB + 1, 100 * MB + 1, 999 * MB, (1 << 32) + 1])
def test_a_block_is_little_larger_than_what_is_asked_for(size):
    driver = Driver()
    BlockCache(driver, 1 << 40).allocate(size, "hold it")
    (capacity,) = driver.held.values()
    assert size <= capacity <= size + max(2 * MB, size // 16)


def test_what_waits_is_bounded_and_the_oldest_goes_first():
    driver = Driver()
    cache = BlockCache(driver, 8 * 100 * MB)
    blocks = [cache.allocate(size * MB, "hold it") for size in (40, 50, 40)]
    for block, size in zip(blocks, (40, 50, 40), strict=True):
        cache.free(block, size * MB)
    assert set(driver.held) == set(blocks[1:]) and cache.nbytes == 90 * MB
    # One that is larger than all that may wait does not drive the others out.
    large = cache.allocate(200 * MB, "hold it")
    cache.free(large, 200 * MB)
    assert set(driver.held) == set(blocks[1:])


def test_what_waits_goes_where_memory_is_short():
    driver = Driver(100 * MB)
    cache = BlockCache(driver, 8 * 100 * MB)
    cache.free(cache.allocate(60 * MB, "hold it"), 60 * MB)
    block = cache.allocate(80 * MB, "hold it")
    assert list(driver.held) == [block] and cache.nbytes == 0
    with pytest.raises(GpuMemoryError, match="not enough free memory to hold it"):
        cache.allocate(30 * MB, "hold it")
    # And nothing was lost by that.
    cache.free(block, 80 * MB)
    assert cache.empty() and not driver.held and not cache.empty()


def test_processes_that_share_a_gpu_share_what_may_wait(monkeypatch):
    monkeypatch.setattr(block_cache, "_processes", 1)
    block_cache.share_with(4)
    driver = Driver()
    cache = BlockCache(driver, 4 * 8 * 50 * MB)
    for block in [cache.allocate(30 * MB, "hold it") for _ in range(3)]:
        cache.free(block, 30 * MB)
    assert cache.nbytes == 30 * MB and len(driver.held) == 1


def test_a_gpu_is_not_waited_for_while_another_thread_records(monkeypatch):
    driver, recorded_and_waited = Driver(), []
    cache = BlockCache(driver, 1 << 40)
    cache.free(cache.allocate(30 * MB, "hold it"), 30 * MB)
    begun = threading.Event()

    def wait():
        begun.set()
        cache.allocate(30 * MB, "hold it")

    monkeypatch.setattr(driver, "cuCtxSynchronize", lambda: recorded_and_waited.append("waited") or (0,))
    thread = threading.Thread(target=wait)

    def enqueue(stream):
        thread.start()
        begun.wait()
        thread.join(0.05)
        recorded_and_waited.append("recorded")

    names = ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy")
    calls = dict.fromkeys(names, lambda *_: (0, 1))
    mode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=2)
    gpu = SimpleNamespace(driver=SimpleNamespace(CUstreamCaptureMode=mode, **calls))
    graph_capture.recorded(gpu, SimpleNamespace(handle=7), enqueue)
    thread.join()
    assert recorded_and_waited == ["recorded", "waited"]


@pytest.fixture
def driver(monkeypatch):
    return gpu_computing.install(monkeypatch)


def test_objects_of_one_gpu_share_what_waits_and_closing_ends_it(driver):
    one, other, second = cuda.Gpu(0), cuda.Gpu(0), cuda.Gpu(1)
    free = one.free_bytes
    one.enter()
    buffer = one.allocate((3, MB), np.uint8)
    pointer = buffer.pointer
    buffer.free()
    assert buffer.pointer == 0 and pointer in driver.memory
    assert one.free_bytes == free + 4 * MB, "the stand-in's own number never changes"
    second.enter()
    assert second.allocate((3, MB), np.uint8).pointer != pointer
    other.enter()
    with cuda.Gpu(0):
        """One that was opened for a look takes nothing away."""
    other.enter()
    again = other.allocate((3, MB), np.uint8)
    assert again.pointer == pointer
    again.free()
    one.enter()
    one.close()
    assert pointer not in driver.memory and other.blocks.nbytes == 0
    for gpu in (other, second):
        gpu.enter()
        gpu.close()
    assert not [address for address, memory in driver.memory.items() if len(memory) >= block_cache.LEAST]


def test_memory_waits_on_where_whoever_closes_spares_it_and_others_stay(driver):
    engine, helper = cuda.Gpu(0), cuda.Gpu(0)
    engine.allocate((MB,), np.uint8).free()
    assert helper.allocate((MB,), np.uint8).change_owner(engine)
    engine.enter()
    helper.enter()
    helper.close(spare_blocks=True)
    for buffer in list(engine._buffers.values()):
        buffer.free()
    assert engine.blocks.nbytes == 2 * MB
    helper = cuda.Gpu(0)
    helper.allocate((MB,), np.uint8).free()
    helper.close(spare_blocks=True)
    assert engine.blocks.nbytes == 2 * MB
    engine.enter()
    engine.close()
    helper = cuda.Gpu(0)
    helper.allocate((MB,), np.uint8).free()
    helper.close(spare_blocks=True)
    assert helper.blocks.nbytes == 0 and not driver.memory


def test_a_buffer_is_freed_once(driver):
    gpu = cuda.Gpu(0)
    buffer = gpu.allocate((MB,), np.uint8)
    buffer.free()
    buffer.free()
    assert gpu.blocks.nbytes == 2 * MB
    gpu.close()


def test_what_another_object_has_allocated_is_gone_with_the_last_that_owned_it(driver):
    one, other = cuda.Gpu(0), cuda.Gpu(0)
    buffer = one.allocate((MB,), np.uint8)
    assert buffer.change_owner(other)
    one.close()
    other.enter()
    buffer.free()
    other.close()
    assert other.blocks.nbytes == 0 and not driver.memory
