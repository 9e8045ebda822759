"""Windows run row by row: labels of the planes that a row finishes, and rows whose scores are kept until all of a row are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..engines.cuda.device import DeviceBuffer
from .gpu_kept_rows import KeptRows
from .gpu_label_resampling import GpuLabelResampling
from .gpu_network_labels import NetworkLabels
from .gpu_pace import Pace
from .gpu_window_kernels import Intensity
from .window_rows import RowPart, batched

if TYPE_CHECKING:
    from .gpu_sliding_window import GpuSlidingWindow

#: Pieces in which the last planes of a label map are made.
_LAST_PIECES = 4


def slide_by_rows(
    runner: GpuSlidingWindow,
    rows: KeptRows,
    source: DeviceBuffer,
    labels: DeviceBuffer,
    receiver: GpuLabelResampling | NetworkLabels,
    parts: Sequence[RowPart],
    step: Callable[[int], None],
    intensity: Intensity,
    take: Callable[[int, int], None] | None,
) -> None:
    """As :meth:`.gpu_sliding_window.GpuSlidingWindow.slide`, with scores that are kept until all of a row are there."""
    gpu, stream, network_stream = source.gpu, runner.stream, runner.network_stream
    pace = Pace(gpu)
    # Of the last two rows: their planes are made, so that what these took alone may be written over.
    finished, computed = [gpu.event(), gpu.event()], gpu.event()
    for event in finished:
        event.record(stream)
    try:
        for row, part in enumerate(parts):
            if row < 2 or not rows.all:
                network_stream.wait_for(finished[row % 2])
            done = 0
            for batch in batched(part.windows, runner.batch):
                runner.compute_into(source, batch, rows.place(row, done, len(batch)), intensity)
                done += len(batch)
                pace.mark(network_stream)
                step(len(batch))
            stream.wait_for(computed.record(network_stream))
            finish_part(part, labels, receiver, take, last=part is parts[-1])
            finished[row % 2].record(stream)
        pace.end()
    finally:
        pace.free()
        for event in (*finished, computed):
            event.free()


def finish_part(
    part: RowPart,
    labels: DeviceBuffer,
    receiver: GpuLabelResampling | NetworkLabels,
    take: Callable[[int, int], None] | None,
    *,
    last: bool,
) -> None:
    """Make labels of the planes that a part finishes; ``take`` as in :meth:`GpuSlidingWindow.slide`.

    Args:
        last: nothing is run after it, so that planes come down beside the labels of the next ones alone.
    """
    for begin, end in part.finished_in(_LAST_PIECES if last and take is not None else 1):
        planes = receiver.finish(labels, begin, end)
        if take is not None and planes is not None:
            take(*planes)
