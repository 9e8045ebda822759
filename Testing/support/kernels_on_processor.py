"""CUDA C without a GPU: kernels whose threads do not meet, compiled by the system's C++ compiler and run thread by thread.

Only kernels of 32-bit floats: half precision is written in the GPU's own assembler, which is left out.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILER = shutil.which("g++") or shutil.which("clang++")
_PRELUDE = """
#include <math.h>
#define __device__
#define __global__
struct Index { int x; };
extern "C" Index blockIdx, blockDim, gridDim, threadIdx;
Index blockIdx, blockDim, gridDim, threadIdx;
#define asm(...)
"""


class _Index(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int)]


class ProcessorKernel:
    """A compiled kernel, called as :class:`MedQuantINT8Lib.engines.cuda.device.Kernel` is."""

    def __init__(self, library, name):
        self._function, self.name = getattr(library, name), name
        self._index = {key: _Index.in_dll(library, key) for key in ("blockIdx", "blockDim", "gridDim", "threadIdx")}

    def __call__(self, grid, block, stream, *arguments):
        values = [ctypes.c_void_p(a.pointer) if hasattr(a, "pointer") else a for a in arguments]
        self._index["gridDim"].x, self._index["blockDim"].x = grid[0], block[0]
        for self._index["blockIdx"].x, self._index["threadIdx"].x in itertools.product(range(grid[0]), range(block[0])):
            self._function(*values)


def kernels(source, names):
    """The kernels of a CUDA C text by name, in place of a GPU's own."""
    with tempfile.TemporaryDirectory() as scratch:
        text, library = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
        text.write_text(_PRELUDE + source, encoding="utf-8")
        subprocess.run([COMPILER, "-O1", "-w", "-shared", "-fPIC", str(text), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    return {name: ProcessorKernel(loaded, name) for name in names}
