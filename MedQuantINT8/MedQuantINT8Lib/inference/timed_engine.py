"""An engine whose calls are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..engines.base import head_of
from .gpu_road_check import EngineVerdicts


class TimedEngine:
    """An engine that notes how long each call takes, and knows where is kept how far its GPU is trusted."""

    def __init__(self, engine: Any, calls: list[float], road_verdicts: EngineVerdicts | None = None) -> None:
        self._engine, self._calls, self.road_verdicts = engine, calls, road_verdicts

    def infer(self, batch: Any) -> Any:
        return self._timed(self._engine.infer, batch)

    def infer_features(self, batch: Any) -> Any:
        return self._timed(self._engine.infer_features, batch)

    def _timed(self, infer: Callable[[Any], Any], batch: Any) -> Any:
        began = time.perf_counter()
        result = infer(batch)
        self._calls.append(time.perf_counter() - began)
        return result

    @property
    def head(self) -> Any:
        return head_of(self._engine)

    @property
    def gpu_network(self) -> Any:
        return self._engine.gpu_network

    @property
    def gpu(self) -> Any:
        return self._engine.gpu

    @property
    def pipeline(self) -> Any:
        return self._engine.pipeline

    def describe(self) -> Any:
        return self._engine.describe()

    def close(self) -> None:
        self._engine.close()
