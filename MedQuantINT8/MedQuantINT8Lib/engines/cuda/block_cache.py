"""Large blocks of a GPU's memory that wait, freed, for whoever needs as much next.

The driver takes milliseconds for a large block, more where other GPUs may read it, and a run of a scan takes the same blocks as the run before.
"""

from __future__ import annotations

import threading
from typing import Any

from .driver import GpuMemoryError, checked, recording

#: Blocks from this size on are kept.
LEAST = 1 << 20
#: Blocks are whole numbers of steps: of this size, or, where that is more, of a 16th to a 32nd of the block.
_STEP, _STEP_BITS = 1 << 21, 5
#: All that wait are no more than this share of a GPU's memory, for all processes of a run together.
_SHARE = 1 / 8
#: How many processes of a run use each GPU that this one does.
_processes = 1


def share_with(processes: int) -> None:
    """Say, before any GPU is opened, how many processes of a run use each GPU that this one does, itself included: each keeps its part."""
    global _processes
    _processes = max(1, processes)


class BlockCache:
    """Blocks of one GPU, for all that have opened it; threads may use it at the same time.

    A block is given away again only when all that the GPU had to do when the block was freed is done, as it is where the driver frees one.

    Args:
        total_bytes: the GPU's memory.
    """

    def __init__(self, driver: Any, total_bytes: int) -> None:
        self._driver, self._most = driver, int(total_bytes * _SHARE / _processes)
        self._lock = threading.Lock()
        #: The blocks that wait, by size, each with the number of its freeing; those freed last are at the end.
        self._waiting: dict[int, list[tuple[int, int]]] = {}
        #: How often a block was freed, and how often when the GPU was last waited for.
        self._freed = self._waited = 0
        #: The bytes that wait.
        self.nbytes = 0
        self._users = 0

    def begin_use(self) -> None:
        """Count somebody who allocates."""
        with self._lock:
            self._users += 1

    def end_use(self) -> bool:
        """Count one of these less; whether others are left."""
        with self._lock:
            self._users -= 1
            return self._users > 0

    def allocate(self, size: int, what: str) -> int:
        """Return the address of a block of at least ``size`` bytes; the GPU's context must be current.

        Raises:
            GpuMemoryError: there is not enough, not even without the blocks that wait; names ``what``.
        """
        if size < LEAST:
            return self._new(size, what)
        capacity = _capacity(size)
        with self._lock:
            blocks = self._waiting.get(capacity)
            pointer, number = blocks.pop() if blocks else (0, 0)
            self.nbytes -= capacity if number else 0
            freed, doubt = self._freed, number > self._waited
        if not number:
            return self._new(capacity, what)
        if doubt:
            with recording:
                checked(self._driver.cuCtxSynchronize(), "finish its work")
            with self._lock:
                # One wait is enough for all that were freed before it.
                self._waited = max(self._waited, freed)
        return pointer

    def _new(self, size: int, what: str) -> int:
        try:
            return int(checked(self._driver.cuMemAlloc(max(1, size)), what))
        except GpuMemoryError:
            if not self.empty():
                raise
        return int(checked(self._driver.cuMemAlloc(max(1, size)), what))

    def free(self, pointer: int, size: int) -> None:
        """Take a block of :meth:`allocate` back, for the next one of its size; those that have waited longest go to the driver."""
        capacity, gone = _capacity(size), [pointer]
        if size >= LEAST and capacity <= self._most:
            with self._lock:
                self._freed += 1
                self._waiting.setdefault(capacity, []).append((pointer, self._freed))
                self.nbytes += capacity
                gone = list(iter(self._superfluous, 0))
        self._give_back(gone)

    def _superfluous(self) -> int:
        """Take out the block that has waited longest while there are too many; 0 where there are not."""
        if self.nbytes <= self._most:
            return 0
        capacity = min((c for c, blocks in self._waiting.items() if blocks), key=lambda c: self._waiting[c][0][1])
        self.nbytes -= capacity
        return self._waiting[capacity].pop(0)[0]

    def empty(self) -> bool:
        """Give all blocks that wait back to the driver; whether there were any."""
        with self._lock:
            blocks = [pointer for some in self._waiting.values() for pointer, _ in some]
            self._waiting, self.nbytes = {}, 0
        self._give_back(blocks)
        return bool(blocks)

    def _give_back(self, pointers: list[int]) -> None:
        for pointer in pointers:
            checked(self._driver.cuMemFree(pointer), "free memory")


def _capacity(size: int) -> int:
    """Return the size of the block that is taken for so many bytes: like ones fit each other's, and little is lost."""
    step = max(_STEP, 1 << max(0, size.bit_length() - _STEP_BITS))
    return -(-size // step) * step
