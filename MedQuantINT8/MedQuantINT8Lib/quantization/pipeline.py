"""The build road from files to a result: calibrate a package on scans, and write it with its INT8 network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import BuildOptions, choose_backend
from ..engines.preparation import prepare
from ..imaging.patches import ForegroundFinder, foreground_by_intensity
from ..imaging.preprocessing import NetworkInput
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume
from ..inference.engine_choice import EngineChoice, with_fallback
from ..inference.segmenter import SegmentationOptions, patch_for, segment
from ..models.package import ModelPackage
from ..progress import Task
from .calibration import CalibrationOptions, PatchSampler
from .latency import engine_stopwatch

Source = str | os.PathLike[str]


def quantize(
    model: Source,
    scans: Sequence[Source | Sequence[Source]],
    target: Source,
    calibration: CalibrationOptions,
    policy: Any,
    task: Task,
    *,
    by_network: bool = False,
    labels: Sequence[Source] = (),
    reader: Callable[[Any], Volume] = read_volume,
    engine_required: bool = True,
) -> tuple[ModelPackage, Any]:
    """Calibrate a package on scans from files, one in memory at a time, and write it with its INT8 network.

    Args:
        by_network: find foreground by a first FP32 pass over each scan, instead of by intensity.
        labels: label maps of the scans, with the model's label values, for the accuracy budget; or none.
        engine_required: whether one of this machine's engines has to be able to run the network in INT8.

    Raises:
        UnsupportedNetwork: none is; said before any scan is read.
    """
    from .quantize import calibration_patch, quantize_package

    with ModelPackage.load(model) as package:
        sources: list[Callable[[], Volume]] = [lambda scan=scan: reader(scan) for scan in scans]  # type: ignore[misc]
        find = foreground_by_network(package, task) if by_network else foreground_by_intensity
        stopwatch = engine_stopwatch(package, required=engine_required)
        references: list[Callable[[], Volume]] = [lambda path=path: reader(path) for path in labels]  # type: ignore[misc]
        patch = calibration_patch(package)
        sampler = PatchSampler(sources, package.spec, patch, calibration, find, task, references)
        return quantize_package(package, sampler, target, calibration, policy, task, stopwatch)


def foreground_by_network(package: ModelPackage, task: Task) -> ForegroundFinder:
    """Foreground as the FP32 network itself finds it: every voxel that it gives a label."""

    def find(network_input: NetworkInput) -> NDArray[np.bool_]:
        # The volume as its own original: the labels come back in network space.
        inside = replace(network_input, original=network_input.grid, steps=())
        patch = patch_for(inside, package.spec, SegmentationOptions())

        def labels_by(choice: EngineChoice) -> NDArray[Any]:
            prepared_engine = prepare(
                package,
                choose_backend(choice.name, "fp32", choice.device),
                BuildOptions("fp32", patch, device=choice.device),
                (),
                task,
            )
            try:
                return segment(inside, package.spec, prepared_engine.engine, SegmentationOptions(), task).labels
            finally:
                prepared_engine.close()

        labels, _ = with_fallback(EngineChoice(precision="fp32"), labels_by)
        return network_input.to_kji(labels) > 0

    return find
