"""The order in which a convolution's blocks read its weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..plan.kernel_plan import KernelPlan
from .tiling import CHUNK, Tiling


def columns_of(tiling: Tiling) -> NDArray[np.int64]:
    """For each column of a block's product the channel that it is: so dealt that a thread's columns are neighboring channels."""
    thread_channels = tiling.thread_channels
    column = np.arange(tiling.tile.channels)
    inside = column % (4 * thread_channels)
    return column - inside + (inside % 8 // 2) * thread_channels + (inside // 8) * 2 + inside % 2


def arranged_weights(plan: KernelPlan, tiling: Tiling) -> NDArray[np.uint8]:
    """Weights in the order in which blocks read them: [phase][block of channels][K block][MMA step][column][32 bytes].

    Bytes of a column are dealt so that neither ldmatrix nor wgmma meets a bank of shared memory twice.
    """
    step, tile = tiling.step, tiling.tile
    assert step.source is not None
    weights = plan.arrays[step.weights]
    items = CHUNK // tiling.element
    dtype = weights.dtype if step.int8 else np.dtype(np.float16)
    mma_steps = tiling.mma_step_groups * tiling.group_mma_steps
    arranged = np.zeros(
        (len(tiling.taps), 2 * mma_steps, tiling.k_blocks, tiling.column_blocks * tile.channels, items), dtype
    )
    for phase, (taps, factors) in enumerate(zip(tiling.taps, tiling.factors, strict=True)):
        # [tap][K block][chunk][column][items]
        by_tap = np.zeros(
            (len(taps), tiling.column_blocks * tile.channels, tiling.k_blocks * tiling.chunks * items), dtype
        )
        if tiling.spread > 1:
            for beside, k in enumerate(np.ndindex(*step.geometry.kernel)):
                by_tap[0][np.ix_(beside * step.layout.width + step.layout.slots, step.source.layout.slots)] = weights[
                    (slice(None), slice(None), *k)
                ]
        else:
            for number, (k, _) in enumerate(taps):
                by_tap[number][np.ix_(step.layout.slots, step.source.layout.slots)] = weights[
                    (slice(None), slice(None), *k)
                ]
        cut = by_tap.reshape(len(taps), -1, tiling.k_blocks, tiling.chunks, items)
        for number, (_, tap, chunk) in enumerate(factors):
            arranged[phase, number] = cut[tap, :, :, chunk].swapaxes(0, 1)
    split = arranged.reshape(
        len(tiling.taps), mma_steps, 2, tiling.k_blocks, tiling.column_blocks, tile.channels, items
    )
    # [phase][block][K block][MMA step][column][chunks of an MMA step][items]
    raw = np.ascontiguousarray(split.transpose(0, 4, 3, 1, 5, 2, 6)[..., columns_of(tiling), :, :]).view(np.uint8)
    if tile.groups:
        # [MMA step][half][column][16 bytes]
        return np.ascontiguousarray(np.swapaxes(raw, -3, -2)).reshape(-1)
    rows = np.arange(mma_steps * tile.channels).reshape(mma_steps, tile.channels) % (
        tiling.group_mma_steps * tile.channels
    )
    swapped = (rows >> 2 & 1).astype(bool)[..., None, None]
    return np.ascontiguousarray(np.where(swapped, raw[..., ::-1, :], raw)).reshape(-1)
