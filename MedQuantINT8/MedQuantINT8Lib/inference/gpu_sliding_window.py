"""The sliding window on the GPU: the volume goes up, the label map comes down, and nothing in between.

The same plan of windows and the same weights as on the processor (:mod:`.windows`); patches are cut, normalized, blended and
reduced to labels by small kernels (:mod:`.gpu_kernels`). The network of one batch runs beside the blending of the one before. Labels are those of
network space, or, resampled from the blended scores, those of the scan's grid (:mod:`.gpu_label_resampling`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import GpuNetwork
from ..engines.cuda.device import DeviceBuffer, Gpu, GpuMemoryError, Stream
from ..engines.cuda.interop import borrowed, is_on_gpu
from ..engines.cuda.several import copy_between
from ..engines.cuda.transfers import download, upload
from ..errors import EngineError
from ..models.spec import Window
from ..progress import Task
from .gpu_blending import FlippedWindow, ScorePlace
from .gpu_importance import importance_on
from .gpu_kept_rows import KeptRows, fits
from .gpu_kernels import NAMES, RESAMPLING_NAMES, resampling_source, source
from .gpu_label_download import Landing, PlanesDown
from .gpu_label_placing import NearestLabels
from .gpu_label_resampling import GpuLabelResampling, GridLabels
from .gpu_mean import MeanNetwork
from .gpu_network_labels import NetworkLabels, Reduction
from .gpu_pace import Pace
from .gpu_row_run import finish_part, slide_by_rows
from .gpu_strips import Strip
from .gpu_window_kernels import SOURCES, Blended, Intensity, WindowKernels
from .mirroring import Flip
from .window_rows import RowPart, batched, row_parts
from .windows import WindowPlan

#: Places of scores that the network and blending take in turn.
_SCORE_PLACES = 2


class GpuSlidingWindow:
    """Segments volumes of one plan.

    Args:
        batch: patches a call of the network, at most.
        flips: the mirrored forms in which each window is run, by the axes along which it is reversed. Their scores are added, each turned
            back, which decides as their mean does.
        grid_labels: brings scores to the scan's grid, where labels are made of them; None makes labels of network space.
        keep_rows: scores are kept by rows of windows where there is memory for that, and the windows are run in one go, from the first to
            the last.
        strip: the lines of the planes that are blended here (:mod:`.gpu_strips`); None for all.

    Raises:
        GpuMemoryError: the buffers do not fit, also with one window at a time.
    """

    def __init__(
        self,
        gpu: Gpu,
        network: GpuNetwork,
        channels: int,
        classes: int,
        plan: WindowPlan,
        window: Window,
        batch: int = 1,
        flips: Sequence[Flip] = ((),),
        grid_labels: GridLabels | None = None,
        *,
        keep_rows: bool = False,
        strip: Strip | None = None,
    ) -> None:
        self._flips, self._grid_labels, self._strip = tuple(flips), grid_labels, strip
        self._gpu, self._network, self._plan, self._window = gpu, network, plan, window
        self._channels, self._classes = channels, classes
        # Another engine that was closed in the meantime may have left this thread without a GPU.
        gpu.enter()
        self._kernels = gpu.kernels(source(), NAMES)
        self._windows = WindowKernels(self._kernels, plan, window, channels, classes, strip)
        self.stream = gpu.stream()
        # Its kernels go first, and those that blend the windows before fill what they leave free.
        self.network_stream = gpu.stream(urgent=True)
        self._places: list[ScorePlace] = []
        self._next_place: Iterator[ScorePlace] = iter(())
        self._rows: KeptRows | None = None
        self._keep_rows = keep_rows and strip is None and grid_labels is not None and len(self._flips) == 1
        self._slow = plan.order[0]
        self._u, self._v = (axis for axis in range(3) if axis != self._slow)
        self._buffers: list[Any] = []
        self._resampling: GpuLabelResampling | None = None
        #: Makes the labels of the run that goes on.
        self.receiver: GpuLabelResampling | NetworkLabels | None = None
        self.merge_labels = self._kernels["merge_labels"]
        try:
            self.batch = self._allocate(batch)
        except BaseException:
            self.close()
            raise

    def _allocate(self, batch: int) -> int:
        """Buffers for the largest batch that fits; halved until it does.

        Scores have two places in turn, so that one batch is blended while the next is run; one where memory is short.
        """
        places = min(_SCORE_PLACES, -(-self._plan.count * len(self._flips) // batch))
        while True:
            try:
                patch = self._plan.patch
                nu, nv = self._plan.shape[self._u], self._plan.shape[self._v]
                if self._strip is not None:
                    nu = self._strip.end - self._strip.first
                self._weights, kept_by_gpu = importance_on(self._gpu, self._plan, self._window, self.stream)
                if not kept_by_gpu:
                    self._buffers.append(self._weights)
                # Between the last finished plane and the next one lie new voxels that are still to come.
                depth = patch[self._slow] + (self._grid_labels is not None)
                self.ring = self._hold((self._classes, depth, nu, nv), np.float32)
                self._patches = self._hold((batch, self._channels, *patch), self._network.dtype)
                network = self._network
                scores_dtype = network.scores_dtype if isinstance(network, MeanNetwork) else network.dtype
                if self._keep_rows and fits(self._gpu, self._plan, self._classes, scores_dtype):
                    kept = (self._gpu, self._plan, self._classes, scores_dtype, self._weights, self.stream)
                    self._rows = KeptRows(*kept)
                for _ in range(places if self._rows is None else 0):
                    scores = self._hold((batch, self._classes, *patch), scores_dtype)
                    self._places.append(ScorePlace(scores, self._gpu.event(), self._gpu.event()))
                if self._grid_labels is not None:
                    kernels = self._gpu.kernels(resampling_source(), RESAMPLING_NAMES)
                    self._resampling = GpuLabelResampling(
                        self._gpu,
                        kernels,
                        self.ring,
                        self._plan,
                        self._grid_labels,
                        self.stream,
                        self._rows,
                        self._strip,
                    )
                break
            except GpuMemoryError:
                self._release()
                if self._keep_rows:
                    self._keep_rows = False
                elif places > 1:
                    places = 1
                elif batch == 1:
                    raise
                else:
                    batch //= 2
        self._next_place = itertools.cycle(self._places)
        self.ring.zero(self.stream)
        self.stream.synchronize()
        return batch

    def _hold(self, shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        buffer = self._gpu.allocate(shape, dtype)
        self._buffers.append(buffer)
        return buffer

    def _release(self) -> None:
        if self._resampling is not None:
            self._resampling.close()
        if self._rows is not None:
            self._rows.free()
            self._rows = None
        for place in self._places:
            place.free()
        self._places = []
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []

    @property
    def scores(self) -> DeviceBuffer:
        """The first place of scores, (batch, classes, *patch)."""
        return self._places[0].scores

    def close(self) -> None:
        self._gpu.enter()
        self._release()
        self.stream.free()
        self.network_stream.free()

    def run(
        self,
        volume: NDArray[Any] | DeviceBuffer,
        reduction: Reduction | None = None,
        intensity: Intensity = Intensity(),
        task: Task | None = None,
        finish: Callable[[Gpu, DeviceBuffer, Stream], object] | None = None,
        keep: Callable[[DeviceBuffer], bool] | None = None,
    ) -> NDArray[Any] | None:
        """Segment (C, n0, n1, n2) float32, int16, uint16 or uint8; labels (n0, n1, n2), or (K, J, I) of the scan's grid.

        Args:
            volume: an array, or one that is on the GPU already (a buffer, a torch or CuPy array; it is not copied).
            reduction: how labels of network space are made; needed where no grid's labels were asked for.
            finish: does something with the labels, in place, before they come down.
            keep: is offered the labels when they are whole; what it takes over does not come down, and None is returned.

        Raises:
            Cancelled: within a few windows after ``task.cancel()``; the object can be used again.
        """
        task = task or Task()
        buffers: list[Any] = []
        nearest = None if self._resampling is not None or reduction is None else reduction.nearest
        planes: PlanesDown | None = None
        try:
            source = self.source_of(volume, buffers)
            receiver = self.receiver_of(reduction, buffers)
            labels = receiver.labels()
            buffers.append(labels)
            landing: Landing | None = None
            if nearest is None and finish is None and keep is None:
                planes = PlanesDown(labels, self.stream)
            elif keep is None:
                like: DeviceBuffer | NearestLabels = labels if nearest is None else nearest
                landing = Landing(like.shape, like.dtype)
            parts = row_parts(self._plan, self._flips)
            with task.stage("segmenting", self._plan.count * len(self._flips)):
                self.slide(
                    source, labels, receiver, parts, task.step, intensity, take=None if planes is None else planes.begin
                )
                if planes is not None:
                    return planes.end()
            if nearest is not None:
                labels = nearest.placed(self._gpu, labels, self.stream)
                buffers.append(labels)
            if finish is not None:
                finish(self._gpu, labels, self.stream)
            if keep is not None:
                self.stream.synchronize()
                if keep(labels):
                    buffers.remove(labels)
                    return None
            result = (landing or Landing(labels.shape, labels.dtype)).array()
            download(labels, result, self.stream)
            return result
        except BaseException:
            if planes is not None:
                planes.forget()
            self.forget()
            raise
        finally:
            self.end(buffers)

    def forget(self) -> None:
        """Let go of a run that failed: what is under way must end before its memory goes, and the next run begins with an empty ring."""
        self.network_stream.synchronize()
        self.stream.synchronize()
        self.ring.zero(self.stream)
        self.stream.synchronize()

    def end(self, buffers: Sequence[DeviceBuffer]) -> None:
        """Be ready for the next run; buffers of this one are freed."""
        if self._resampling is not None:
            self._resampling.reset()
        for buffer in buffers:
            buffer.free()

    def source_of(
        self,
        volume: NDArray[Any] | DeviceBuffer,
        buffers: list[Any],
        upload: Callable[[DeviceBuffer, NDArray[Any], Stream], None] = upload,
    ) -> DeviceBuffer:
        """Return a volume (C, n0, n1, n2) on the GPU, of a type that can be cut; what has to be freed after the run goes to ``buffers``.

        Args:
            upload: brings an array into a buffer.
        """
        self._gpu.enter()
        if is_on_gpu(volume):
            volume = borrowed(self._gpu, volume, self.stream)
        if str(volume.dtype) not in SOURCES:
            if isinstance(volume, DeviceBuffer):
                raise EngineError(
                    f"A volume of {volume.dtype} cannot be cut on the GPU.", "Give float32, int16, uint16 or uint8."
                )
            volume = np.ascontiguousarray(volume, np.float32)
        if isinstance(volume, DeviceBuffer):
            return volume
        buffer = self._gpu.allocate(volume.shape, volume.dtype)
        buffers.append(buffer)
        upload(buffer, volume, self.stream)
        return buffer

    def receiver_of(self, reduction: Reduction | None, buffers: list[Any]) -> GpuLabelResampling | NetworkLabels:
        """Return what makes labels of finished planes; what has to be freed after the run goes to ``buffers``."""
        if self._resampling is not None:
            self.receiver = self._resampling
            return self._resampling
        assert reduction is not None
        receiver = NetworkLabels(self._gpu, self._kernels, self.ring, self._plan, reduction, self.stream, self._strip)
        buffers += receiver.buffers
        self.receiver = receiver
        return receiver

    def slide(
        self,
        source: DeviceBuffer,
        labels: DeviceBuffer,
        receiver: GpuLabelResampling | NetworkLabels,
        parts: Sequence[RowPart],
        step: Callable[[int], None],
        intensity: Intensity = Intensity(),
        store: DeviceBuffer | None = None,
        take: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run the windows of some parts of rows, blend them and make labels of what they finish.

        Args:
            step: told of each batch, by its number of windows.
            store: takes the scores of the windows one after the other; they are not blended, and no labels are made.
            take: told of planes of the label map, (first, last + 1) along its first axis, that are made from here on in the stream.
        """
        if self._rows is not None:
            assert store is None
            slide_by_rows(self, self._rows, source, labels, receiver, parts, step, intensity, take)
            return
        stored, size, pace = 0, self.scores.nbytes // self.batch, Pace(self._gpu)
        self.begin()
        try:
            for part in parts:
                for batch in batched(part.windows, self.batch):
                    place = self.compute(source, batch, intensity)
                    if store is None:
                        self.blend(batch, place.scores, 0, receiver)
                    else:
                        copy_between(place.scores, store, self.stream, 0, size * len(batch), size * stored)
                        stored += len(batch)
                    place.taken.record(self.stream)
                    pace.mark(self.stream)
                    step(len(batch))
                if store is None:
                    finish_part(part, labels, receiver, take, last=part is parts[-1])
            pace.end()
        finally:
            pace.free()

    def begin(self) -> None:
        """Begin to run windows, by :meth:`compute`."""
        # The volume, and what other runs have left in the buffers, are of the stream that blends.
        for place in self._places:
            place.taken.record(self.stream)

    def compute(
        self, source: DeviceBuffer, batch: Sequence[FlippedWindow], intensity: Intensity = Intensity()
    ) -> ScorePlace:
        """Run the network for a batch of windows; work that is put into :attr:`stream` from here on finds their scores in the place that is given.

        The caller records the place's ``taken`` behind what it does with them.
        """
        place = next(self._next_place)
        self.network_stream.wait_for(place.taken)
        self._run_windows(source, batch, intensity, place.scores)
        self.stream.wait_for(place.computed.record(self.network_stream))
        return place

    def compute_into(
        self,
        source: DeviceBuffer,
        batch: Sequence[FlippedWindow],
        scores: DeviceBuffer,
        intensity: Intensity = Intensity(),
    ) -> None:
        """As :meth:`compute`, into other memory, which the work in :attr:`network_stream` before has to leave free."""
        self._run_windows(source, batch, intensity, scores)

    def _run_windows(
        self, source: DeviceBuffer, batch: Sequence[FlippedWindow], intensity: Intensity, scores: DeviceBuffer
    ) -> None:
        """Cut windows out of the volume and put the network's run into its stream."""
        self._windows.cut(source, self._patches, batch, intensity, self.network_stream)
        self._network.enqueue(len(batch), self._patches, scores, self.network_stream)

    def blend_stored(
        self,
        labels: DeviceBuffer,
        receiver: GpuLabelResampling | NetworkLabels,
        parts: Sequence[RowPart],
        store: DeviceBuffer,
        take: Callable[[int, int], None] | None = None,
    ) -> None:
        """Blend windows whose scores :meth:`slide` has stored, and make labels of what they finish; ``take`` as there."""
        stored = 0
        for part in parts:
            self.blend(part.windows, store, stored, receiver)
            stored += len(part.windows)
            finish_part(part, labels, receiver, take, last=part is parts[-1])

    def blend(
        self,
        batch: Sequence[FlippedWindow],
        scores: DeviceBuffer,
        first: int,
        receiver: GpuLabelResampling | NetworkLabels,
    ) -> None:
        """Blend windows whose scores are those of a buffer from the number ``first`` on."""
        into = Blended(self.ring, self._weights, receiver.total, receiver.sigmoid)
        self._windows.blend(batch, scores, first, into, self.stream)
