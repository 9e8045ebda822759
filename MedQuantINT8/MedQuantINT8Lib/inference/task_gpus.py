"""Parts of a task on several GPUs at the same time: each part on one of them, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..imaging.volume import Volume
from ..progress import ProgressEvent, Task
from .ensemble import Ensemble
from .gpu_road import LabelKeeper
from .segmentation_run import SegmentationRun
from .segmenter import SegmentationOptions
from .shared_preprocessing import SharedPreprocessing, preprocessing_key

#: Segments a volume with the packages of one part; a keeper takes over a label map that a GPU made.
RunPart = Callable[
    [Ensemble, Volume, SegmentationOptions, SharedPreprocessing, LabelKeeper | None],
    SegmentationRun,
]
#: Gives what runs a part on one GPU alone and reports to a task of its own.
OnOneGpu = Callable[[Task], RunPart]
_CHECK_SECONDS = 0.1


@dataclass(frozen=True)
class PartRun:
    """A part that is to be run on a volume; ``name`` stands before its stages, and ``keeper`` takes over a label map that a GPU made."""

    name: str
    ensemble: Ensemble
    volume: Volume
    options: SegmentationOptions
    keeper: LabelKeeper | None = None


@dataclass(frozen=True)
class _Ended:
    """What came of a part: a run, or why there is none."""

    position: int
    run: SegmentationRun | None = None
    error: BaseException | None = None


class PartsOnGpus:
    """Runs parts, each always on the GPU of its turn, so that a process that stays loads each network once.

    Args:
        gpus: what runs a part on each GPU.
        task: takes the progress of the first of the parts under way, and says whether all shall stop.
    """

    def __init__(self, gpus: Sequence[OnOneGpu], task: Task) -> None:
        self._gpus, self._task = tuple(gpus), task

    def run(self, parts: Sequence[PartRun], take: Callable[[int, SegmentationRun], None]) -> None:
        """Run all parts; ``take`` is called in this thread with the number and the run of each, in the parts' order.

        Raises:
            Cancelled: the task was cancelled.
            BaseException: what the first part that failed has raised; the others were stopped.
        """
        # No GPU is more than one part ahead of what was taken: label maps are as large as the scan. Each has room of its own, so that none
        # takes that of the one whose part is to be taken next.
        rooms = [threading.Semaphore(2) for _ in self._gpus]
        events: queue.SimpleQueue[_Ended | tuple[int, ProgressEvent]] = queue.SimpleQueue()
        tasks = [Task() for _ in parts]
        for number, own in enumerate(tasks):
            own = tasks[number] = Task(_forward(events, number))
            own.part = f"{self._task.part}{parts[number].name}: "
        threads = [
            threading.Thread(
                target=self._work,
                args=(gpu, number, parts, tasks, events, rooms[number]),
                name=f"parts-{number}",
                daemon=True,
            )
            for number, gpu in enumerate(self._gpus)
        ]
        for thread in threads:
            thread.start()
        try:
            self._collect(len(parts), events, rooms, take)
        except BaseException:
            for own in tasks:
                own.cancel()
            for room in rooms:
                room.release(len(parts))
            raise
        finally:
            for thread in threads:
                thread.join()

    def _work(
        self,
        gpu: OnOneGpu,
        number: int,
        parts: Sequence[PartRun],
        tasks: Sequence[Task],
        events: queue.SimpleQueue[Any],
        room: threading.Semaphore,
    ) -> None:
        """Run the parts of one GPU, one after the other; a scan that the next of them takes as well stays there."""
        own = range(number, len(parts), len(self._gpus))
        shared = SharedPreprocessing()
        try:
            for position in own:
                room.acquire()
                part = parts[position]
                shared.keep = position + own.step in own and _alike(part, parts[position + own.step])
                tasks[position].check()
                run = gpu(tasks[position])(part.ensemble, part.volume, part.options, shared, part.keeper)
                # As large as the scan, and of no use to anybody.
                run.network_input = None
                events.put(_Ended(position, run))
        except BaseException as error:
            events.put(_Ended(position, error=error))
        finally:
            shared.close()

    def _collect(
        self,
        count: int,
        events: queue.SimpleQueue[Any],
        rooms: Sequence[threading.Semaphore],
        take: Callable[[int, SegmentationRun], None],
    ) -> None:
        waiting: dict[int, SegmentationRun] = {}
        taken = 0
        while taken < count:
            self._task.check()
            with suppress(queue.Empty):
                event = events.get(timeout=_CHECK_SECONDS)
                if isinstance(event, _Ended):
                    if event.error is not None:
                        raise event.error
                    assert event.run is not None
                    waiting[event.position] = event.run
                elif event[0] == taken:
                    self._task.report(event[1])
            while taken in waiting:
                take(taken, waiting.pop(taken))
                rooms[taken % len(rooms)].release()
                taken += 1


def _alike(one: PartRun, other: PartRun) -> bool:
    """Whether two parts take the same scan in the same form."""
    keys = [preprocessing_key(part.ensemble.first.spec) for part in (one, other)]
    return one.volume is other.volume and keys[0] == keys[1]


def _forward(events: queue.SimpleQueue[Any], number: int) -> Callable[[ProgressEvent], None]:
    return lambda event: events.put((number, event))
