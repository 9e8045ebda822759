"""A plan on the GPU: its memory, its weights and its kernels; satisfies :class:`..gpu_window.GpuNetwork`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cuda import DeviceBuffer, Gpu, Stream, checked
from .plan import Plan, View
from .program import PARAMS, Grid, Program, machine_of, programs
from .tiling import Tiling
from .walk_source import WIDEN
from .weights import arranged_weights


class CudaInt8Network:
    """Runs a plan for up to ``batch`` patches.

    Args:
        chosen: tilings of convolutions by the name of their step.
        weights: gives those of a convolution in the order of its tiling; by default they are put in order here, from the plan's.
        poison: fill all memory with this byte before each run, so that what no kernel writes shows (for tests).

    Raises:
        GpuMemoryError: activations and weights do not fit.
    """

    dtype = "float16"

    def __init__(
        self,
        gpu: Gpu,
        plan: Plan,
        batch: int,
        chosen: dict[str, Tiling] | None = None,
        weights: Callable[[Tiling], NDArray[np.uint8]] | None = None,
        poison: int | None = None,
    ) -> None:
        self._weights = weights or partial(arranged_weights, plan)
        self.gpu, self.plan, self.batch, self._poison = gpu, plan, batch, poison
        self._held: list[DeviceBuffer] = []
        self._scores: DeviceBuffer | None = None
        self._widen: Any = None
        gpu.enter()
        self.programs = programs(plan, machine_of(gpu), batch, chosen)
        for program, function in zip(self.programs, gpu.compiled([p.source for p in self.programs], "run"), strict=True):
            self._ready(program, function)
        stream = gpu.stream()
        try:
            self._allocate(stream)
            self._params = [self._parameters(program, stream) for program in self.programs]
            stream.synchronize()
        except BaseException:
            self.close()
            raise
        finally:
            stream.free()

    def _ready(self, program: Program, function: Any) -> None:
        program.function = function
        if program.shared:
            attributes = self.gpu.driver.CUfunction_attribute
            # All that is not shared memory would be cache, of which these kernels need little.
            for attribute, value in (
                (attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, program.shared),
                (attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
            ):
                checked(self.gpu.driver.cuFuncSetAttribute(function, attribute, value), "set a kernel's memory")

    def _allocate(self, stream: Stream) -> None:
        plan, batch = self.plan, self.batch
        self.places, total = plan.places()
        self.arena = self.hold((max(total, 1) * batch,), np.uint8)
        raw = {step.weights for step in plan.steps}
        self._arrays = {name: self._uploaded(array, stream) for name, array in plan.arrays.items() if name not in raw}
        self._partials: dict[str, DeviceBuffer] = {}
        self._factors: dict[str, tuple[DeviceBuffer, DeviceBuffer]] = {}
        # Steps run one after the other: what they leave for their own blocks can lie in one place.
        self._workspace = self.hold((batch * max((p.workspace for p in self.programs), default=0),), np.uint8)
        self._counters = self.hold((batch * max((p.shared_tiles for p in self.programs), default=0),), np.int32)
        self._counters.zero(stream)
        for program in self.programs:
            if name := program.chain.norm:
                width = program.step.layout.width
                self._partials[name] = self.hold((batch, program.partials, width, 2), np.float32)
                factors = self.hold((batch, width), np.float32), self.hold((batch, width), np.float32)
                for buffer in factors:
                    # Slots without a channel are multiplied as well; what they hold must be a number.
                    buffer.zero(stream)
                self._factors[name] = factors

    def hold(self, shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        """Memory that is freed with the network."""
        buffer = self.gpu.allocate(shape, dtype)
        self._held.append(buffer)
        return buffer

    def _uploaded(self, array: NDArray[Any], stream: Stream) -> DeviceBuffer:
        buffer = self.hold(array.shape, array.dtype)
        buffer.upload(array, stream)
        return buffer

    def address(self, view: View) -> int:
        """Of a view's first slot."""
        item = 1 if view.scale else 2
        return int(self.arena.pointer) + self.places[view.buffer] * self.batch + view.start * item

    def _parameters(self, program: Program, stream: Stream) -> NDArray[Any]:
        params = np.zeros((), PARAMS)
        step, chain = program.step, program.chain
        if step.kind == "normalize":
            norm = self.plan.norms[step.norm]
            scale, shift = self._factors[step.norm]
            slots = self._uploaded(np.array(norm.groups, np.int32), stream)
            params["ptr"][:5] = [b.pointer for b in (slots, self._arrays[norm.gamma], self._arrays[norm.beta], scale, shift)]
            params["ptr"][5:9] = program.numbers
            params["f"][0] = norm.epsilon
            params["partials"] = self._partials[step.norm].pointer
            return params
        if step.source is not None and not step.takes_input:
            params["source"] = self.address(step.source)
        if program.tiling is not None:
            params["weights"] = self._uploaded(self._weights(program.tiling), stream).pointer
        workspace, counters = self._workspace, self._counters
        if program.workspace * self.batch > workspace.nbytes or program.shared_tiles * self.batch * 4 > counters.nbytes:
            workspace, counters = self.hold((program.workspace * self.batch,), np.uint8), self.hold((program.shared_tiles * self.batch,), np.int32)
            counters.zero(stream)
        params["workspace"], params["counters"] = workspace.pointer, counters.pointer
        if chain.norm:
            partials = self._partials[chain.norm]
            if program.partials > partials.shape[1]:
                partials = self.hold((self.batch, program.partials, *partials.shape[2:]), np.float32)
            params["partials"] = partials.pointer
        for number, pointer in enumerate(chain.pointers):
            params["ptr"][number] = self._pointer(step.ops, *pointer)
        for number, table in enumerate(step.tables):
            params["ptr"][len(chain.pointers) + number] = self._arrays[table].pointer if table else 0
        params["f"][: len(chain.numbers)] = chain.numbers
        return params

    def _pointer(self, ops: tuple[Any, ...], kind: str, what: str | int) -> int:
        if kind == "array":
            return int(self._arrays[str(what)].pointer)
        if kind == "view":
            return self.address(ops[int(what)].view)
        return int(self._factors[str(what)][kind == "shift"].pointer)

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of (batch, C, *patch) to (batch, classes, *patch) into a stream; float32 or float16 at either end."""
        if self._poison is not None:
            checked(self.gpu.driver.cuMemsetD8Async(self.arena.pointer, self._poison, self.arena.nbytes, stream.handle), "clear memory")
        scores = target
        if target.dtype != np.float16:
            if self._scores is None:
                self._scores = self.hold((self.batch, self.plan.classes, *self.plan.size), np.float16)
                self._widen = self.gpu.compiled([WIDEN], "run")[0]
            scores = self._scores
        for number in range(len(self.programs)):
            self.launch(number, batch, source, scores, stream)
        if scores is not target:
            params = np.zeros((), PARAMS)
            count = batch * self.plan.classes * int(np.prod(self.plan.size))
            params["source"], params["output"], params["ptr"][0] = scores.pointer, target.pointer, count
            self._start(self._widen, (-(-count // 512), 1, 1), 256, 0, params, stream, "widen")

    def launch(self, number: int, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """One step of a run."""
        self._launch(self.programs[number], self._params[number], batch, source, target, stream)

    def _launch(self, program: Program, held: NDArray[Any], batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        params = held.copy()
        params["output"] = target.pointer
        if program.step.takes_input:
            params["source"], params["source_half"] = source.pointer, source.dtype == np.float16
        self._start(program.function, program.grid(batch), program.threads, program.shared, params, stream, f"{program.step.kind} {program.step.name}")

    def _start(self, function: Any, grid: Grid, threads: int, shared: int, params: NDArray[Any], stream: Stream, name: str) -> None:
        arguments = np.array([params.ctypes.data], np.uint64)
        launched = self.gpu.driver.cuLaunchKernel(function, *grid, threads, 1, 1, shared, stream.handle, arguments.ctypes.data, 0)
        checked(launched, f"start {name}")

    @contextmanager
    def prepared(self, program: Program, stream: Stream) -> Iterator[Callable[[int, DeviceBuffer, DeviceBuffer, Stream], None]]:
        """Another kernel for one of the steps, to be launched as :meth:`enqueue`; its memory is freed afterwards."""
        self._ready(program, self.gpu.compiled([program.source], "run")[0])
        held = len(self._held)
        try:
            yield partial(self._launch, program, self._parameters(program, stream))
        finally:
            stream.synchronize()
            for buffer in self._held[held:]:
                buffer.free()
            del self._held[held:]

    @property
    def bytes(self) -> int:
        """Of the GPU's memory that it takes."""
        return sum(buffer.nbytes for buffer in self._held)

    def close(self) -> None:
        for buffer in self._held:
            buffer.free()
        self._held = []
