"""Patches that a network works on one step after the other: their memory, and what each kernel is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...cuda.device import DeviceBuffer, Gpu, Stream, checked, patch_address
from ..plan.kernel_plan import KernelPlan, View
from .program import PARAMS, Grid, Program


class Memory:
    """Buffers on the GPU that are freed together."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._buffers: list[DeviceBuffer] = []

    def hold(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceBuffer:
        """Allocate a new buffer and keep it until it is freed.

        Raises:
            GpuMemoryError: it does not fit.
        """
        buffer = self._gpu.allocate(shape, dtype)
        self._buffers.append(buffer)
        return buffer

    def uploaded(self, array: NDArray[Any], stream: Stream) -> DeviceBuffer:
        buffer = self.hold(array.shape, array.dtype)
        buffer.upload(array, stream)
        return buffer

    @property
    def bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def count(self) -> int:
        return len(self._buffers)

    def free(self, first: int = 0) -> None:
        """Free all buffers from the ``first`` on."""
        for buffer in self._buffers[first:]:
            buffer.free()
        del self._buffers[first:]


@dataclass
class Constants:
    """The constants of a network on the GPU, which are the same for all patches.

    Attributes:
        arrays: of the plan, by name; not the weights.
        slots: of each norm, those of its groups.
    """

    arrays: dict[str, DeviceBuffer]
    slots: dict[str, DeviceBuffer]


class Launch:
    """A kernel with all that it is told; made once for as long as addresses stay the same, since that takes longer than to start it."""

    def __init__(self, function: Any, grid: Grid, threads: int, shared: int, params: NDArray[Any], name: str) -> None:
        self._what, self._params, self._name = (function, *grid, threads, 1, 1, shared), params, name
        self._arguments = np.array([params.ctypes.data], np.uint64)
        self._address = int(self._arguments.ctypes.data)
        self._early: Any = None

    def put(self, gpu: Gpu, stream: Stream, early: bool = False) -> None:
        """Put the kernel into a stream.

        Args:
            early: it may begin before the kernel before it ends, whose work it waits for by itself.
        """
        if early:
            if self._early is None:
                self._early = _early_configuration(gpu.driver, self._what)
            self._early.hStream = stream.handle
            launched = gpu.driver.cuLaunchKernelEx(self._early, self._what[0], self._address, 0)
        else:
            launched = gpu.driver.cuLaunchKernel(*self._what, stream.handle, self._address, 0)
        checked(launched, f"start {self._name}")


def _early_configuration(driver: Any, what: tuple[Any, ...]) -> Any:
    """How a kernel is started before the one before it ends (programmatic dependent launch)."""
    attribute, configuration = driver.CUlaunchAttribute(), driver.CUlaunchConfig()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    _, configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ = what[:4]
    configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ, configuration.sharedMemBytes = what[4:]
    configuration.attrs, configuration.numAttrs = [attribute], 1
    return configuration


class BatchPart:
    """Memory for up to ``batch`` patches, and kernels for them.

    Raises:
        GpuMemoryError: activations do not fit.
    """

    def __init__(
        self,
        plan: KernelPlan,
        programs: Sequence[Program],
        batch: int,
        constants: Constants,
        memory: Memory,
        stream: Stream,
    ) -> None:
        self.plan, self.batch = plan, batch
        self._constants, self._memory = constants, memory
        self.places, total = plan.places()
        self.activations = memory.hold((max(total, 1) * batch,), np.uint8)
        self.partials: dict[str, DeviceBuffer] = {}
        self.factors: dict[str, tuple[DeviceBuffer, DeviceBuffer]] = {}
        # Steps run one after the other: what they leave for their own blocks can lie in one place.
        self._workspace = memory.hold((batch * max((p.workspace for p in programs), default=0),), np.uint8)
        self._counters = memory.hold((batch * max((p.shared_tiles for p in programs), default=0),), np.int32)
        self._counters.zero(stream)
        for program in programs:
            if name := program.epilogue.norm:
                width = program.step.layout.width
                self.partials[name] = memory.hold((batch, program.partials, width, 2), np.float32)
                factors = memory.hold((batch, width), np.float32), memory.hold((batch, width), np.float32)
                for buffer in factors:
                    # Slots without a channel are multiplied as well; what they hold must be a number.
                    buffer.zero(stream)
                self.factors[name] = factors

    def address(self, view: View) -> int:
        """The address of a view's first slot, of the first patch."""
        item = 1 if view.scale else 2
        return int(self.activations.pointer) + self.places[view.buffer] * self.batch + view.start * item

    def parameters(self, program: Program, weights: DeviceBuffer | None, stream: Stream) -> NDArray[Any]:
        """A kernel's parameters: all but the addresses of the network's input and output."""
        params = np.zeros((), PARAMS)
        step, epilogue = program.step, program.epilogue
        if step.kind == "normalize":
            norm = self.plan.norms[step.norm]
            arrays = self._constants.arrays
            params["ptr"][:5] = [
                b.pointer
                for b in (
                    self._constants.slots[step.norm],
                    arrays[norm.gamma],
                    arrays[norm.beta],
                    *self.factors[step.norm],
                )
            ]
            params["ptr"][5:9] = program.numbers
            params["f"][0] = norm.epsilon
            params["partials"] = self.partials[step.norm].pointer
            return params
        if step.source is not None and not step.takes_input:
            params["source"] = self.address(step.source)
        if weights is not None:
            params["weights"] = weights.pointer
        workspace, counters = self._workspace, self._counters
        if program.workspace * self.batch > workspace.nbytes or program.shared_tiles * self.batch * 4 > counters.nbytes:
            workspace, counters = (
                self._memory.hold((program.workspace * self.batch,), np.uint8),
                self._memory.hold((program.shared_tiles * self.batch,), np.int32),
            )
            counters.zero(stream)
        params["workspace"], params["counters"] = workspace.pointer, counters.pointer
        if epilogue.norm:
            partials = self.partials[epilogue.norm]
            if program.partials > partials.shape[1]:
                partials = self._memory.hold((self.batch, program.partials, *partials.shape[2:]), np.float32)
            params["partials"] = partials.pointer
        for number, pointer in enumerate(epilogue.pointers):
            params["ptr"][number] = self._pointer(step.ops, *pointer)
        for number, table in enumerate(step.tables):
            params["ptr"][len(epilogue.pointers) + number] = self._constants.arrays[table].pointer if table else 0
        params["f"][: len(epilogue.numbers)] = epilogue.numbers
        return params

    def _pointer(self, ops: tuple[Any, ...], kind: str, what: str | int) -> int:
        if kind == "array":
            return int(self._constants.arrays[str(what)].pointer)
        if kind == "view":
            return self.address(ops[int(what)].view)
        return int(self.factors[str(what)][kind == "shift"].pointer)

    def launch_of(
        self,
        program: Program,
        parameters: NDArray[Any],
        batch: int,
        source: DeviceBuffer,
        target: DeviceBuffer,
        first: int = 0,
    ) -> Launch:
        """A kernel for patches ``first`` to ``first + batch`` of the network's input and output.

        Args:
            held: its parameters.
        """
        assert batch <= self.batch, "a part has room for fewer patches"
        params = parameters.copy()
        params["output"] = patch_address(target, first)
        if program.step.takes_input:
            params["source"], params["source_half"] = patch_address(source, first), source.dtype == np.float16
        return Launch(
            program.function,
            program.grid(batch),
            program.threads,
            program.shared,
            params,
            f"{program.step.kind} {program.step.name}",
        )
