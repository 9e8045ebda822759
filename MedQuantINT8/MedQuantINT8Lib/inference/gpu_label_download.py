"""Label maps on their way from a GPU to the computer's memory, while the GPU still works."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Stream
from ..engines.cuda.transfers import Download, download, is_large, transfers_of
from ..errors import EngineError


class Landing:
    """Where labels come down to: memory that the system hands over while the GPU works, which takes as long as the copy itself.

    Args:
        shape, dtype: of the labels; all of them are background until others come down.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        #: Not to be written before :meth:`wait`.
        self.memory = np.empty(shape, dtype)
        # It holds the memory until it has ended, also when nobody asks for that any more.
        self._thread = threading.Thread(target=self._touch, name="landing", daemon=True)
        self._thread.start()

    def _touch(self) -> None:
        # A call of ctypes lets other threads go on.
        ctypes.memset(self.memory.ctypes.data, 0, self.memory.nbytes)

    def wait(self) -> None:
        """Wait until all of the memory is there."""
        self._thread.join()

    def array(self) -> NDArray[Any]:
        """Return the memory, once all of it is there."""
        self.wait()
        return self.memory


class PlanesDown:
    """Brings planes of a label map down while windows that finish others are still run.

    Args:
        into: where they come down to, where other GPUs bring other parts of the same map there.
        rows: which rows of the planes come down, (first, last + 1); ``labels`` may hold these alone. None for all.
    """

    def __init__(
        self,
        labels: DeviceBuffer,
        stream: Stream,
        into: Landing | None = None,
        rows: tuple[int, int] | None = None,
    ) -> None:
        self._labels, self._stream, self._rows = labels, stream, rows
        self._landing = Landing(labels.shape, labels.dtype) if into is None else into
        self._result = self._landing.memory
        self._under_way: list[Download] = []
        self._begun = np.zeros(labels.shape[0], bool)

    def begin(self, first: int, stop: int) -> None:
        """Bring down planes from ``first`` to ``stop`` - 1, whose labels are made by what is in the stream; a small map waits for its end."""
        if self._rows is None and not is_large(self._labels):
            return
        plane, ready = self._labels.nbytes // self._labels.shape[0], self._landing.wait
        transfers = transfers_of(self._labels.gpu)
        if self._rows is not None:
            low, high = self._rows
            part, row = self._result[first:stop, low:high], plane // max(1, self._labels.shape[1])
            if not part.size:
                return
            if self._labels.shape[1] == high - low:
                down = transfers.begin_download_into_rows(self._labels, part, self._stream, first * plane, ready)
            else:
                begin = first * plane + low * row
                down = transfers.begin_download_of_rows(self._labels, part, self._stream, (begin, plane), ready)
            self._under_way.append(down)
            return
        self._under_way.append(
            transfers.begin_download(self._labels, self._result[first:stop], self._stream, first * plane, ready)
        )
        self._begun[first:stop] = True

    def end(self) -> NDArray[Any]:
        """Return the label map, once all of it is here."""
        if not self._begun.any():
            download(self._labels, self._landing.array(), self._stream)
            return self._result
        edges = np.flatnonzero(np.diff(np.concatenate(([1], self._begun, [1]))))
        for first, stop in edges.reshape(-1, 2).tolist():
            self.begin(first, stop)
        self.wait()
        return self._result

    def wait(self) -> None:
        """Wait until the planes that were begun are here."""
        for some in self._under_way:
            some.wait()
        self._under_way = []

    def forget(self) -> None:
        """Wait for what is under way, whatever comes of it: it uses memory that goes next."""
        for some in self._under_way:
            with contextlib.suppress(EngineError):
                some.wait()
        self._under_way = []
