"""A GPU whose memory is the computer's and whose networks are run by the reference in NumPy, for tests without one: a command as a whole can be
run with CUDA INT8. Contexts must be current where the real driver asks for one; kernels beside the network's do not run.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from types import SimpleNamespace

import numpy as np

import kernels_on_processor
from gpu_stand_in import ContextDriver
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda.compiler import Compiler
from MedQuantINT8Lib.engines.cuda_int8 import backend
from MedQuantINT8Lib.engines.cuda_int8.reference.executor import ReferenceExecutor
from MedQuantINT8Lib.engines.cuda_int8.runtime.network import CudaInt8Network


class ComputingDriver(ContextDriver):
    def __init__(self, count=2):
        super().__init__(count)
        # What one thread records is not seen by another, as with the mode that is asked for.
        self._graphs, self._thread, self._numbers = {}, threading.local(), itertools.count(1)

    def needing(self, name):
        return {
            "cuMemAlloc": self.allocated,
            "cuMemGetInfo": lambda: (0, 40 << 30, 80 << 30),
            "cuGraphInstantiate": lambda graph, flags: (0, graph),
        }.get(name) or super().needing(name)

    def cuDeviceTotalMem(self, device):
        return 0, 80 << 30

    def cuMemFree(self, pointer):
        del self.memory[pointer]
        return (0,)

    cuMemFreeHost = cuMemFree

    def cuMemcpyHtoDAsync(self, to, source, size, stream):
        ctypes.memmove(to, source, size)
        return (0,)

    cuMemcpyDtoHAsync = cuMemcpyHtoDAsync

    def cuMemcpyDtoDAsync(self, to, source, size, stream):
        assert self.owner(to) == self.owner(source) == self.current - 100, "memory of another GPU"
        return self.cuMemcpyHtoDAsync(to, source, size, stream)

    def cuMemcpyPeerAsync(self, to, to_context, source, source_context, size, stream):
        assert (to_context, source_context) == (100 + self.owner(to), 100 + self.owner(source))
        assert to_context == self.current != source_context
        self.calls.append("cuMemcpyPeerAsync")
        return self.cuMemcpyHtoDAsync(to, source, size, stream)

    def cuMemsetD8Async(self, to, value, size, stream):
        ctypes.memset(to, value, size)
        return (0,)

    def cuLaunchKernel(self, *arguments):
        self.calls.append("cuLaunchKernel")
        return (0,)

    def do(self, work):
        """What a kernel would: now, or whenever what is being recorded is replayed."""
        recording = getattr(self._thread, "recording", None)
        if recording is None:
            work()
        else:
            recording.append(work)

    def cuStreamBeginCapture(self, stream, mode):
        self._thread.recording = []
        return (0,)

    def cuStreamEndCapture(self, stream):
        graph = next(self._numbers)
        self._graphs[graph] = self._thread.recording
        self._thread.recording = None
        return 0, graph

    def cuGraphLaunch(self, graph, stream):
        for work in self._graphs[graph]:
            work()
        return (0,)


def array_at(buffer, count):
    """The first of a buffer's patches, where they are."""
    shape = (count, *buffer.shape[1:])
    return np.frombuffer((ctypes.c_char * buffer.nbytes).from_address(buffer.pointer), buffer.dtype)[
        : int(np.prod(shape))
    ].reshape(shape)


def install_kernels(monkeypatch, count=2):
    """:func:`install`, with kernels beside the network's compiled for the processor (kernels_on_processor.py)."""
    driver = install(monkeypatch, count)
    monkeypatch.setattr(cuda.Gpu, "kernels", lambda gpu, source, names: kernels_on_processor.kernels(source, names))
    return driver


def install(monkeypatch, count=2):
    """Put it in the real one's place, as so many GPUs; gives the driver."""
    driver, weights = ComputingDriver(count), {}

    def key(plan):
        raw = {step.weights for step in plan.steps}
        rest = sorted((name, np.asarray(array).tobytes()) for name, array in plan.arrays.items() if name not in raw)
        return tuple((step.name, step.kind, step.int8) for step in plan.steps), tuple(rest)

    def planned(network, options):
        plan = plan_of_network(network, options)
        # A loaded plan has its weights in the order of its tiles, which the reference cannot read.
        weights[key(plan)] = dict(plan.arrays)
        return plan

    def enqueue(network, batch, source, target, stream):
        def work():
            # As on a real one, INT8 wins the race.
            for _ in range(1 if any(step.int8 for step in network.plan.steps) else 3):
                run = ReferenceExecutor(network.plan, batch)
                array_at(target, batch)[...] = run.run(array_at(source, batch).astype(np.float32))

        network.plan.arrays |= weights[key(network.plan)]
        driver.do(work)

    plan_of_network = backend.planned
    monkeypatch.setattr(backend, "planned", planned)
    monkeypatch.setattr(CudaInt8Network, "enqueue", enqueue)
    monkeypatch.setattr(Compiler, "binary", lambda compiler, source: b"\x7fELF")
    monkeypatch.setattr(Compiler, "warm_up", lambda compiler: None)
    monkeypatch.setattr(cuda, "bindings", lambda: (driver, SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))))
    return driver
