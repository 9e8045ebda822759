"""The windows of a volume on several GPUs, each with a strip of every plane (:mod:`.gpu_strips`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engines.cuda.device import DeviceBuffer, Event, PartBuffer, Stream
from ..engines.cuda.several import copy_between
from .gpu_blending import FlippedWindow
from .gpu_label_resampling import GpuLabelResampling
from .gpu_network_labels import NetworkLabels
from .gpu_pace import Pace
from .gpu_row_run import finish_part
from .gpu_sliding_window import GpuSlidingWindow
from .gpu_strips import StripRow
from .gpu_team import TeamMember
from .window_rows import RowPart

#: Rows whose scores are kept at the same time: one is blended while the next is run.
ROWS_KEPT = 2


def most_kept(rows: Sequence[StripRow]) -> int:
    """Return how many windows' scores a GPU keeps."""
    return ROWS_KEPT * max(len(row.blended) for row in rows)


@dataclass(frozen=True)
class _KeptRow:
    """Where the scores of a row lie, one window after the other.

    Attributes:
        computed: recorded when the network has written those of this GPU's own windows.
        stored: recorded when those are there that other GPUs need.
        received: recorded when those of other GPUs are there.
        blended: recorded when all were blended.
    """

    scores: DeviceBuffer
    computed: Event
    stored: Event
    received: Event
    blended: Event


class StripRun:
    """What one GPU does for a run.

    Args:
        buffers: takes what is freed when all GPUs have ended.
    """

    def __init__(
        self, member: TeamMember, runner: GpuSlidingWindow, rows: Sequence[StripRow], buffers: list[DeviceBuffer]
    ) -> None:
        self._member, self._runner, self._rows = member, runner, rows
        gpu, most = member.gpu, max(len(row.blended) for row in rows)
        self._exchange: Stream = gpu.stream()
        self.kept: list[_KeptRow] = []
        for _ in range(ROWS_KEPT):
            scores = gpu.allocate((most, *runner.scores.shape[1:]), runner.scores.dtype)
            buffers.append(scores)
            self.kept.append(_KeptRow(scores, *(gpu.event() for _ in range(4))))

    def close(self) -> None:
        """Free all but the buffers; every GPU has ended."""
        self._member.gpu.enter()
        self._exchange.synchronize()
        self._exchange.free()
        for kept in self.kept:
            for event in (kept.computed, kept.stored, kept.received, kept.blended):
                event.free()

    def run(
        self,
        others: Sequence[StripRun],
        source: DeviceBuffer,
        labels: DeviceBuffer,
        receiver: GpuLabelResampling | NetworkLabels,
        step: Callable[[int], None],
        take: Callable[[int, int], None] | None,
    ) -> None:
        """Run, blend and make labels; the arguments are those of :meth:`.gpu_sliding_window.GpuSlidingWindow.slide`.

        Args:
            others: what every GPU of the team does, by its number.
        """
        runner = self._runner
        runner.ring.zero(runner.stream)
        runner.begin()
        for kept in self.kept:
            # The volume is of the stream that blends.
            kept.blended.record(runner.stream)
        pace = Pace(self._member.gpu)
        try:
            for number, row in enumerate(self._rows):
                kept = self.kept[number % ROWS_KEPT]
                self._compute(number, row, kept, others, source, step, pace)
                self._receive(number, row, kept, others)
                runner.blend(row.blended, kept.scores, 0, receiver)
                kept.blended.record(runner.stream)
                part = RowPart(row.blended, row.finished)
                finish_part(part, labels, receiver, take, last=row is self._rows[-1])
            pace.end()
        finally:
            pace.free()
        runner.stream.synchronize()

    def _compute(
        self,
        number: int,
        row: StripRow,
        kept: _KeptRow,
        others: Sequence[StripRun],
        source: DeviceBuffer,
        step: Callable[[int], None],
        pace: Pace,
    ) -> None:
        """Run this GPU's own windows of a row, and keep their scores."""
        runner, team, me = self._runner, self._member.team, self._member.number
        # The network writes where scores are kept once what lay there before was blended, and was taken.
        runner.network_stream.wait_for(kept.blended)
        if number >= ROWS_KEPT:
            for taker in row.takers:
                team.wait_for(("received", taker, number - ROWS_KEPT))
                received = others[taker].kept[number % ROWS_KEPT].received
                runner.network_stream.wait_for(received)
                runner.stream.wait_for(received)
        done, told, shared_there = 0, not row.shared, True
        for first in range(0, len(row.run), runner.batch):
            batch = row.run[first : first + runner.batch]
            there = self._run_batch(batch, kept, source)
            done += len(batch)
            if not told:
                shared_there = shared_there and there
                if done >= row.shared:
                    if not shared_there:
                        # Some were copied, in the one stream, and others that came after them are written in the other.
                        runner.stream.wait_for(kept.computed.record(runner.network_stream))
                    kept.stored.record(runner.network_stream if shared_there else runner.stream)
                    team.ended(("stored", me, number))
                    told = True
            pace.mark(runner.network_stream if there else runner.stream)
            step(len(batch))
        runner.stream.wait_for(kept.computed.record(runner.network_stream))

    def _run_batch(self, batch: Sequence[tuple[FlippedWindow, int]], kept: _KeptRow, source: DeviceBuffer) -> bool:
        """Run some windows, each with the place of its scores; whether the network writes them there itself, as it does where the places follow each other."""
        runner, windows, places = self._runner, [window for window, _ in batch], [place for _, place in batch]
        if places == list(range(places[0], places[0] + len(places))):
            runner.compute_into(source, windows, PartBuffer(kept.scores, places[0], len(places)))
            return True
        size = kept.scores.nbytes // kept.scores.shape[0]
        scores = runner.compute(source, windows)
        for position, place in enumerate(places):
            copy_between(scores.scores, kept.scores, runner.stream, size * position, size, size * place)
        scores.taken.record(runner.stream)
        return False

    def _receive(self, number: int, row: StripRow, kept: _KeptRow, others: Sequence[StripRun]) -> None:
        """Copy the scores that other GPUs have of windows which reach into this one's strip."""
        if not row.received:
            return
        team, me = self._member.team, self._member.number
        size = kept.scores.nbytes // kept.scores.shape[0]
        for sender in sorted({sender for _, sender, _ in row.received}):
            team.wait_for(("stored", sender, number))
            self._exchange.wait_for(others[sender].kept[number % ROWS_KEPT].stored)
        if number >= ROWS_KEPT:
            # What lay here before was blended.
            self._exchange.wait_for(kept.blended)
        for place, sender, there in row.received:
            theirs = others[sender].kept[number % ROWS_KEPT].scores
            copy_between(theirs, kept.scores, self._exchange, size * there, size, size * place)
        kept.received.record(self._exchange)
        team.ended(("received", me, number))
        self._runner.stream.wait_for(kept.received)
