"""Packing and unpacking of voxels by deflate: isal where it is installed, else zlib."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEVEL = 4
#: isal's level for label maps: smaller files than zlib's, in an eighth of its time.
_ISAL_LEVEL = 1


def inflating() -> Any:
    """Return the module that unpacks; isal takes half of zlib's time, of which a CT of 512 x 512 x 400 takes a second or more."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def packer(data: NDArray[Any], window: int) -> Any:
    """Return what packs voxels: an object with ``compress`` and ``flush``, as zlib's.

    Args:
        data: what will be packed. Voxels of a byte each are taken for a label map, whose long runs of equal ones are packed in
            less time than anything else.
        window: zlib's ``wbits``, which says what stands around the packed bytes: 15 zlib's header, 31 gzip's.
    """
    if data.dtype.itemsize > 1:
        return zlib.compressobj(_LEVEL, zlib.DEFLATED, window)
    packing = inflating()
    if packing is zlib:
        # Of all that zlib can do, looking for runs alone takes half the time.
        return zlib.compressobj(_LEVEL, zlib.DEFLATED, window, strategy=zlib.Z_RLE)
    return packing.compressobj(_ISAL_LEVEL, zlib.DEFLATED, window)


def little_endian_bytes(data: NDArray[Any]) -> memoryview:
    """Return the bytes of voxels, in the order in which files have them; those of ``data`` itself where they are so already."""
    return np.ascontiguousarray(data.astype(data.dtype.newbyteorder("<"), copy=False)).reshape(-1).view(np.uint8).data
