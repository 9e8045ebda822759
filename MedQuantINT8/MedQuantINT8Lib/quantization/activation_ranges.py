"""Ranges of the quantized tensors of an FP32 network over calibration patches, and the INT8 scales that follow from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..engines.float_session import float_session, with_full_vectors
from ..imaging.patches import Patch
from ..models import onnx_graph as graph
from ..progress import Task
from ..system import available_memory
from .calibration import CalibrationOptions, PatchSampler
from .fp32_network import Fp32Network
from .histogram import ActivationHistogram, activation_range

#: Activations of quantized tensors that are held at once while one patch is looked at: at least so many bytes, and this share of
#: the free memory up to so many. Each further group runs the network once more.
_LEAST_GROUP, _MOST_GROUP, _MEMORY_SHARE = 1 << 30, 4 << 30, 0.25


def histograms_for(
    network: Fp32Network, tensors: Sequence[str], sampler: PatchSampler, options: CalibrationOptions, task: Task
) -> dict[str, ActivationHistogram]:
    """Return what the method of calibration needs to know of each tensor: its histogram, or its largest magnitude alone."""
    if options.method == "max":
        return collect_maxima(network, tensors, sampler, len(sampler), task)
    return collect_histograms(network.model, tensors, sampler, len(sampler), network.shape, task)


def collect_maxima(
    network: Fp32Network, tensors: Sequence[str], patches: Iterable[Patch], count: int, task: Task
) -> dict[str, ActivationHistogram]:
    """Histograms that know nothing but the largest magnitude, over a stream of patches (C, A0, A1, A2); each is run once.

    Where the patches come from a sampler, the histograms have a part for each of its folds (:meth:`PatchSampler.fold`).
    """
    histograms = {name: ActivationHistogram() for name in tensors}
    with task.stage("calibrating", count):
        for patch in _in_parts(histograms, patches):
            statistics = network.statistics(patch, tensors)
            for name, histogram in histograms.items():
                histogram.add_maximum(statistics[name].maximum)
            task.step()
    return histograms


def collect_histograms(
    model: Any,
    tensors: Sequence[str],
    patches: Iterable[Patch],
    count: int,
    patch: tuple[int, int, int],
    task: Task,
) -> dict[str, ActivationHistogram]:
    """Histograms of the named tensors of an FP32 network over a stream of patches (C, A0, A1, A2).

    Tensors are looked at in groups that fit the free memory, which depends neither on their number nor on that of patches.
    Where the patches come from a sampler, the histograms have a part for each of its folds (:meth:`PatchSampler.fold`).
    """
    fixed = graph.fixed_shape(model, patch)
    shapes = graph.Graph(fixed).shapes
    widths = {name: sizes[1] for name, sizes in shapes.items() if len(sizes) > 2 and sizes[1]}
    fixed = with_full_vectors(fixed)
    input_name = graph.network_shape(fixed).input_name
    groups = _groups([t for t in tensors if t != input_name], shapes, _group_bytes())
    sessions = [float_session(graph.with_outputs(fixed, group).SerializeToString(), "fp32") for group in groups]
    histograms = {name: ActivationHistogram() for name in tensors}
    with task.stage("calibrating", count):
        for patch_values in _in_parts(histograms, patches):
            if input_name in histograms:
                histograms[input_name].add(patch_values)
            for group, run in zip(groups, sessions, strict=True):
                for name, values in zip(group, run.run(group, {input_name: patch_values[None]}), strict=True):
                    # Channels that were filled in hold zeros, which are none of the network's values.
                    histograms[name].add(values[:, : widths.get(name)] if values.ndim > 2 else values)
                task.check()
            task.step()
    return histograms


def _in_parts(histograms: dict[str, ActivationHistogram], patches: Iterable[Patch]) -> Iterator[Patch]:
    """Yield the patches; what was counted of each volume of a sampler is noted as a part of the histograms, that of its fold."""
    if not isinstance(patches, PatchSampler):
        yield from patches
        return
    for volume, group in itertools.groupby(patches.by_volume(), lambda pair: pair[0]):
        for _, patch in group:
            yield patch
        for histogram in histograms.values():
            histogram.close_part(patches.fold(volume))


def _group_bytes() -> int:
    return min(_MOST_GROUP, max(_LEAST_GROUP, int(_MEMORY_SHARE * available_memory())))


def _groups(tensors: Sequence[str], shapes: dict[str, list[int]], most: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in tensors:
        size = 4 * int(np.prod(shapes.get(name) or [0]))
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups


def scales_from(histograms: dict[str, ActivationHistogram], options: CalibrationOptions) -> dict[str, float]:
    """INT8 scale of each tensor: its range over 127."""
    return {name: activation_range(h, options.method, options.percentile) / 127 for name, h in histograms.items()}
