"""NVIDIA GPUs through cuda-python: devices, with their memory (:mod:`.buffers`), streams and events (:mod:`.streams`), and kernels compiled at run time by NVRTC.

No torch and no compiler: the GPU's driver and ``cuda.bindings`` (12.8 or later, 13.x) are all it takes. Every call's result is
checked. Work never runs on the default stream, so that it does not wait for, or hold up, another library's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ...devices import names_several
from ...errors import EngineError
from ...progress import Task
from .block_cache import BlockCache
from .buffers import DeviceBuffer, PartBuffer, PinnedBuffer, patch_address
from .compiler import Compiler
from .driver import GpuError, GpuMemoryError, bindings, checked, recording, start_driver
from .streams import Event, Kernel, Stream

__all__ = [
    "DeviceBuffer",
    "Event",
    "Gpu",
    "GpuError",
    "GpuInfo",
    "GpuMemoryError",
    "Kernel",
    "PartBuffer",
    "PinnedBuffer",
    "Stream",
    "bindings",
    "check_one_fits",
    "checked",
    "choose_gpu",
    "free_memory",
    "gpus",
    "patch_address",
]

_caches: dict[tuple[int, int], BlockCache] = {}
_caches_lock = threading.Lock()
#: The driver's words for "there is no GPU" and for a driver older than the bindings.
_NO_DEVICE, _OLD_DRIVER = 100, (35, 803, 804)
#: The oldest generation whose tensor cores multiply INT8 in 3D kernels (Ampere).
LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class GpuInfo:
    """What is known of a GPU without using it."""

    index: int
    name: str
    capability: tuple[int, int]
    total_bytes: int

    @property
    def title(self) -> str:
        """The GPU in words; part of the key of an engine's files."""
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"

    @property
    def reason_unfit(self) -> str:
        """Why INT8 networks cannot run on it, or an empty string."""
        if self.capability < LEAST_CAPABILITY:
            major, minor = self.capability
            return f"{self.name} (compute capability {major}.{minor}) is too old: INT8 needs 8.0 (Ampere) or later"
        return ""


def gpus() -> list[GpuInfo]:
    """All NVIDIA GPUs.

    Raises:
        DependencyError: cuda-python or the driver is missing.
        GpuError: the driver is too old, or does not start.
    """
    driver, _ = bindings()
    started = start_driver(driver)
    if started == _NO_DEVICE:
        return []
    if started in _OLD_DRIVER:
        raise GpuError(
            "NVIDIA's driver is too old for the installed cuda-python.",
            "Update the driver, or install an older one: pip install 'cuda-python<13'",
        )
    checked((started,), "start")
    attribute = driver.CUdevice_attribute
    infos = []
    for index in range(checked(driver.cuDeviceGetCount(), "count the GPUs")):
        device = checked(driver.cuDeviceGet(index), "open the GPU")
        major, minor = (
            checked(driver.cuDeviceGetAttribute(a, device), "read the GPU's properties")
            for a in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        name = checked(driver.cuDeviceGetName(128, device), "read the GPU's name").split(b"\0")[0].decode()
        infos.append(
            GpuInfo(index, name, (major, minor), checked(driver.cuDeviceTotalMem(device), "read the GPU's memory"))
        )
    return infos


def check_one_fits() -> None:
    """Make sure, without opening any, that there is a GPU for INT8.

    Raises:
        EngineError: there is none, or all are too old.
        DependencyError: cuda-python or the driver is missing.
    """
    known = gpus()
    if not known:
        raise EngineError("There is no NVIDIA GPU here, or its driver is missing.")
    if all(info.reason_unfit for info in known):
        raise EngineError(f"{known[0].reason_unfit}.")


def choose_gpu(device: str) -> GpuInfo:
    """The GPU that ``device`` names: "gpu:1" is the second; "gpu" and "auto" the one with most free memory.

    Raises:
        EngineError: there is no such GPU, or it is too old; or the processor was meant.
    """
    if device == "cpu":
        raise EngineError(
            "This engine runs on NVIDIA GPUs alone, not on the device cpu.",
            "Choose the device auto, or another engine.",
        )
    known = gpus()
    if not known:
        raise EngineError("There is no NVIDIA GPU here, or its driver is missing.", "Choose the device cpu.")
    if names_several(device):
        raise EngineError(f"One GPU is wanted here, not the device {device}.", "Choose the device gpu, or gpu:0.")
    if ":" in device:
        wanted = device.partition(":")[2]
        fitting = [info for info in known if str(info.index) == wanted]
        if not fitting:
            raise EngineError(
                f"There is no GPU number {wanted}.",
                f"There are: {', '.join(f'gpu:{g.index} {g.name}' for g in known)}.",
            )
        chosen = fitting[0]
    else:
        usable = [info for info in known if not info.reason_unfit] or known
        # Asking for free memory opens a GPU, which takes a fifth of a second.
        chosen = max(usable, key=lambda info: free_memory(info.index)) if len(usable) > 1 else usable[0]
    if chosen.reason_unfit:
        raise EngineError(f"{chosen.reason_unfit}.", "Choose another GPU, or the device cpu.")
    return chosen


def free_memory(index: int) -> int:
    """Bytes that are free on a GPU."""
    with Gpu(index) as gpu:
        return gpu.free_bytes


def _blocks_of(driver: Any, info: GpuInfo) -> BlockCache:
    """Return the blocks of a GPU that wait for their next use: one cache for all of a process that have opened it."""
    key = id(driver), info.index
    with _caches_lock:
        if key not in _caches:
            _caches[key] = BlockCache(driver, info.total_bytes)
        return _caches[key]


class Gpu:
    """A GPU in use: its primary context, which other libraries (torch, TensorRT) share, made current in this thread."""

    def __init__(self, index: int = 0) -> None:
        self.driver, self.nvrtc = bindings()
        checked((start_driver(self.driver),), "start")
        self.device = checked(self.driver.cuDeviceGet(index), "open the GPU")
        self.info = next(info for info in gpus() if info.index == index)
        self._context = checked(self.driver.cuDevicePrimaryCtxRetain(self.device), "open the GPU")
        self._compiler = Compiler(self.nvrtc, self.info.capability)
        self._modules: dict[str, Any] = {}
        self._buffers: dict[int, DeviceBuffer] = {}
        #: Freed blocks that wait for their next use; shared with all other objects of this GPU.
        self.blocks = _blocks_of(self.driver, self.info)
        self._has_allocated = False
        self._closers: list[Callable[[], None]] = []
        self.enter()

    def enter(self) -> None:
        """Make it current in the calling thread."""
        checked(self.driver.cuCtxSetCurrent(self._context), "use the GPU")

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, spare_blocks: bool = False) -> None:
        """Free what was allocated through this object and let the context go; to others that use it, here, it stays current.

        Args:
            spare_blocks: freed memory may wait for others that have allocated on this GPU, as long as there are any; else all of it goes.
        """
        if self._context is None:
            return
        self._compiler.stop()
        current = checked(self.driver.cuCtxGetCurrent(), "look who uses it")
        self.enter()
        while self._closers:
            self._closers.pop()()
        while self._buffers:
            self._buffers.popitem()[1]._free()
        if self._has_allocated and not (self.blocks.end_use() and spare_blocks):
            # Whoever closes an engine wants its memory back.
            self.blocks.empty()
        for module in self._modules.values():
            checked(self.driver.cuModuleUnload(module), "unload kernels")
        self._modules = {}
        checked(self.driver.cuDevicePrimaryCtxRelease(self.device), "leave the GPU")
        _, in_use = checked(self.driver.cuDevicePrimaryCtxGetState(self.device), "look who uses it")
        gone = int(current) == int(self._context) and not in_use
        checked(self.driver.cuCtxSetCurrent(self.driver.CUcontext(0) if gone else current), "leave the GPU")
        self._context = None

    @property
    def context(self) -> Any:
        """The driver's handle of its context."""
        return self._context

    def when_closed(self, run: Callable[[], None]) -> None:
        """Have something called when it is closed, before its memory goes."""
        self._closers.append(run)

    @property
    def free_bytes(self) -> int:
        """Bytes that are free, or will be when they are asked for."""
        return int(checked(self.driver.cuMemGetInfo(), "read the free memory")[0]) + self.blocks.nbytes

    def allocate(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceBuffer:
        """Memory on the GPU for an array; freed by its ``free()``, or with this object.

        Raises:
            GpuMemoryError: there is not enough.
        """
        self.note_allocation()
        return DeviceBuffer(self, tuple(shape), np.dtype(dtype))

    def note_allocation(self) -> None:
        """Note that there is memory that goes with this object."""
        if not self._has_allocated:
            self._has_allocated = True
            self.blocks.begin_use()

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> PinnedBuffer:
        """Memory of the computer that the GPU copies from and to by itself."""
        return PinnedBuffer(self, tuple(shape), np.dtype(dtype))

    def stream(self, *, urgent: bool = False) -> Stream:
        return Stream(self, urgent=urgent)

    def event(self) -> Event:
        return Event(self)

    def kernels(self, source: str, names: Sequence[str]) -> dict[str, Kernel]:
        """Kernels of CUDA C source, compiled for this GPU; the binary is kept beside the engines.

        Args:
            names: of ``extern "C" __global__`` functions.

        Raises:
            GpuError: the source does not compile; holds the compiler's own words.
        """
        return {name: Kernel(self, self.compiled([source], name)[0], name) for name in names}

    def warm_compiler(self) -> None:
        """Make the compiler ready while something else is done: the first kernel of a process takes seconds longer."""
        self._compiler.warm_up()

    def begin_compiling(self, sources: Iterable[str]) -> None:
        """Start to compile what will be asked of :meth:`compiled`."""
        self._compiler.begin(source for source in sources if source not in self._modules)

    def compiled(self, sources: Sequence[str], name: str, task: Task | None = None) -> list[Any]:
        """The driver's handle of the function ``name`` in each of the sources, as :meth:`kernels`; many are compiled at once."""
        missing = [source for source in dict.fromkeys(sources) if source not in self._modules]
        for source, binary in zip(missing, self._compiler.binaries(missing, task), strict=True):
            self._modules[source] = checked(self.driver.cuModuleLoadData(binary), "load kernels")
        return [
            checked(self.driver.cuModuleGetFunction(self._modules[s], name.encode()), f"find the kernel {name}")
            for s in sources
        ]

    @property
    def processors(self) -> int:
        """How many multiprocessors it has."""
        attribute = self.driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        return int(checked(self.driver.cuDeviceGetAttribute(attribute, self.device), "read the GPU's properties"))

    def synchronize(self) -> None:
        with recording:
            checked(self.driver.cuCtxSynchronize(), "finish its work")
