"""Weights on a grid whose products with a layer's inputs come nearest to its targets: the linear algebra of :mod:`.rounding`.

With samples X of the inputs (samples, inputs) and Y of the outputs, the error of weights V is, but for a constant, the quadratic
form (V - W*) H (V - W*)^T, where H holds the inputs' second moments and W* solves the linear system. Computed by torch, on a
GPU where it sees one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .weight_grid import WeightGrid

Array = NDArray[Any]

#: Pull towards FP32's weights, as a share of the inputs' mean second moment.
_DAMPING = 0.01
#: Inputs that are rounded together: larger layers are done in parts, since time grows with the square of the inputs.
_MOST_INPUTS = 4608
#: Columns between two products of whole matrices, and how often each weight may move.
_BLOCK, _SWEEPS = 96, 4


def device() -> Any:
    """Return where torch computes: a GPU if it sees one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rounded(matrix: Array, columns: Array, targets: Array, grid: WeightGrid) -> Array:
    """The multiples of the grid (output channels, inputs) whose products with the columns come nearest to the targets.

    Args:
        columns: (samples, inputs), centered where the layer has a bias.
        targets: (samples, output channels), likewise.
    """
    import torch

    where, inputs = device(), matrix.shape[1]
    parts = -(-inputs // _MOST_INPUTS)
    edges = np.linspace(0, inputs, parts + 1).astype(int)
    residual = torch.from_numpy(np.ascontiguousarray(targets)).to(where)
    weights = torch.from_numpy(matrix.astype(np.float32)).to(where)
    multiples = np.zeros(matrix.shape, np.int32)
    x = torch.from_numpy(np.ascontiguousarray(columns)).to(where)
    if parts > 1:
        # Each part takes what the parts before it leave, those after it as in FP32.
        residual = residual - x @ weights.T
    for begin, end in pairwise(edges):
        own = x[:, begin:end]
        target = residual + own @ weights[:, begin:end].T if parts > 1 else residual
        steps = torch.from_numpy(grid.steps[:, begin:end].astype(np.float32)).to(where)
        found = _round_part(weights[:, begin:end], own, target, steps, (grid.smallest, grid.largest))
        if parts > 1:
            residual = target - own @ (found * steps).T
        multiples[:, begin:end] = found.round().to(torch.int32).cpu().numpy()
    return multiples


def _round_part(weights: Any, columns: Any, targets: Any, steps: Any, limits: tuple[int, int]) -> Any:
    import torch

    moments = (columns.T @ columns / len(columns)).double()
    mean = float(moments.diagonal().mean())
    # With fewer samples than inputs the samples say little: the pull towards FP32 grows.
    damping = max(_DAMPING * max(1.0, moments.shape[0] / len(columns)) * mean, 1e-12)
    moments.diagonal().add_(damping)
    # The inputs of least weight last to first: what is rounded last has none to make up for it.
    order = torch.argsort(moments.diagonal())
    moments = moments[order][:, order]
    weights, steps = weights[:, order], steps[:, order]
    products = (targets.T @ columns / len(columns)).double()[:, order] + damping * weights.double()
    factor = torch.linalg.cholesky(moments)
    best = torch.cholesky_solve(products.T, factor).T
    unit = (factor / factor.diagonal()).float()
    with _one_thread():
        found = _feedback(best.float(), unit, steps, limits)
        found = _sweeps(found, best.float(), moments.float(), steps, limits)
    result = torch.empty_like(found)
    result[:, order] = found
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small steps one after the other: threads would wait for each other longer than they work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _feedback(best: Any, unit: Any, steps: Any, limits: tuple[int, int]) -> Any:
    """Round column by column from the last to the first, each taking on the errors of those rounded before it."""
    import torch

    found, error = torch.zeros_like(best), torch.zeros_like(best)
    count = best.shape[1]
    for end in range(count, 0, -_BLOCK):
        begin = max(0, end - _BLOCK)
        wanted = best[:, begin:end] + error[:, end:] @ unit[end:, begin:end]
        own_unit, own_error = unit[begin:end, begin:end], error[:, begin:end]
        for n in range(end - begin - 1, -1, -1):
            value = wanted[:, n] + own_error[:, n + 1 :] @ own_unit[n + 1 :, n]
            step = steps[:, begin + n]
            found[:, begin + n] = (value / step).round().clamp(*limits)
            own_error[:, n] = best[:, begin + n] - found[:, begin + n] * step
    return found


def _sweeps(found: Any, best: Any, moments: Any, steps: Any, limits: tuple[int, int]) -> Any:
    """Move weights one after the other to the best value that the others leave them; the error falls with every move."""
    residual = (best - found * steps) @ moments
    diagonal = moments.diagonal()
    for _ in range(_SWEEPS):
        before = found.clone()
        for begin in range(0, found.shape[1], _BLOCK):
            end = min(begin + _BLOCK, found.shape[1])
            own = residual[:, begin:end].clone()
            earlier = found[:, begin:end].clone()
            for n in range(end - begin):
                step = steps[:, begin + n]
                value = (found[:, begin + n] + own[:, n] / (diagonal[begin + n] * step)).round().clamp(*limits)
                moved = (value - found[:, begin + n]) * step
                own -= moved[:, None] * moments[begin + n, begin:end]
                found[:, begin + n] = value
            change = (found[:, begin:end] - earlier) * steps[:, begin:end]
            residual -= change @ moments[begin:end]
        if bool((found == before).all()):
            break
    return found
