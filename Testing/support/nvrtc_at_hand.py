"""NVIDIA's run-time compiler without a GPU or its driver: the library of the wheel nvidia-cuda-nvrtc, called as cuda-python calls it.

``make test`` installs the wheel below .venv/tensorrt (proprietary: installed, never part of this project).
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from MedQuantINT8Lib.engines.cuda.compiler import Compiler
from tensorrt_at_hand import FOLDER


def library() -> Path | None:
    return next((FOLDER / "nvrtc").glob("nvidia/*/lib*/libnvrtc.so.1[0-9]"), None)


class Nvrtc:
    """The calls that :class:`Compiler` makes, with results as the bindings give them: the code first."""

    def __init__(self) -> None:
        path = library()
        assert path is not None
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._nvrtc = ctypes.CDLL(str(path))

    def nvrtcVersion(self) -> tuple[int, int, int]:
        major, minor = c_int(), c_int()
        return self._nvrtc.nvrtcVersion(byref(major), byref(minor)), major.value, minor.value

    def nvrtcCreateProgram(
        self, source: bytes, name: bytes, count: int, headers: list[Any], names: list[Any]
    ) -> tuple[int, c_void_p]:
        program = c_void_p()
        return self._nvrtc.nvrtcCreateProgram(byref(program), source, name, 0, None, None), program

    def nvrtcCompileProgram(self, program: c_void_p, count: int, options: list[bytes]) -> tuple[int]:
        return (self._nvrtc.nvrtcCompileProgram(program, count, (c_char_p * count)(*options)),)

    def nvrtcGetCUBINSize(self, program: c_void_p) -> tuple[int, int]:
        return self._size(self._nvrtc.nvrtcGetCUBINSize, program)

    def nvrtcGetProgramLogSize(self, program: c_void_p) -> tuple[int, int]:
        return self._size(self._nvrtc.nvrtcGetProgramLogSize, program)

    def nvrtcGetCUBIN(self, program: c_void_p, into: bytes) -> tuple[int]:
        return (self._nvrtc.nvrtcGetCUBIN(program, c_char_p(into)),)

    def nvrtcGetProgramLog(self, program: c_void_p, into: bytes) -> tuple[int]:
        return (self._nvrtc.nvrtcGetProgramLog(program, c_char_p(into)),)

    def nvrtcDestroyProgram(self, program: c_void_p) -> tuple[int]:
        return (self._nvrtc.nvrtcDestroyProgram(byref(program)),)

    @staticmethod
    def _size(call: Any, program: c_void_p) -> tuple[int, int]:
        size = c_size_t()
        return call(program, byref(size)), size.value


def compiler(capability: tuple[int, int]) -> Compiler:
    return Compiler(Nvrtc(), capability)
