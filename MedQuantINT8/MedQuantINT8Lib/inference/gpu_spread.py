"""The windows of one volume spread over several GPUs, each with the network: the labels are those of one GPU, bit by bit.

Windows are blended in one order, whatever the number of GPUs, since sums of floats follow their order. Where windows can be dealt out evenly,
each GPU has a strip of every plane (:mod:`.gpu_strips`), and none waits for another's blending. Else each GPU runs a run of windows that
follow each other. The first blends its own at once. The others keep the scores of theirs until the one before has blended its last window,
take over its ring of planes, and go on from there; so what one after the other does is blending alone, a small part of the work. A GPU makes
the labels of the planes that it finishes, and brings them down meanwhile; where its planes are none of the label map's, each merges, and brings
down, a share of that map at the end.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import GpuNetwork
from ..engines.cuda import transfers
from ..engines.cuda.device import DeviceBuffer, GpuMemoryError
from ..engines.cuda.several import copy_between
from ..engines.cuda.transfers import download
from ..models.spec import Window
from ..progress import Task
from .gpu_chunks import Chunk, chunks_of
from .gpu_label_download import Landing, PlanesDown
from .gpu_label_placing import NearestLabels
from .gpu_label_resampling import GpuLabelResampling, GridLabels
from .gpu_mean import MeanNetwork
from .gpu_network_labels import NetworkLabels, Reduction
from .gpu_sliding_window import GpuSlidingWindow
from .gpu_strip_run import StripRun, most_kept
from .gpu_strips import StripRow, strip_rows, strips_of
from .gpu_team import GpuTeam, TeamMember
from .mirroring import Flip
from .windows import WindowPlan

_THREADS, _MOST_BLOCKS = 256, 8192
#: What scores may take that wait for their turn: a share of a GPU's free memory, and no more bytes than these.
_STORED_SHARE, _MOST_STORED = 0.5, 4 << 30
#: The share of a GPU's whole memory that scores of strips may take, where that is more.
_STRIP_SHARE = 1 / 8


@dataclass(frozen=True)
class SpreadSettings:
    """What every GPU is told of the windows; see :class:`.gpu_sliding_window.GpuSlidingWindow`."""

    channels: int
    classes: int
    plan: WindowPlan
    window: Window
    batch: int
    flips: tuple[Flip, ...]
    grid_labels: GridLabels | None


class SpreadSlidingWindow:
    """Segments one volume on several GPUs.

    Args:
        networks: the same network on each GPU, in the team's order.
        opened: whether its buffers are allocated at once; else :meth:`open_on` is called for every member before it runs.

    Attributes:
        windows: how many windows each GPU has run, counted as they were.

    Raises:
        GpuMemoryError: the buffers do not fit on one of them.
    """

    def __init__(
        self, team: GpuTeam, networks: Sequence[GpuNetwork], settings: SpreadSettings, *, opened: bool = True
    ) -> None:
        self._team, self._settings, self._networks = team, settings, tuple(networks)
        self.windows = [0] * len(team)
        self._runners: dict[int, GpuSlidingWindow] = {}
        self._strips: dict[int, StripRun] = {}
        #: Of each GPU, what it does in its strip; None where the windows are dealt out one after the other.
        self._rows = self._strip_rows(networks[0])
        strips = strips_of(settings.plan, len(team)) if self._rows else None
        self._strip_of = [None] * len(team) if strips is None else strips
        if opened:
            try:
                team.run(self.open_on)
            except BaseException:
                self.close()
                raise

    def open_on(self, member: TeamMember) -> None:
        """Allocate the buffers of one GPU, where that was not done yet.

        Raises:
            GpuMemoryError: they do not fit.
        """
        if member.number in self._runners:
            return
        s = self._settings
        self._runners[member.number] = GpuSlidingWindow(
            member.gpu,
            self._networks[member.number],
            s.channels,
            s.classes,
            s.plan,
            s.window,
            s.batch,
            s.flips,
            s.grid_labels,
            strip=self._strip_of[member.number],
        )

    def _strip_rows(self, network: GpuNetwork) -> list[list[StripRow]] | None:
        """Return the rows of each GPU's strip, or None where there are no strips, or their scores take too much memory."""
        settings = self._settings
        strips = strips_of(settings.plan, len(self._team))
        if strips is None:
            return None
        rows = strip_rows(settings.plan, settings.flips, strips)
        itemsize = np.dtype(network.scores_dtype if isinstance(network, MeanNetwork) else network.dtype).itemsize
        window = settings.classes * math.prod(settings.plan.patch) * itemsize
        for member, own in zip(self._team.members, rows, strict=True):
            # Mirrored windows have eight times the scores, and to blend them one GPU after the other takes longer than the network.
            share = int(_STRIP_SHARE * member.gpu.info.total_bytes)
            if window * most_kept(own) > self._stored_bytes(member, max(_MOST_STORED, share)):
                return None
        return rows

    def _stored_bytes(self, member: TeamMember, most: int | None = None) -> int:
        """Return how much memory scores may take that wait, at most ``most`` bytes."""
        most = _MOST_STORED if most is None else most
        index = member.gpu.info.index
        beside = sum(other.gpu.info.index == index for other in self._team.members)
        member.gpu.enter()
        return min(most, int(_STORED_SHARE * member.gpu.free_bytes) // beside)

    def close(self) -> None:
        runners, self._runners = self._runners, {}
        for runner in runners.values():
            runner.close()

    def _room(self) -> int:
        """Return for how many windows each GPU has room beside what is there."""
        rooms = []
        for member in self._team.members:
            runner = self._runners[member.number]
            stored = self._stored_bytes(member)
            rooms.append(stored * runner.batch // max(1, runner.scores.nbytes))
        return min(rooms)

    def run(
        self,
        volumes: Sequence[NDArray[Any] | DeviceBuffer],
        reduction: Reduction | None = None,
        task: Task | None = None,
    ) -> NDArray[Any]:
        """Return the labels, as :meth:`.gpu_sliding_window.GpuSlidingWindow.run` on one GPU.

        Args:
            volumes: the volume (C, n0, n1, n2) on each GPU, or the same array of the computer's memory for each.

        Raises:
            GpuMemoryError: a GPU has no room for the scores of a single window more.
            Cancelled: within a few windows after ``task.cancel()``.
        """
        task = task or Task()
        settings = self._settings
        chunks: list[Chunk] = []
        if self._rows is None:
            room = self._room()
            if room < 1:
                raise GpuMemoryError("The GPU has not enough free memory to hold scores that wait for another GPU's.")
            chunks = chunks_of(settings.plan, settings.flips, len(self._team), room)
        result = _Result()
        buffers: list[list[DeviceBuffer]] = [[] for _ in self._team.members]

        def work(member: TeamMember) -> None:
            self._share(member, volumes[member.number], reduction, chunks, result, buffers[member.number])

        try:
            with task.stage("segmenting", settings.plan.count * len(settings.flips)):
                self._team.run(work, task.step)
        except BaseException:
            for number, runner in self._runners.items():
                self._team.members[number].gpu.enter()
                runner.forget()
            raise
        finally:
            # Not before all have ended: they copy from each other's memory.
            strips, self._strips = self._strips, {}
            for strip in strips.values():
                strip.close()
            for number, runner in self._runners.items():
                self._team.members[number].gpu.enter()
                runner.end(buffers[number])
        return result.labels

    def _share(
        self,
        member: TeamMember,
        volume: NDArray[Any] | DeviceBuffer,
        reduction: Reduction | None,
        chunks: Sequence[Chunk],
        result: _Result,
        buffers: list[DeviceBuffer],
    ) -> None:
        """Do what one GPU does."""
        runner = self._runners[member.number]
        source = runner.source_of(volume, buffers, member.upload)
        receiver = runner.receiver_of(reduction, buffers)
        nearest = None if reduction is None or self._settings.grid_labels is not None else reduction.nearest
        whole = self._rows is None or receiver.rows is not None
        # Each plane, or each row of it, is made by one GPU, which brings it down itself, beside later windows.
        itself = nearest is None and receiver.by_planes and whole and receiver.nbytes >= transfers.LARGE
        if itself and receiver.rows is not None:
            receiver.keep_own_rows()
        labels = receiver.labels()
        buffers.append(labels)
        if isinstance(receiver, NetworkLabels):
            labels.zero(runner.stream)
        if itself:
            planes = PlanesDown(labels, runner.stream, result.landing(receiver.shape, labels.dtype), receiver.rows)
            try:
                self._run_windows(member, source, labels, chunks, buffers, planes.begin)
                planes.wait()
            finally:
                planes.forget()
        else:
            # The system hands over the memory that labels come down to while windows run.
            down = labels if nearest is None else nearest
            result.landing(down.shape, down.dtype)
            self._run_windows(member, source, labels, chunks, buffers, None)
            self._bring_down(member, labels, nearest, result, buffers)

    def _run_windows(
        self,
        member: TeamMember,
        source: DeviceBuffer,
        labels: DeviceBuffer,
        chunks: Sequence[Chunk],
        buffers: list[DeviceBuffer],
        take: Callable[[int, int], None] | None,
    ) -> None:
        """Run the windows of one GPU; ``take`` is told of planes of the label map that are made from here on in its stream."""
        if self._rows is None:
            self._run_chunks(member, source, labels, chunks, buffers, take)
            return
        runner = self._runners[member.number]
        assert runner.receiver is not None
        strip = self._strips[member.number] = StripRun(member, runner, self._rows[member.number], buffers)
        # Every GPU looks at the others' memory and events.
        self._team.meet()
        others = [self._strips[number] for number in range(len(self._team))]
        strip.run(others, source, labels, runner.receiver, partial(self._step, member), take)

    def _run_chunks(
        self,
        member: TeamMember,
        source: DeviceBuffer,
        labels: DeviceBuffer,
        chunks: Sequence[Chunk],
        buffers: list[DeviceBuffer],
        take: Callable[[int, int], None] | None,
    ) -> None:
        """Run those of one GPU that follow each other; as :meth:`_run_windows`."""
        runner, team = self._runners[member.number], self._team
        receiver = runner.receiver
        assert receiver is not None
        most = max(chunk.windows for chunk in chunks[1:])
        store = None
        for chunk in chunks[member.number :: len(team)]:
            if chunk.number == 0:
                runner.ring.zero(runner.stream)
            elif store is None:
                store = member.gpu.allocate((max(1, most), *runner.scores.shape[1:]), runner.scores.dtype)
                buffers.append(store)
            own = store if chunk.number else None
            step = partial(self._step, member)
            runner.slide(source, labels, receiver, chunk.parts, step, store=own, take=take)
            if own is not None:
                self._take_over(member, chunk, receiver)
                runner.blend_stored(labels, receiver, chunk.parts, own, take)
            runner.stream.synchronize()
            team.ended(chunk.number)

    def _step(self, member: TeamMember, count: int) -> None:
        self.windows[member.number] += count
        self._team.step(count)

    def _take_over(self, member: TeamMember, chunk: Chunk, receiver: GpuLabelResampling | NetworkLabels) -> None:
        """Wait until the chunk before is blended, and go on with its planes."""
        self._team.wait_for(chunk.number - 1)
        runner, before = self._runners[member.number], self._runners[(chunk.number - 1) % len(self._team)]
        runner.ring.zero(runner.stream)
        # The last finished plane is looked at once more where new voxels lie behind it.
        kept = 1 if self._settings.grid_labels is not None and chunk.finished else 0
        classes, depth, *sides = runner.ring.shape
        plane = math.prod(sides) * runner.ring.dtype.itemsize
        for low, high in _in_ring(chunk.finished - kept, chunk.reached, depth):
            for first in range(low * plane, classes * depth * plane, depth * plane):
                copy_between(before.ring, runner.ring, runner.stream, first, (high - low) * plane, first)
        if receiver.total is not None:
            assert before.receiver is not None and before.receiver.total is not None
            copy_between(before.receiver.total, receiver.total, runner.stream)
        receiver.resume(chunk.finished)

    def _bring_down(
        self,
        member: TeamMember,
        labels: DeviceBuffer,
        nearest: NearestLabels | None,
        result: _Result,
        buffers: list[Any],
    ) -> None:
        """Merge this GPU's share of the label map, and copy it to where all of it stays."""
        team, runner = self._team, self._runners[member.number]
        member.shared = labels
        team.meet()
        # Which voxel of network space a voxel of the scan's grid takes its label from is anywhere in the map.
        low, high = (0, labels.nbytes) if nearest is not None else member.share_of(labels.nbytes)
        self._merge(member, labels, low, high, buffers, aside=nearest is not None)
        if nearest is not None:
            labels = nearest.placed(member.gpu, labels, runner.stream)
            buffers.append(labels)
            low, high = member.share_of(labels.nbytes)
        flat = result.flat(labels.shape, labels.dtype)
        download(labels, flat[low:high], runner.stream, low)
        # The others copy from this one's memory.
        team.meet()

    def _merge(
        self, member: TeamMember, labels: DeviceBuffer, low: int, high: int, buffers: list[Any], *, aside: bool
    ) -> None:
        """Add what the other GPUs have made of bytes ``low`` to ``high`` - 1 of the label map.

        Args:
            aside: the others look at these bytes of this one's map as well, so that they must not change before all have.
        """
        runner = self._runners[member.number]
        others = [other for other in self._team.members if other is not member]
        scratch = member.gpu.allocate((len(others) if aside else 1, max(1, high - low)), np.uint8)
        buffers.append(scratch)
        for place, other in enumerate(others):
            assert other.shared is not None
            to = place * (high - low) if aside else 0
            copy_between(other.shared, scratch, runner.stream, low, high - low, to)
            if not aside:
                self._add(runner, labels, low, scratch, 0, high - low)
        if aside:
            runner.stream.synchronize()
            self._team.meet()
            for place in range(len(others)):
                self._add(runner, labels, low, scratch, place * (high - low), high - low)

    @staticmethod
    def _add(
        runner: GpuSlidingWindow, labels: DeviceBuffer, low: int, other: DeviceBuffer, first: int, count: int
    ) -> None:
        if count:
            runner.merge_labels(
                (min(_MOST_BLOCKS, -(-count // _THREADS)), 1, 1),
                (_THREADS, 1, 1),
                runner.stream,
                ctypes.c_void_p(labels.pointer + low),
                ctypes.c_void_p(other.pointer + first),
                ctypes.c_longlong(count),
            )


def _in_ring(first: int, stop: int, depth: int) -> list[tuple[int, int]]:
    """Return where planes ``first`` to ``stop`` - 1 lie in a ring of so many, as ranges."""
    assert stop - first <= depth
    if stop <= first:
        return []
    begin, length = first % depth, stop - first
    ends = min(begin + length, depth)
    return [(begin, ends), *([(0, begin + length - depth)] if begin + length > depth else [])]


class _Result:
    """The label map in the computer's memory; begun by the first that has something to put there."""

    def __init__(self) -> None:
        self._landing: Landing | None = None
        self._lock = threading.Lock()

    @property
    def labels(self) -> NDArray[Any]:
        """The whole map."""
        assert self._landing is not None
        return self._landing.array()

    def landing(self, shape: tuple[int, ...], dtype: Any) -> Landing:
        """Return where all of it comes down to, background where nothing was put yet."""
        with self._lock:
            if self._landing is None:
                self._landing = Landing(shape, dtype)
        assert self._landing.memory.shape == shape and self._landing.memory.dtype == dtype
        return self._landing

    def flat(self, shape: tuple[int, ...], dtype: Any) -> NDArray[np.uint8]:
        """Return its bytes."""
        flat: NDArray[np.uint8] = self.landing(shape, dtype).array().reshape(-1).view(np.uint8)
        return flat
