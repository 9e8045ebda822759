"""Several packages of one task, such as the folds of a cross-validation, whose class scores are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, EngineDescription
from ..engines.base import BatchPipeline, GpuNetwork, HasHead, gpu_network_of, gpu_of, head_of, pipeline_of
from ..errors import InputError
from ..files import split_paths
from ..models.averaging import averaging_problem
from ..models.package import ModelPackage
from ..models.pointwise_head import PointwiseHead
from .gpu_mean import MeanNetwork

if TYPE_CHECKING:
    from ..engines.cuda.device import Gpu


class Ensemble:
    """Packages whose class scores are averaged. One package is an ensemble as well.

    Packages that prepare a scan alike are run on the same windows, where their scores are averaged. Others, as nnU-Net's configurations of
    one data set, are averaged by their probabilities on the scan's grid (:mod:`.configurations`).

    Attributes:
        packages: all of them.
        groups: the packages that are run together, one tuple for each way to prepare a scan.

    Raises:
        InputError: packages that have other channels or labels, or whose outputs cannot be averaged.
    """

    def __init__(self, packages: Sequence[ModelPackage]) -> None:
        self.packages = tuple(packages)
        groups: list[list[ModelPackage]] = []
        for package in self.packages:
            group = next((group for group in groups if _described_alike(package, group[0])), None)
            if group is None:
                groups.append([package])
            else:
                group.append(package)
        self.groups = tuple(map(tuple, groups))
        for other in (group[0] for group in self.groups[1:]):
            if reason := averaging_problem(self.first.spec, other.spec):
                raise InputError(
                    f"{other.spec.name} and {self.first.spec.name} cannot be averaged: {reason}.",
                    "Give packages of one task, such as the folds of one training, or nnU-Net's configurations of one data set.",
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


def _described_alike(one: ModelPackage, other: ModelPackage) -> bool:
    return replace(one.spec, name=other.spec.name, version=other.spec.version) == other.spec


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
        self._mean = MeanNetwork.of(self._engines) if len(self._engines) > 1 else None

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
    def head(self) -> PointwiseHead | None:
        """The last layer of a single engine, which blending may apply in its place; None for several, whose scores are averaged."""
        return head_of(self._engines[0]) if len(self._engines) == 1 else None

    def infer_features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the last layer is applied to, where :attr:`head` is one."""
        (engine,) = self._engines
        assert isinstance(engine, HasHead)
        return engine.infer_features(batch)

    @property
    def gpu_network(self) -> GpuNetwork | None:
        """The network on a GPU, for the sliding window there: a single engine's, or the mean of several that lie on one GPU; else None."""
        return gpu_network_of(self._engines[0]) if len(self._engines) == 1 else self._mean

    @property
    def gpu(self) -> Gpu | None:
        return gpu_of(self._engines[0])

    @property
    def pipeline(self) -> BatchPipeline | None:
        """A single engine's pipeline, for the sliding window on the processor; None for several, whose scores meet there."""
        return pipeline_of(self._engines[0]) if len(self._engines) == 1 else None

    def describe(self) -> EngineDescription:
        return self._engines[0].describe()

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
