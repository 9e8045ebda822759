"""CUDA C to machine code of the GPU at hand, by NVRTC; binaries are kept beside the engines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from ...files import replacing
from ...progress import Task
from ..cache import cache_root
from .driver import GpuError, checked, nvrtc_version

#: What is compiled so that NVRTC reads its libraries, which takes seconds the first time.
_LEAST = 'extern "C" __global__ void run() {}'
#: The last one is what older versions need for lambda expressions.
_OPTIONS = (b"--std=c++17", b"--fmad=false", b"--device-as-default-execution-space")


def architecture_of(capability: tuple[int, int]) -> str:
    """The name that NVRTC compiles for. On 9.0 the one with that generation's own matrix instructions."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if capability == (9, 0) else ''}"


class Compiler:
    """Compiles for one GPU, with NVRTC's bindings."""

    def __init__(self, nvrtc: Any, capability: tuple[int, int]) -> None:
        self._nvrtc = nvrtc
        self._architecture = architecture_of(capability)
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[str, Future[bytes]] = {}

    @cached_property
    def _version(self) -> tuple[int, ...]:
        # Asked for when first needed: a GPU is also opened by engines that compile nothing, where NVRTC need not be installed.
        return nvrtc_version(self._nvrtc)

    def warm_up(self) -> None:
        """Let NVRTC read its libraries while something else is done."""
        self._threads().submit(self._compiled, _LEAST)

    def begin(self, sources: Iterable[str]) -> None:
        """Start to compile on several threads, first come first served; :meth:`binaries` waits for what it needs."""
        for source in sources:
            if source not in self._begun:
                self._begun[source] = self._threads().submit(self.binary, source)

    def binaries(self, sources: Sequence[str], task: Task | None = None) -> list[bytes]:
        """Machine code of each source; what is not kept yet is compiled on several threads.

        Raises:
            GpuError: a source does not compile; holds the compiler's own words.
            Cancelled: the task was cancelled.
        """
        task = task or Task()
        self.begin(sources)
        different = dict.fromkeys(sources)
        try:
            with task.stage("compiling kernels", len(different)):
                binaries = {}
                for source in different:
                    binaries[source] = self._begun.pop(source).result()
                    task.step()
        except BaseException:
            self.stop()
            raise
        if not self._begun:
            self.stop()
        return [binaries[source] for source in sources]

    def stop(self) -> None:
        """Give up what was begun and not asked for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._begun = None, {}

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "compiler")
        return self._pool

    def binary(self, source: str) -> bytes:
        key = hashlib.sha256(repr((source, self._architecture, self._version, _OPTIONS)).encode()).hexdigest()[:24]
        path = cache_root() / "kernels" / f"{key}.cubin"
        if path.is_file():
            return path.read_bytes()
        binary = self._compiled(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            Path(scratch).write_bytes(binary)
        return binary

    def _compiled(self, source: str) -> bytes:
        nvrtc = self._nvrtc
        program = checked(nvrtc.nvrtcCreateProgram(source.encode(), b"medquant.cu", 0, [], []), "start NVRTC")
        options = [f"--gpu-architecture={self._architecture}".encode(), *_OPTIONS]
        failed = int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0])
        if failed:
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program), "read NVRTC's log")
            nvrtc.nvrtcGetProgramLog(program, log)
            words = log.decode(errors="replace").strip(chr(0)).strip()
            raise GpuError(f"A kernel does not compile for {self._architecture}: {words}")
        binary = b" " * checked(nvrtc.nvrtcGetCUBINSize(program), "compile a kernel")
        checked(nvrtc.nvrtcGetCUBIN(program, binary), "compile a kernel")
        checked(nvrtc.nvrtcDestroyProgram(program), "end NVRTC")
        return binary
