"""One network on each of several GPUs as one engine: windows are spread over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, EngineDescription
from ..engines.base import BatchPipeline, gpu_network_of, gpu_of, pipeline_of
from .gpu_road_check import KnowsVerdicts, Verdicts


class SpreadEngine:
    """Engines of the same network as one; the first does what is not spread.

    Attributes:
        on_each_gpu: the engines.
    """

    def __init__(self, engines: Sequence[Any]) -> None:
        self.on_each_gpu: tuple[Any, ...] = tuple(engines)
        self._first: Engine = engines[0]
        self._pipeline: BatchPipeline | None = None

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._first.infer(batch)

    @property
    def gpu(self) -> Any:
        return gpu_of(self._first)

    @property
    def gpu_network(self) -> Any:
        return gpu_network_of(self._first)

    @property
    def road_verdicts(self) -> Verdicts | None:
        return self._first.road_verdicts if isinstance(self._first, KnowsVerdicts) else None

    @property
    def pipeline(self) -> BatchPipeline:
        """Batches by the GPUs in turn, for the sliding window on the processor."""
        if self._pipeline is None:
            pipelines = [pipeline_of(engine) or _InThread(engine) for engine in self.on_each_gpu]
            self._pipeline = PipelinesInTurn(pipelines)
        return self._pipeline

    def describe(self) -> EngineDescription:
        return self._first.describe()

    def close(self) -> None:
        for engine in self.on_each_gpu:
            engine.close()


class PipelinesInTurn:
    """Pipelines that take one batch after the other; scores come back in the order of the batches."""

    def __init__(self, pipelines: Sequence[BatchPipeline]) -> None:
        self._pipelines = tuple(pipelines)
        self._given = self._taken = 0
        self._least = min(pipeline.ahead for pipeline in pipelines)

    @property
    def ahead(self) -> int:
        return len(self._pipelines) * max(1, self._least) - (self._least < 1)

    def submit(self, batch: NDArray[np.float32]) -> None:
        self._pipelines[self._given % len(self._pipelines)].submit(batch)
        self._given += 1

    def collect(self) -> NDArray[np.float32]:
        scores = self._pipelines[self._taken % len(self._pipelines)].collect()
        self._taken += 1
        # A pipeline without a second set of buffers writes its next scores where these are.
        return np.array(scores) if self._least < 1 else scores

    def drain(self) -> None:
        for pipeline in self._pipelines:
            pipeline.drain()
        self._given = self._taken = 0


class _InThread:
    """An engine without a pipeline, which works in a thread of its own."""

    ahead = 1

    def __init__(self, engine: Engine) -> None:
        self._engine, self._executor = engine, ThreadPoolExecutor(1, "gpu-infer")
        self._futures: deque[Future[NDArray[np.float32]]] = deque()

    def submit(self, batch: NDArray[np.float32]) -> None:
        self._futures.append(self._executor.submit(self._infer, np.array(batch)))

    def _infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        # The engine may use the memory of its scores again.
        return np.array(self._engine.infer(batch))

    def collect(self) -> NDArray[np.float32]:
        return self._futures.popleft().result()

    def drain(self) -> None:
        while self._futures:
            self._futures.popleft().exception()
