"""Several GPUs that work on one volume, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from ..engines.cuda.device import DeviceBuffer, Gpu, Stream
from ..engines.cuda.several import connect, copy_between
from ..engines.cuda.transfers import begin_upload

T = TypeVar("T")


class _Stopped(Exception):
    """Another GPU of the team failed, or was cancelled."""


class GpuTeam:
    """GPUs that work on one volume: each in a thread of its own, so that none waits for another's copies.

    The same GPU may be in it several times, opened each time.
    """

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.members = [TeamMember(self, number, gpu) for number, gpu in enumerate(gpus)]
        self._lock = threading.Lock()
        self._begin()
        connect(gpus)

    def __len__(self) -> int:
        return len(self.members)

    def _begin(self) -> None:
        self._barrier = threading.Barrier(len(self.members))
        self._turns: dict[Hashable, threading.Event] = {}
        self._errors: list[BaseException] = []
        self._steps: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def run(self, work: Callable[[TeamMember], T], step: Callable[[int], None] = lambda _: None) -> list[T]:
        """Do work with every member at the same time; what each gives, in their order.

        Args:
            step: told, in the calling thread, of each :meth:`step`; what it raises stops all members.

        Raises:
            BaseException: what the first member raised that failed; the others were stopped.
        """
        self._begin()
        results: dict[int, T] = {}

        def run(member: TeamMember) -> None:
            try:
                member.gpu.enter()
                results[member.number] = work(member)
            except (_Stopped, threading.BrokenBarrierError):
                # Whoever failed says why.
                pass
            except BaseException as error:
                self._fail(error)
            finally:
                self._steps.put(None)

        threads = [
            threading.Thread(target=run, args=(member,), name=f"gpu-{member.number}", daemon=True)
            for member in self.members
        ]
        running = len(threads)
        try:
            for thread in threads:
                thread.start()
            while running:
                count = self._steps.get()
                if count is None:
                    running -= 1
                elif not self._errors:
                    step(count)
        except BaseException as error:
            # Also Ctrl-C in a program that uses this one: memory goes when all have ended, and not before.
            self._fail(error)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if self._errors:
            raise self._errors[0]
        return [results[number] for number in range(len(self.members))]

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._errors.append(error)
            for turn in self._turns.values():
                turn.set()
        self._barrier.abort()

    def meet(self) -> None:
        """Wait until every member is here."""
        self._barrier.wait()

    def _turn(self, name: Hashable) -> threading.Event:
        with self._lock:
            turn = self._turns.setdefault(name, threading.Event())
            if self._errors:
                turn.set()
            return turn

    def ended(self, name: Hashable) -> None:
        """Say that a piece of work that another member waits for is done, and all that its GPU had to do for it."""
        self._turn(name).set()

    def wait_for(self, name: Hashable) -> None:
        """Wait until a piece of work is done."""
        self._turn(name).wait()
        self.check()

    def check(self) -> None:
        """Stop the calling member if another one failed."""
        if self._errors:
            raise _Stopped

    def step(self, count: int) -> None:
        """Tell of progress; stop the calling member if another one failed, or the work was cancelled."""
        self.check()
        self._steps.put(count)


class TeamMember:
    """One GPU of a team.

    Attributes:
        number: its place in the team.
    """

    def __init__(self, team: GpuTeam, number: int, gpu: Gpu) -> None:
        self.team, self.number, self.gpu = team, number, gpu
        #: What the other members copy from.
        self.shared: DeviceBuffer | None = None
        #: What is done once, while the member's share of an array goes up.
        self.meanwhile: Callable[[], object] | None = None

    def share_of(self, size: int) -> tuple[int, int]:
        """Return the first of ``size`` things that this member does, and the one after its last."""
        count = len(self.team)
        return size * self.number // count, size * (self.number + 1) // count

    def upload(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream) -> None:
        """Bring an array into the memory of every GPU: each takes a share over the bus, and the others' shares from their memory.

        Every member has to call it with the same array.
        """
        if array.flags.c_contiguous:
            array = array.reshape(-1)
        size = buffer.nbytes // max(1, len(array))
        low, high = self.share_of(len(array))
        end = begin_upload(buffer, array[low:high], stream, to=low * size)
        try:
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
        finally:
            end()
        self.exchange(buffer, stream, [_bytes(other.share_of(len(array)), size) for other in self.team.members])

    def exchange(self, buffer: DeviceBuffer, stream: Stream, shares: Sequence[tuple[int, int]]) -> None:
        """Fill a buffer of which every member has its own share, in bytes, with the shares of the others."""
        self.shared = buffer
        stream.synchronize()
        self.team.meet()
        for other, (low, high) in zip(self.team.members, shares, strict=True):
            if other is not self:
                assert other.shared is not None
                copy_between(other.shared, buffer, stream, low, high - low, low)
        stream.synchronize()
        self.team.meet()


def _bytes(share: tuple[int, int], size: int) -> tuple[int, int]:
    return share[0] * size, share[1] * size
