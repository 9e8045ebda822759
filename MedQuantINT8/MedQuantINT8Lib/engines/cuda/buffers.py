"""Memory of a GPU, and of the computer that a GPU copies from and to by itself."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .driver import checked

if TYPE_CHECKING:
    from .device import Gpu
    from .streams import Stream


class DeviceBuffer:
    """An array on the GPU. It has CUDA's array interface, so that torch and CuPy can look at it without a copy."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._gpu, self.shape, self.dtype = gpu, shape, dtype
        self.nbytes = int(np.prod(shape)) * dtype.itemsize
        self.pointer = gpu.blocks.allocate(self.nbytes, f"hold {self.nbytes / 1e6:.0f} MB more")
        gpu._buffers[self.pointer] = self

    @property
    def gpu(self) -> Gpu:
        """Where it lies."""
        return self._gpu

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
        }

    def upload(self, array: NDArray[Any], stream: Stream, *, keep: bool = True, to: int = 0) -> None:
        """Copy from the computer, to byte ``to`` on; ``array`` is held until the stream is next waited for, unless the caller keeps it."""
        array = np.ascontiguousarray(array, self.dtype)
        self.upload_bytes(array, stream, to)
        if keep:
            stream.keep(array)

    def upload_bytes(self, array: NDArray[Any], stream: Stream, to: int = 0) -> None:
        """Copy a contiguous array's bytes to byte ``to`` on, whatever its type; the caller keeps it until they are there."""
        assert array.flags.c_contiguous and to + array.nbytes <= self.nbytes
        checked(
            self._gpu.driver.cuMemcpyHtoDAsync(self.pointer + to, array.ctypes.data, array.nbytes, stream.handle),
            "copy to the GPU",
        )

    def download(self, array: NDArray[Any], stream: Stream, offset: int = 0) -> None:
        """Copy to the computer, from ``offset`` bytes on; ``array`` must be contiguous."""
        assert array.flags.c_contiguous and offset + array.nbytes <= self.nbytes
        checked(
            self._gpu.driver.cuMemcpyDtoHAsync(array.ctypes.data, self.pointer + offset, array.nbytes, stream.handle),
            "copy from the GPU",
        )

    def zero(self, stream: Stream) -> None:
        checked(self._gpu.driver.cuMemsetD8Async(self.pointer, 0, self.nbytes, stream.handle), "clear memory")

    def change_owner(self, gpu: Gpu) -> bool:
        """Let it be freed with another object of the same GPU; False where it lies on another GPU, or was freed."""
        pointer = self.pointer
        if not pointer or self._gpu.info.index != gpu.info.index or self._gpu._buffers.pop(pointer, None) is None:
            return False
        self._gpu = gpu
        gpu._buffers[pointer] = self
        gpu.note_allocation()
        return True

    def free(self) -> None:
        # Whoever takes it out frees it: another thread may close the GPU meanwhile.
        if self.pointer and self._gpu._buffers.pop(self.pointer, None) is not None:
            self._free()

    def _free(self) -> None:
        pointer, self.pointer = self.pointer, 0
        self._gpu.blocks.free(pointer, self.nbytes)


class PartBuffer(DeviceBuffer):
    """Some of a buffer's patches, (count, C, *patch), from number ``first`` on; it is not freed by itself."""

    def __init__(self, whole: DeviceBuffer, first: int, count: int) -> None:
        self._gpu, self._whole, self.pointer = whole.gpu, whole, patch_address(whole, first)
        self.shape, self.dtype = (count, *whole.shape[1:]), whole.dtype
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def free(self) -> None:
        """It ends with the whole."""


def patch_address(buffer: DeviceBuffer, number: int) -> int:
    """Where one of a buffer's patches (n, C, *patch) begins."""
    return int(buffer.pointer) + number * math.prod(buffer.shape[1:]) * buffer.dtype.itemsize


class PinnedBuffer:
    """An array in the computer's memory that stays where it is; ``array`` is its NumPy view, valid until ``free()``."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._gpu = gpu
        size = max(dtype.itemsize, int(np.prod(shape)) * dtype.itemsize)
        self._pointer = int(checked(gpu.driver.cuMemHostAlloc(size, 0), f"pin {size / 1e6:.0f} MB of memory"))
        raw = (ctypes.c_uint8 * size).from_address(self._pointer)
        self.array: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype)[: int(np.prod(shape))].reshape(shape)

    def free(self) -> None:
        if self._pointer:
            self.array = np.empty(0, self.array.dtype)
            checked(self._gpu.driver.cuMemFreeHost(self._pointer), "free pinned memory")
            self._pointer = 0
