"""Several GPUs together: which ones a device names, and copies from the memory of one to that of another."""

from __future__ import annotations

from collections.abc import Sequence

from ...devices import names_several, single_devices
from ...errors import EngineError
from .device import DeviceBuffer, Gpu, Stream, checked, choose_gpu, gpus

#: The driver's words for "it was done before", and for "it has links to as many as it can".
_ALREADY, _TOO_MANY = 704, 711


def gpus_of(device: str) -> list[str]:
    """Return the name of each GPU that a device stands for, such as ["gpu:0", "gpu:1"] for "gpu:all"; any other device is itself.

    Raises:
        EngineError: a GPU that is not there, or is too old for INT8; names it.
        DependencyError: several were named, and cuda-python or the driver is missing.
    """
    if not names_several(device):
        return [device]
    if device != "gpu:all":
        return [f"gpu:{choose_gpu(name).index}" for name in single_devices(device)]
    known = gpus()
    usable = [f"gpu:{info.index}" for info in known if not info.reason_unfit]
    if not usable:
        reasons = "; ".join(info.reason_unfit for info in known) or "there is none, or its driver is missing"
        raise EngineError(f"No NVIDIA GPU can be used here: {reasons}.", "Choose the device cpu.")
    return usable


def reaches(gpu: Gpu, other: Gpu) -> bool:
    """Whether a GPU reads the memory of another one directly, once both are connected; itself it always does."""
    if gpu.info.index == other.info.index:
        return True
    return bool(checked(gpu.driver.cuDeviceCanAccessPeer(gpu.device, other.device), "look for a link between GPUs"))


def connect(gpus: Sequence[Gpu]) -> None:
    """Let GPUs read each other's memory directly, where they can; copies take a detour through the computer's memory where they cannot."""
    for gpu in gpus:
        gpu.enter()
        for other in gpus:
            if other.info.index == gpu.info.index:
                continue
            if reaches(gpu, other):
                result = gpu.driver.cuCtxEnablePeerAccess(other.context, 0)
                if int(result[0]) not in (_ALREADY, _TOO_MANY):
                    checked(result, "open the link between GPUs")


def copy_between(
    source: DeviceBuffer, target: DeviceBuffer, stream: Stream, first: int = 0, size: int | None = None, to: int = 0
) -> None:
    """Copy ``size`` bytes of a buffer, from byte ``first`` on, to byte ``to`` of one that may lie on another GPU.

    Args:
        stream: of the target's GPU, which is current. What fills the source must be done.
    """
    size = source.nbytes - first if size is None else size
    assert first + size <= source.nbytes and to + size <= target.nbytes
    if size < 1:
        return
    driver, begin, end = target.gpu.driver, source.pointer + first, target.pointer + to
    if source.gpu.info.index == target.gpu.info.index:
        copied = driver.cuMemcpyDtoDAsync(end, begin, size, stream.handle)
    else:
        copied = driver.cuMemcpyPeerAsync(end, target.gpu.context, begin, source.gpu.context, size, stream.handle)
    checked(copied, "copy from another GPU")
