"""The way of a volume through the GPU that its network lies on: what of the segment road runs there, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines.base import gpu_network_of, on_each_gpu
from ..engines.cuda.device import DeviceBuffer, Gpu, GpuMemoryError, Stream
from ..errors import DependencyError
from ..imaging.preprocessing import NetworkInput
from ..imaging.regions import logit_cut, probability_cut
from ..models.spec import Cleaning, Window
from ..progress import Task
from .gpu_cleaning import GpuCleaning, done_there
from .gpu_mean import MeanNetwork
from .gpu_preparation import DeferredInput, data_of
from .mirroring import flips_along
from .score_reduction import ScoreReduction
from .sliding_window import SlidingWindowResult
from .windows import WindowPlan

if TYPE_CHECKING:
    from .gpu_spread import SpreadSlidingWindow
    from .gpu_team import GpuTeam, TeamMember


#: In place of a label map that stays on the GPU.
_ELSEWHERE: NDArray[Any] = np.zeros((0, 0, 0), np.uint8)


class LabelKeeper(Protocol):
    """Takes over label maps on the GPU that made them."""

    def keep(self, labels: DeviceBuffer) -> bool:
        """Take over a label map (K, J, I) that is whole; False leaves it to the caller, who frees it."""


class GpuRoad:
    """The sliding window on the GPU, for an engine whose network lies there, the scan's way to network space and its scores' way back.

    Attributes:
        prepares: whether the scan goes up as it lies in memory and is brought to network space there.
        averages: whether the scores of several networks meet there.
        resamples: whether labels are made on the scan's grid, of scores that are resampled there.
        places: whether labels of network space are brought to the scan's grid there, by the nearest voxel.
        cleaned: how many steps of the cleaning on the scan's grid were done there, from the first one on, once it was run.
        kept: the label map on the scan's grid where the keeper took it over, in place of its coming down.
    """

    cleaned = 0
    kept: DeviceBuffer | None = None

    def __init__(
        self,
        engine: Any,
        network_input: NetworkInput,
        plan: WindowPlan,
        window: Window,
        reduction: ScoreReduction,
        mirror_axes: tuple[int, ...],
        keeper: LabelKeeper | None = None,
    ) -> None:
        self._keeper = keeper
        self._engine, self._network_input, self._plan, self._window = engine, network_input, plan, window
        self._reduction, self._flips = reduction, flips_along(mirror_axes)
        # No more GPUs than there are windows.
        engines = on_each_gpu(engine)
        self._engines = engines[: plan.count * len(self._flips)]
        self.prepares = gpu_network_of(engine) is not None and isinstance(network_input, DeferredInput)
        regions, self._network = reduction.regions, gpu_network_of(engine)
        self.averages = isinstance(self._network, MeanNetwork)
        self.resamples = (
            self._network is not None
            and reduction.path.scores_wanted
            and not (regions is not None and regions.nested)
            and network_input.back_axes() is not None
        )

        nearest = reduction.spec.output.resample == "labels" and not self.resamples
        steps = [step for step in reduction.spec.cleaning if step.where == "network"]
        self.places = (
            self._network is not None
            and nearest
            and all(map(done_there, steps))
            and network_input.nearest_back_axes() is not None
        )

    def fits(self, *, skip_air: bool, margins: bool) -> bool:
        """Whether the whole window can run where the network does: a network on a GPU, and labels (not scores) wanted, which the
        kernels there can make: on the scan's grid, or, in network space, the class of the largest score, or sigmoid regions of one
        threshold painted in the channels' order."""
        output, regions = self._reduction.spec.output, self._reduction.regions
        if self._network is None or skip_air or margins:
            return False
        padded = any(n < p for n, p in zip(self._plan.volume_shape, self._plan.patch, strict=True))
        if padded and self._window.padding != "constant":
            return False
        if self.resamples:
            return True
        if self._reduction.path.resample_scores:
            return False
        if regions is None:
            return output.activation == "softmax" or output.activated
        same = len(set(output.thresholds)) <= 1 and list(regions.channels) == sorted(regions.channels)
        return same and not regions.nested and (output.activation == "sigmoid" or output.activated)

    def run(self, batch: int, notes: list[str], task: Task) -> SlidingWindowResult | None:
        """Run all windows of the volume; the reduction takes the labels over. A line for the user goes to ``notes``.

        None if the GPU's memory is too small for the scores, or there is no compiler for its kernels: then they are blended in the
        computer's memory.
        """
        labels = None
        began = time.perf_counter()
        if len(self._engines) > 1:
            labels, began = self._run_spread(batch, notes, task)
        if labels is None:
            labels, began = self._run_on_one(batch, notes, task)
        if labels is None:
            return None
        if self.resamples:
            self._reduction.take_grid_labels(labels)
            notes.append("windows were cut and blended, and scores resampled to the scan's grid, on the GPU")
        elif self.places:
            self._reduction.take_grid_labels(labels)
            notes.append(
                "windows were cut, blended and reduced to labels, and these brought to the scan's grid, on the GPU"
            )
        else:
            self._reduction.take_labels(labels)
            notes.append("windows were cut, blended and reduced to labels on the GPU")
        if self.cleaned:
            notes.append("parts of structures were looked for on the GPU")
        return SlidingWindowResult(self._plan.count, 0, "float32", 1, time.perf_counter() - began)

    def _run_spread(self, batch: int, notes: list[str], task: Task) -> tuple[NDArray[Any] | None, float]:
        """Return the labels that several GPUs have made together, and when their windows began; None where one of them has not the memory."""
        from .gpu_spread import SpreadSettings, SpreadSlidingWindow
        from .gpu_team import GpuTeam

        networks = [gpu_network_of(engine) for engine in self._engines]
        team = GpuTeam([engine.gpu for engine in self._engines])
        channels, classes = self._network_input.shape[0], self._reduction.spec.output_channels
        grid_labels = self._grid_labels() if self.resamples else None
        settings = SpreadSettings(channels, classes, self._plan, self._window, batch, tuple(self._flips), grid_labels)
        names = ", ".join(f"gpu:{engine.gpu.info.index}" for engine in self._engines)
        prepared: list[DeviceBuffer] = []
        began = time.perf_counter()
        try:
            known = [network for network in networks if network is not None]
            runner = SpreadSlidingWindow(team, known, settings, opened=not self.prepares)
            try:
                if self.prepares:
                    prepared = self._prepared_by(team, runner, task)
                began = time.perf_counter()
                data: list[Any] = [*prepared] or [data_of(self._network_input, task)] * len(team)
                labels = runner.run(data, None if self.resamples else self._network_labels(), task)
            finally:
                runner.close()
        except (GpuMemoryError, DependencyError) as error:
            notes.append(f"windows were not spread over {names}: {error}")
            return None, began
        finally:
            for engine, network in zip(self._engines, networks, strict=True):
                engine.gpu.enter()
                if isinstance(network, MeanNetwork):
                    network.release()
            _free(prepared)
        if prepared:
            notes.append("the scan was brought to network space on each GPU")
        shares = " and ".join(map(str, runner.windows))
        notes.append(f"windows were spread over {names}: {shares}")
        return labels, began

    def _prepared_by(self, team: GpuTeam, runner: SpreadSlidingWindow, task: Task) -> list[DeviceBuffer]:
        """Return the scan in network space on each GPU of a team; buffers of the windows are allocated while it goes up."""
        network_input = self._network_input
        assert isinstance(network_input, DeferredInput)
        buffers: list[DeviceBuffer] = []

        def prepare(member: TeamMember) -> DeviceBuffer:
            member.meanwhile = partial(runner.open_on, member)
            buffer = network_input.on_gpu(member.gpu, member)
            buffers.append(buffer)
            runner.open_on(member)
            return buffer

        try:
            with task.stage("preprocessing"):
                return team.run(prepare)
        except BaseException:
            _free(buffers)
            raise

    def _run_on_one(self, batch: int, notes: list[str], task: Task) -> tuple[NDArray[Any] | None, float]:
        """Return the labels that one GPU has made, and when its windows began; None where it has not the memory, or there is no compiler."""
        from .gpu_sliding_window import GpuSlidingWindow

        assert self._network is not None
        began = time.perf_counter()
        try:
            runner = GpuSlidingWindow(
                self._engine.gpu,
                self._network,
                self._network_input.shape[0],
                self._reduction.spec.output_channels,
                self._plan,
                self._window,
                batch,
                self._flips,
                self._grid_labels() if self.resamples else None,
                keep_rows=True,
            )
        except (GpuMemoryError, DependencyError) as error:
            # Engines that compile nothing themselves run without NVIDIA's run-time compiler.
            notes.append(f"blended on the processor: {error}")
            return None, began
        buffer = None
        try:
            if self.prepares:
                buffer = self._prepared(notes, task)
            data = data_of(self._network_input, task) if buffer is None else buffer
            began = time.perf_counter()
            reduction = None if self.resamples else self._network_labels()
            labels = runner.run(
                data,
                reduction,
                task=task,
                finish=self._clean if self._steps_there() else None,
                keep=self._keep if self._keeper is not None and (self.resamples or self.places) else None,
            )
        except GpuMemoryError as error:
            # There was room for the scores, and none for the scan or its labels beside them.
            notes.append(f"blended on the processor: {error}")
            self.cleaned = 0
            return None, began
        finally:
            runner.close()
            if isinstance(self._network, MeanNetwork):
                self._network.release()
            if buffer is not None:
                self._release(buffer)
        return _ELSEWHERE if labels is None else labels, began

    def _keep(self, labels: DeviceBuffer) -> bool:
        """Offer a label map on the scan's grid to the keeper; one that the processor still has to clean comes down."""
        steps = sum(step.where == "scan" for step in self._reduction.spec.cleaning)
        if self._keeper is None or self.cleaned < steps or not self._keeper.keep(labels):
            return False
        self.kept = labels
        return True

    def _steps_there(self) -> list[Cleaning]:
        """Return the steps of the cleaning on the scan's grid, from the first one on, that are done on the GPU."""
        if not (self.resamples or self.places):
            return []
        steps = [step for step in self._reduction.spec.cleaning if step.where == "scan"]
        return list(takewhile(done_there, steps))

    def _clean(self, gpu: Gpu, labels: DeviceBuffer, stream: Stream) -> None:
        voxel_mm3 = 1000 * self._network_input.original.voxel_ml
        self.cleaned = GpuCleaning(self._steps_there(), voxel_mm3).clean(gpu, labels, stream)

    def _prepared(self, notes: list[str], task: Task) -> DeviceBuffer | None:
        """Return the scan in network space on the GPU, or None where its memory is too small for that."""
        assert isinstance(self._network_input, DeferredInput)
        buffer = None
        try:
            with task.stage("preprocessing"):
                buffer = self._network_input.on_gpu(self._engine.gpu)
        except GpuMemoryError as error:
            notes.append(f"brought to network space on the processor: {error}")
            return None
        except BaseException:
            # Cancelled when it was there already.
            if buffer is not None:
                self._release(buffer)
            raise
        notes.append("the scan was brought to network space on the GPU")
        return buffer

    def _release(self, buffer: DeviceBuffer) -> None:
        assert isinstance(self._network_input, DeferredInput)
        self._network_input.release(buffer)

    def _network_labels(self) -> Any:
        from .gpu_label_placing import NearestLabels
        from .gpu_network_labels import Reduction

        reduction, output = self._reduction, self._reduction.spec.output
        values, by_window = reduction.values.astype(np.uint16), reduction.path.by_window
        nearest = None
        if self.places:
            axes, layout = self._network_input.nearest_back_axes(), self._network_input.resampled_layout()
            assert axes is not None
            steps = [step for step in reduction.spec.cleaning if step.where == "network"]
            cleaning = GpuCleaning(steps, 1000 * self._network_input.grid.voxel_ml) if steps else None
            order, dtype = self._network_input.axis_order, reduction.values.dtype
            nearest = NearestLabels(axes, layout, order, dtype, cleaning)
        if reduction.regions is None:
            return Reduction(values, None, False, nearest)
        channel = reduction.regions.channels[0]
        if by_window or output.activated:
            return Reduction(values, float(probability_cut(output, channel)), by_window, nearest)
        return Reduction(values, logit_cut(output, channel), False, nearest)

    def _grid_labels(self) -> Any:
        from .gpu_label_resampling import GridLabels

        reduction, rule = self._reduction, self._reduction.rule
        axes, regions = self._network_input.back_axes(), rule.regions
        assert axes is not None
        return GridLabels(
            axes,
            self._network_input.resampled_layout(),
            self._network_input.axis_order,
            reduction.values if regions is None else regions.values,
            None if regions is None else regions.channels,
            None if regions is None else regions.cuts,
            rule.activation,
            rule.mask_cuts or {},
            reduction.path.by_window,
        )


def _free(buffers: Sequence[DeviceBuffer]) -> None:
    """Free buffers of several GPUs."""
    for buffer in buffers:
        buffer.gpu.enter()
        buffer.free()
