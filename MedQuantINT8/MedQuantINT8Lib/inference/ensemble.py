"""Several packages of one task, such as the folds of a cross-validation, whose class scores are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, EngineDescription
from ..engines.base import BatchPipeline, GpuNetwork, gpu_network_of, gpu_of, pipeline_of
from ..errors import InputError
from ..files import split_paths
from ..models.package import ModelPackage

if TYPE_CHECKING:
    from ..engines.cuda.device import Gpu


class Ensemble:
    """Packages that are run on the same windows. One package is an ensemble as well.

    Raises:
        InputError: packages that prepare their input differently or have other labels.
    """

    def __init__(self, packages: Sequence[ModelPackage]) -> None:
        self.packages = tuple(packages)
        first = self.packages[0]
        for other in self.packages[1:]:
            if replace(other.spec, name=first.spec.name, version=first.spec.version) != first.spec:
                raise InputError(
                    f"{other.spec.name} and {first.spec.name} cannot be averaged: their descriptions differ.",
                    "Give packages of one task, such as the folds of one training.",
                )

    @property
    def first(self) -> ModelPackage:
        return self.packages[0]

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for package in self.packages:
            package.close()


def load_ensemble(paths: str) -> Ensemble:
    """Load one package, or several joined by commas.

    Raises:
        PackageError: a package that cannot be loaded.
    """
    packages: list[ModelPackage] = []
    try:
        for path in split_paths(paths):
            packages.append(ModelPackage.load(path))
        return Ensemble(packages)
    except BaseException:
        for package in packages:
            package.close()
        raise


class MeanEngine:
    """Engines as one that gives the mean of their class scores."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        first, *others = self._engines
        result = first.infer(batch)
        if others:
            # A sum of its own: an engine's result may lie in memory that its next call reuses.
            result = np.array(result, np.float32)
            for engine in others:
                result += engine.infer(batch)
            result /= len(self._engines)
        return result

    @property
    def gpu_network(self) -> GpuNetwork | None:
        """A single engine's network on a GPU, for the sliding window there; None for several, whose scores meet here."""
        return gpu_network_of(self._engines[0]) if len(self._engines) == 1 else None

    @property
    def gpu(self) -> Gpu | None:
        return gpu_of(self._engines[0])

    @property
    def pipeline(self) -> BatchPipeline | None:
        """Return what ``gpu_network`` returns, but for the sliding window on the processor."""
        return pipeline_of(self._engines[0]) if len(self._engines) == 1 else None

    def describe(self) -> EngineDescription:
        return self._engines[0].describe()

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
