"""Arrays of other libraries that lie on the GPU already (torch, CuPy, JAX): looked at, neither copied nor freed.

DLPack (https://dmlc.github.io/dlpack/latest/c_api.html, the struct DLManagedTensor) is asked first: with it the other library orders
its own work before ours. CUDA's array interface, version 3, is taken where there is no DLPack.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import EngineError
from .device import DeviceBuffer, Gpu, Stream

_CUDA_DEVICE = 2
_KINDS = {0: "i", 1: "u", 2: "f"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def is_on_gpu(array: Any) -> bool:
    """Whether the array lies on a GPU (ours, or another library's)."""
    if isinstance(array, DeviceBuffer):
        return True
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) == _CUDA_DEVICE
    return hasattr(array, "__cuda_array_interface__")


def borrowed(gpu: Gpu, array: Any, stream: Stream) -> DeviceBuffer:
    """The array as a buffer; it must stay as it is while the buffer is used.

    Args:
        stream: where it will be used: work that makes the array is done before.

    Raises:
        EngineError: it lies on another GPU, is not contiguous, or has a type that NumPy lacks.
    """
    if isinstance(array, DeviceBuffer):
        return array
    if hasattr(array, "__dlpack__"):
        return _from_dlpack(gpu, array.__dlpack__(stream=int(stream.handle)))
    described = array.__cuda_array_interface__
    shape, dtype = tuple(described["shape"]), np.dtype(described["typestr"])
    strides = described.get("strides")
    in_items = None if strides is None else [s // dtype.itemsize for s in strides]
    return _Borrowed(gpu, array, int(described["data"][0]), shape, dtype, in_items)


def _from_dlpack(gpu: Gpu, capsule: Any) -> DeviceBuffer:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The capsule is kept, and not taken over: it lets the tensor go when it is let go itself.
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    if tensor.device_type != _CUDA_DEVICE or tensor.device_id != gpu.info.index:
        raise EngineError(f"The array lies on another device than GPU {gpu.info.index}.", "Move it there first.")
    if tensor.lanes != 1 or tensor.code not in _KINDS:
        raise EngineError(
            "The array on the GPU has a type that is not known here.", "Give float32, int16, uint16 or uint8."
        )
    shape = tuple(tensor.shape[n] for n in range(tensor.ndim))
    strides = [tensor.strides[n] for n in range(tensor.ndim)] if tensor.strides else None
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    return _Borrowed(gpu, capsule, int(tensor.data or 0) + int(tensor.byte_offset), shape, dtype, strides)


class _Borrowed(DeviceBuffer):
    def __init__(
        self,
        gpu: Gpu,
        owner: Any,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: Sequence[int] | None,
    ) -> None:
        if strides is not None and not _contiguous(shape, strides):
            raise EngineError("The array on the GPU is not contiguous.", "Give a contiguous one.")
        self._gpu, self._owner, self.pointer = gpu, owner, pointer
        self.shape, self.dtype = shape, dtype
        self.nbytes = int(np.prod(shape)) * dtype.itemsize

    def free(self) -> None:
        self._owner = None


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether strides, in items, are those of an array without gaps."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
