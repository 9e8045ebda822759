"""The label map of a task, which its parts are painted into in their order: on a GPU while the parts' maps are made on GPUs, else on the processor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer
from ..imaging.region_of_interest import Box, box_slices
from .gpu_label_merging import GpuMerging, NotThere
from .label_merging import THREADS, merge_labels


class MergedLabels:
    """The label map of a task.

    Args:
        shape: (K, J, I).
        dtype: uint8 or uint16.
        threads: of the processor, that merge a part.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: Any, threads: int = THREADS) -> None:
        self._shape, self._dtype, self._threads = shape, np.dtype(dtype), threads
        self._there, self._merging = GpuMerging(shape, self._dtype), Merging()
        #: The map in the computer's memory; None before anything is painted, and while all of it is on a GPU.
        self._labels: NDArray[Any] | None = None

    def keep(self, labels: DeviceBuffer) -> bool:
        """Take over the map of a part on the GPU that made it, until it is painted; False where it has to come down."""
        return self._there.keep(labels)

    def paint(self, labels: NDArray[Any] | DeviceBuffer, box: Box, targets: dict[int, int]) -> None:
        """Paint the map of a part, (K, J, I) of a box of the whole, over what was painted before.

        Args:
            labels: on the processor, where it is painted beside what comes next; or one that was kept, which is freed.
            targets: which value of the merged map each of its values becomes; others are background, which leaves what is there.
        """
        if isinstance(labels, DeviceBuffer):
            if self._labels is None:
                # What cannot be painted there comes down, and so does what was painted before.
                with suppress(NotThere):
                    self._there.paint(labels, box, targets)
                    return
            labels = self._there.brought_down(labels)
        merged, threads = self._on_processor()[box_slices(box)], self._threads
        self._merging.add(lambda: merge_labels(merged, labels, targets, threads))

    def _on_processor(self) -> NDArray[Any]:
        """Return the map in the computer's memory; all that comes from now on is painted there."""
        if self._labels is None:
            painted = self._there.end()
            self._labels = np.zeros(self._shape, self._dtype) if painted is None else painted
        return self._labels

    def end(self) -> NDArray[Any]:
        """Return the map when all is painted; raises what the painting of a part has raised."""
        self._merging.end()
        return self._on_processor()

    def close(self) -> None:
        """End what is under way, and free what GPUs hold."""
        self._merging.close()
        self._there.close()


class Merging:
    """Merges label maps, one after the other in a thread of its own, while the next part is run."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "merging")
        self._last: Future[None] | None = None

    def add(self, merge: Callable[[], None]) -> None:
        """Begin to merge one, once the one before is: no more than one waits, since each is as large as the scan."""
        self.end()
        self._last = self._thread.submit(merge)

    def end(self) -> None:
        """Wait until all are merged; raises what a merge has raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        self._thread.shutdown()
