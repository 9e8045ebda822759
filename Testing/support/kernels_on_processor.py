"""CUDA C without a GPU: kernels whose threads do not meet, compiled by the system's C++ compiler and run thread by thread.

What is written in the GPU's own assembler (the two conversions of half precision, reciprocals and powers of two) is replaced by C++; atomic additions
are plain ones, since one thread runs after the other.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILER = shutil.which("g++") or shutil.which("clang++")
_PRELUDE = """
#include <math.h>
#include <string.h>
#include <utility>
#define __device__
#define __global__
struct Index { int x; };
static thread_local Index blockIdx, blockDim, gridDim, threadIdx;
template <typename T> T atomicAdd(T* place, T value) { T before = *place; *place = before + value; return before; }
template <typename T> T atomicMin(T* place, T value) { T before = *place; if (value < before) *place = value; return before; }
template <typename T> T atomicMax(T* place, T value) { T before = *place; if (value > before) *place = value; return before; }
static float medquant_widened(unsigned short bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
static unsigned short medquant_narrowed(float value) { _Float16 h = (_Float16)value; unsigned short b; memcpy(&b, &h, 2); return b; }
template <typename F> struct Launch;
template <typename... A> struct Launch<void(A...)> {
  template <size_t... N> static void run(void (*kernel)(A...), void** arguments, std::index_sequence<N...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[N]...);
  }
  static void all(void (*kernel)(A...), void** arguments, int grid, int block) {
    gridDim.x = grid, blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) run(kernel, arguments, std::index_sequence_for<A...>());
  }
};
"""
_CONVERSIONS = {
    r'asm\("cvt\.f32\.f16[^;]*;[^;]*;': "f = medquant_widened(value.bits);",
    r'asm\("cvt\.rn\.f16\.f32[^;]*;[^;]*;': "h.bits = medquant_narrowed(value);",
    r'asm\("rcp\.approx[^"]*" : "=f"\((\w+)\) : "f"\((.*)\)\);': r"\1 = 1.0f / (\2);",
    r'asm\("ex2\.approx[^"]*" : "=f"\((\w+)\) : "f"\((.*)\)\);': r"\1 = exp2f(\2);",
}


class ProcessorKernel:
    """A compiled kernel, called as :class:`MedQuantINT8Lib.engines.cuda.device.Kernel` is."""

    def __init__(self, library, name):
        self._launch, self.name = getattr(library, f"launch_{name}"), name

    def __call__(self, grid, block, stream, *arguments):
        assert grid[1:] == block[1:] == (1, 1) and 1 <= block[0] <= 1024 and 1 <= grid[0] < 1 << 31
        values = [ctypes.c_void_p(a.pointer) if hasattr(a, "pointer") else a for a in arguments]
        assert all(isinstance(value, ctypes._SimpleCData) for value in values), "a bare number has no type"
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self._launch(addresses, grid[0], block[0])


@functools.cache
def _library(text):
    for pattern, conversion in _CONVERSIONS.items():
        text = re.sub(pattern, conversion, text)
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
        source.write_text(text, encoding="utf-8")
        # As the GPU computes: multiplications and additions are not fused.
        command = [COMPILER, "-std=c++17", "-O2", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def kernels(source, names):
    """The kernels of a CUDA C text by name, in place of a GPU's own."""
    launches = "".join(
        f'extern "C" void launch_{name}(void** a, int grid, int block) {{ Launch<decltype({name})>::all({name}, a, grid, block); }}\n'
        for name in names
    )
    loaded = _library(_PRELUDE + source + launches)
    return {name: ProcessorKernel(loaded, name) for name in names}
