"""The steps of transformers in NumPy, for the reference executor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plan.kernel_plan import Attention

Values = NDArray[np.float32]


def moved(values: Values, rows: NDArray[np.int32] | None) -> Values:
    """Voxels of (n, A0, A1, A2, slots) by their number, 0 where that is -1: (n, voxels, slots)."""
    flat = values.reshape(len(values), -1, values.shape[-1])
    return flat if rows is None else np.where((rows >= 0)[:, None], flat[:, rows], np.float32(0))


def normalized(values: Values, slots: NDArray[np.int64], epsilon: float, gamma: Values, beta: Values) -> Values:
    """LayerNorm over the slots that are channels; 0 in the others."""
    result = np.zeros_like(values)
    chosen = values[..., slots].astype(np.float64)
    centered = chosen - chosen.mean(-1, keepdims=True)
    by = 1 / np.sqrt((centered * centered).mean(-1, keepdims=True) + epsilon)
    result[..., slots] = centered * by * gamma[slots] + beta[slots]
    return result


def attended(values: Values, a: Attention, rows: Any, bias: Any, regions: Any) -> Values:
    """(n, A0, A1, A2, slots of queries, keys and values) to (n, voxels, heads * width)."""
    flat = moved(values, None)
    result = np.zeros((len(flat), flat.shape[1], a.heads * a.width), np.float32)
    where = np.arange(a.windows * a.tokens).reshape(a.windows, a.tokens) if rows is None else rows
    for n, patch in enumerate(flat):
        for window, voxels in enumerate(where):
            tokens = patch[voxels]
            queries, keys, contents = (
                tokens[:, s : s + a.heads * a.width].reshape(a.tokens, a.heads, a.width).swapaxes(0, 1)
                for s in a.starts
            )
            scores = queries @ keys.swapaxes(1, 2) * np.float32(a.scale)
            if bias is not None:
                scores = scores + bias[..., : a.tokens].astype(np.float32)
            if regions is not None:
                apart = regions[window][:, None] != regions[window]
                scores = scores + np.where(apart, np.float32(a.apart), np.float32(0))
            powers = np.exp(scores - scores.max(-1, keepdims=True))
            chances = powers / powers.sum(-1, keepdims=True)
            result[n, voxels] = (chances @ contents).swapaxes(0, 1).reshape(a.tokens, -1)
    return result
