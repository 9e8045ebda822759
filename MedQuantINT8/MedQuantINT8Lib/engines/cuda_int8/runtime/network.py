"""A plan on the GPU: its memory, its weights and its kernels; satisfies :class:`....inference.gpu_sliding_window.GpuNetwork`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cuda.device import DeviceBuffer, Event, Gpu, Stream, checked
from ...cuda.graph_capture import RecordedGraphs
from ..kernels import kernel_text
from ..plan.kernel_plan import KernelPlan
from ..tiling.tiling import Tiling
from ..tiling.weight_order import arranged_weights
from .batch_part import BatchPart, Constants, Launch, Memory
from .program import PARAMS, Program, machine_of, programs

#: Parts of a batch that an engine runs side by side: while kernels of one wait for memory, or end on a few processors, those of the other multiply
#: (two to nine percent of eight networks' time with four patches; four parts are slower where layers have few voxels).
BATCH_PARTS = 2

#: Runs whose kernels are kept, with their parameters: callers have one or two sizes of batches, and a place for the scores of each batch of some rows,
#: which are 80 to 320 of a scan in windows of 96^3. A kernel takes about 1 kB here and as much in the driver, so that large networks keep fewer runs.
_MOST_KNOWN, _LEAST_KNOWN, _MOST_KERNELS = 512, 16, 40_000


class CudaInt8Network:
    """Runs a plan for up to ``batch`` patches.

    Args:
        chosen: tilings of convolutions by the name of their step.
        weights: gives those of a convolution in the order of its tiling; by default they are put in order here, from the plan's.
        parts: parts of a batch that run side by side.
        early: whether each kernel may begin before the one before it ends.
        poison: fill all memory with this byte before each run, so that what no kernel writes shows (for tests).

    Raises:
        GpuMemoryError: activations and weights do not fit.
    """

    dtype = "float16"

    def __init__(
        self,
        gpu: Gpu,
        plan: KernelPlan,
        batch: int,
        chosen: dict[str, Tiling] | None = None,
        weights: Callable[[Tiling], NDArray[np.uint8]] | None = None,
        parts: int = 1,
        early: bool = False,
        poison: int | None = None,
    ) -> None:
        self._weights = weights or partial(arranged_weights, plan)
        self.gpu, self.plan, self.batch, self.early, self._poison = gpu, plan, batch, early, poison
        self.memory = Memory(gpu)
        self._scores: DeviceBuffer | None = None
        self._widen: Any = None
        self._launches: dict[tuple[Any, ...], list[list[Launch]]] = {}
        #: Of each part but the first, whose work is put into the caller's stream; by whether that is urgent.
        self._beside: dict[bool, list[tuple[Stream, Event]]] = {}
        gpu.enter()
        self.programs = programs(plan, machine_of(gpu), batch, chosen)
        counts = _parts(batch, parts)
        self._most_known = min(_MOST_KNOWN, max(_LEAST_KNOWN, _MOST_KERNELS // (len(self.programs) * len(counts))))
        self._recorded = RecordedGraphs(gpu, self._most_known)
        for program, function in zip(
            self.programs, gpu.compiled([p.source for p in self.programs], "run"), strict=True
        ):
            self._ready(program, function)
        self._begun = gpu.event()
        stream = gpu.stream()
        try:
            constants = self._constants(stream)
            self.parts = [BatchPart(plan, self.programs, count, constants, self.memory, stream) for count in counts]
            uploaded = [
                None if p.tiling is None else self.memory.uploaded(self._weights(p.tiling), stream)
                for p in self.programs
            ]
            self._params = [
                [part.parameters(*known, stream) for known in zip(self.programs, uploaded, strict=True)]
                for part in self.parts
            ]
            stream.synchronize()
        except BaseException:
            self.close()
            raise
        finally:
            stream.free()

    def _ready(self, program: Program, function: Any) -> None:
        program.function = function
        attributes = self.gpu.driver.CUfunction_attribute
        # All that is not shared memory would be cache, of which these kernels need little; a multiprocessor that divides its memory anew has to be
        # empty first.
        for attribute, value in (
            (attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, program.shared),
            (attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
        ):
            checked(self.gpu.driver.cuFuncSetAttribute(function, attribute, value), "set a kernel's memory")

    def _constants(self, stream: Stream) -> Constants:
        raw = {step.weights for step in self.plan.steps}
        arrays = {
            name: self.memory.uploaded(array, stream) for name, array in self.plan.arrays.items() if name not in raw
        }
        return Constants(
            arrays,
            {
                name: self.memory.uploaded(np.array(norm.groups, np.int32), stream)
                for name, norm in self.plan.norms.items()
            },
        )

    def enqueue(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put the run of (batch, C, *patch) to (batch, classes, *patch) into a stream; float32 or float16 at either end."""
        scores = target
        if target.dtype != np.float16:
            if self._scores is None:
                self._scores = self.memory.hold((self.batch, self.plan.classes, *self.plan.size), np.float16)
                self._widen = self.gpu.compiled([kernel_text("widen.cu")], "run")[0]
            scores = self._scores
        if self._poison is None:
            key = batch, source.pointer, source.dtype, scores.pointer, self.early, stream.urgent
            self._recorded.put(key, stream, partial(self.put, batch, source, scores))
        else:
            self.put(batch, source, scores, stream)
        if scores is not target:
            params = np.zeros((), PARAMS)
            count = batch * self.plan.classes * int(np.prod(self.plan.size))
            params["source"], params["output"], params["ptr"][0] = scores.pointer, target.pointer, count
            Launch(self._widen, (-(-count // 512), 1, 1), 256, 0, params, "widen").put(self.gpu, stream)

    def put(self, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """Put all kernels of a run into a stream; scores in float16."""
        key = batch, source.pointer, source.dtype, target.pointer
        if key not in self._launches:
            known = list(self._launches.items())[1 - self._most_known :]
            self._launches = dict(known) | {key: self._new_launches(batch, source, target)}
        self._side_by_side(self._launches[key], stream)

    def _new_launches(self, batch: int, source: DeviceBuffer, target: DeviceBuffer) -> list[list[Launch]]:
        """The kernels of a run, in order, for each part of the batch."""
        counts = _parts(batch, len(self.parts))
        return [
            [part.launch_of(*known, count, source, target, first) for known in zip(self.programs, params, strict=True)]
            for part, params, count, first in zip(
                self.parts, self._params, counts, accumulate(counts, initial=0), strict=False
            )
        ]

    def _side_by_side(self, launches: list[list[Launch]], stream: Stream) -> None:
        beside = self._streams_beside(stream)[: len(launches) - 1]
        streams = [stream, *(other for other, _ in beside)]
        if beside:
            self._begun.record(stream)
        for other, _ in beside:
            other.wait_for(self._begun)
        if self._poison is not None:
            for part, own in zip(self.parts, streams, strict=False):
                checked(
                    self.gpu.driver.cuMemsetD8Async(
                        part.activations.pointer, self._poison, part.activations.nbytes, own.handle
                    ),
                    "clear memory",
                )
        # A kernel of each in turn: where nothing is recorded, one part's launches would keep the others waiting.
        for number, kernels in enumerate(zip(*launches, strict=True)):
            for launch, own in zip(kernels, streams, strict=True):
                # Before the first lies what is not of this network, which may know nothing of those that begin early.
                launch.put(self.gpu, own, self.early and number > 0)
        for other, done in beside:
            done.record(other)
            stream.wait_for(done)

    def _streams_beside(self, stream: Stream) -> list[tuple[Stream, Event]]:
        """Return the streams of all parts but the first, as urgent as that one's."""
        if stream.urgent not in self._beside:
            self._beside[stream.urgent] = [
                (self.gpu.stream(urgent=stream.urgent), self.gpu.event()) for _ in self.parts[1:]
            ]
        return self._beside[stream.urgent]

    def launch(self, number: int, batch: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream) -> None:
        """One step of a run, for as many patches as the first part has room for."""
        self.parts[0].launch_of(self.programs[number], self._params[0][number], batch, source, target).put(
            self.gpu, stream
        )

    @contextmanager
    def prepared(
        self, program: Program, stream: Stream
    ) -> Iterator[Callable[[int, DeviceBuffer, DeviceBuffer, Stream], None]]:
        """Another kernel for one of the steps, to be launched as :meth:`launch`; its memory is freed afterwards."""
        self._ready(program, self.gpu.compiled([program.source], "run")[0])
        count = self.memory.count
        try:
            weights = None if program.tiling is None else self.memory.uploaded(self._weights(program.tiling), stream)
            params = self.parts[0].parameters(program, weights, stream)
            yield (
                lambda batch, source, target, stream: (
                    self.parts[0].launch_of(program, params, batch, source, target).put(self.gpu, stream)
                )
            )
        finally:
            stream.synchronize()
            self.memory.free(count)

    @property
    def bytes(self) -> int:
        """How many bytes of the GPU's memory it takes."""
        return self.memory.bytes

    def close(self) -> None:
        self._recorded.free()
        self.memory.free()
        for thing in (self._begun, *(one for pairs in self._beside.values() for pair in pairs for one in pair)):
            thing.free()


def _parts(batch: int, parts: int) -> list[int]:
    """Patches of each part; no part is without."""
    parts = min(batch, parts)
    return [batch // parts + (number < batch % parts) for number in range(parts)]
