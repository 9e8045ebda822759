"""A GPU that does nothing, for tests without one: calls of the driver succeed and are noted, memory is a range of addresses, no kernel runs.

A call that the real bindings do not have, or that they would refuse for the number of its arguments, fails (cuda_bindings.txt).

What kernels compute is tested by the reference in NumPy and on a real GPU (test_cuda_int8.py, test_cuda_int8_gpu.py); here only what is
asked of the driver.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from MedQuantINT8Lib.engines.cuda.device import GpuInfo
from MedQuantINT8Lib.engines.cuda_int8.runtime.program import PARAMS


def _bindings():
    """Functions of the real bindings with the number of their arguments, and enumerations with their members."""
    functions, enumerations = {}, {}
    for line in Path(__file__).with_name("cuda_bindings.txt").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if name.startswith("cu"):
            functions[name] = int(rest[0])
        elif name != "#":
            enumerations[name] = SimpleNamespace(**{member: member for member in rest})
    return functions, enumerations


FUNCTIONS, ENUMERATIONS = _bindings()


class Driver:
    """Every call that the real bindings have gives success and a handle."""

    def __init__(self):
        self.calls, self.launches = [], []

    def __getattr__(self, name):
        if name in ENUMERATIONS:
            return ENUMERATIONS[name]
        if name not in FUNCTIONS:
            raise AttributeError(f"cuda.bindings.driver has no {name}")

        def call(*arguments):
            if len(arguments) != FUNCTIONS[name]:
                raise TypeError(f"{name} takes {FUNCTIONS[name]} arguments, not {len(arguments)}")
            self.calls.append(name)
            return 0, 1

        return call

    def cuEventElapsedTime(self, *arguments):
        # Kernels that are launched later seem slower.
        return 0, float(len(self.calls))

    def CUlaunchAttribute(self):
        return SimpleNamespace(id=None, value=SimpleNamespace())

    def CUlaunchConfig(self):
        return SimpleNamespace()

    def cuLaunchKernelEx(self, configuration, function, arguments, extra):
        """As cuLaunchKernel; what is noted names the attributes as well."""
        c = configuration
        assert c.numAttrs == len(c.attrs)
        grid, block = (c.gridDimX, c.gridDimY, c.gridDimZ), (c.blockDimX, c.blockDimY, c.blockDimZ)
        launched = self.cuLaunchKernel(function, *grid, *block, c.sharedMemBytes, c.hStream, arguments, extra)
        if self.launches:
            self.launches[-1].attributes = {attribute.id: vars(attribute.value) for attribute in c.attrs}
        return launched

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        address = ctypes.c_uint64.from_address(arguments).value
        params = np.frombuffer(ctypes.string_at(address, PARAMS.itemsize), PARAMS)[0].copy()
        self.launches.append(
            SimpleNamespace(
                function=function, grid=(gx, gy, gz), block=(bx, by, bz), shared=shared, params=params, stream=stream
            )
        )
        return (0,)


class ContextDriver(Driver):
    """Several GPUs (two, unless a test asks for more), of which the primary context, per thread, must be current for what needs one, as with the real driver."""

    NEEDING = (
        "cuMemAlloc",
        "cuMemHostAlloc",
        "cuMemGetInfo",
        "cuStreamCreateWithPriority",
        "cuEventCreate",
        "cuGraphInstantiate",
        "cuModuleLoadData",
    )
    INVALID_CONTEXT = 201

    def __init__(self, count=2):
        super().__init__()
        self.holders, self.memory, self._threads = dict.fromkeys(range(count), 0), {}, threading.local()
        #: The GPU that each allocation lies on.
        self.owners = {}

    def __getattr__(self, name):
        if name not in self.NEEDING:
            return super().__getattr__(name)
        call = self.needing(name)
        return lambda *arguments: (
            call(*arguments)
            if self.current in (100 + d for d, held in self.holders.items() if held)
            else (self.INVALID_CONTEXT,)
        )

    def needing(self, name):
        """What a call that needs a context does with one."""
        return self.allocated if name == "cuMemHostAlloc" else super().__getattr__(name)

    @property
    def current(self):
        return getattr(self._threads, "context", 0)

    def CUcontext(self, handle):
        return handle

    def cuDeviceGetCount(self):
        return 0, len(self.holders)

    def cuDeviceGet(self, index):
        return 0, index

    def cuDeviceGetAttribute(self, attribute, device):
        return 0, 9

    def cuDeviceGetName(self, length, device):
        return 0, b"Stand-in\0"

    def cuDevicePrimaryCtxRetain(self, device):
        self.holders[device] += 1
        return 0, 100 + device

    def cuDevicePrimaryCtxRelease(self, device):
        self.holders[device] -= 1
        return (0,)

    def cuDevicePrimaryCtxGetState(self, device):
        return 0, 0, int(self.holders[device] > 0)

    def cuCtxGetCurrent(self):
        return 0, self.current

    def cuCtxSetCurrent(self, context):
        self._threads.context = context
        return (0,)

    def allocated(self, size, flags=0):
        memory = ctypes.create_string_buffer(max(size, 1))
        address = ctypes.addressof(memory)
        self.memory[address], self.owners[address] = memory, self.current - 100
        return 0, address

    def owner(self, address):
        """The GPU whose memory an address lies in; None for no address of any."""
        for begin, memory in list(self.memory.items()):
            if begin <= address < begin + len(memory):
                return self.owners[begin]
        return None


class Buffer:
    def __init__(self, gpu, pointer, shape, dtype):
        self._gpu, self.pointer, self.shape, self.dtype = gpu, pointer, tuple(shape), np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self.held = None

    def upload(self, array, stream, **kwargs):
        assert array.nbytes <= self.nbytes
        self.held = np.array(array)

    def zero(self, stream):
        self.held = np.zeros(self.shape, self.dtype)

    def free(self):
        self._gpu.buffers.pop(self.pointer, None)


class Queue:
    """A stream: notes what waits for what, by how many launches there were."""

    def __init__(self, gpu, handle, urgent=False):
        self._gpu, self.handle, self.urgent = gpu, handle, urgent
        self.waited = []

    def wait_for(self, event):
        self.waited.append((len(self._gpu.driver.launches), event))

    def synchronize(self):
        """Nothing is under way."""

    def free(self):
        self._gpu.streams.remove(self)


class Mark:
    """An event: notes where it was recorded."""

    def __init__(self, gpu):
        self._gpu = gpu
        self.recorded = []

    def record(self, stream):
        self.recorded.append((len(self._gpu.driver.launches), stream))

    def wait(self):
        """It is over."""

    def milliseconds_since(self, other):
        return self._gpu.driver.cuEventElapsedTime()[1]

    def free(self):
        self._gpu.events.remove(self)


class StandInGpu:
    """In place of engines.cuda.Gpu."""

    def __init__(self, capability=(9, 0), processors=132):
        self.info = GpuInfo(0, "Stand-in", capability, 80 << 30)
        self.processors, self.driver, self.buffers, self.sources = processors, Driver(), {}, []
        self.begun, self.streams, self.events = [], [], []
        self._next, self._handles, self.closed = 1 << 20, 0, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def enter(self):
        """Nothing has to be made current."""

    def allocate(self, shape, dtype):
        buffer = Buffer(self, self._next, shape, dtype)
        self._next += (buffer.nbytes + 511) // 512 * 512 + 512
        self.buffers[buffer.pointer] = buffer
        return buffer

    def warm_compiler(self):
        """There is none."""

    def begin_compiling(self, sources):
        self.begun += sources

    def compiled(self, sources, name, task=None):
        self.sources += sources
        return list(range(len(sources)))

    def stream(self, *, urgent=False):
        self._handles += 1
        self.streams.append(Queue(self, self._handles, urgent))
        return self.streams[-1]

    def event(self):
        self.events.append(Mark(self))
        return self.events[-1]

    def close(self):
        self.closed = True
