"""The source of what transformers need besides products: LayerNorm (layernorm.cu), and attention on tensor cores (attention.cu)."""

from __future__ import annotations

import numpy as np

from ..plan.kernel_plan import Attention, KernelPlan, Step
from . import definitions, kernel_text
from .elementwise import Grid, source_definitions
from .epilogue import EpilogueSource

#: Warps of a block, and blocks that keep a large GPU busy.
_WARPS, _BUSY = 4, 528
ATTENTION_THREADS = 32 * _WARPS


def layernorm_source(plan: KernelPlan, step: Step, epilogue: EpilogueSource) -> tuple[str, Grid]:
    """CUDA C of a LayerNorm, and its grid for one patch and block: (blocks, threads)."""
    assert step.source is not None
    groups = step.layout.width // 8
    lanes = min(32, 1 << (groups - 1).bit_length())
    # Few voxels are spread over many multiprocessors.
    threads = 256 if step.voxels * lanes >= 256 * _BUSY else 64
    rows = threads // lanes
    defined: dict[str, object] = {
        **source_definitions(plan, step),
        "THREADS": threads,
        "LANES": lanes,
        "ROWS": rows,
        "CHANNELS": f"{step.layout.channels}.0f",
        "DENSE": int(step.layout.channels == step.layout.width),
        "EPSILON": _float(step.epsilon),
        "MOVES": int(len(step.tables) > 2),
        "SOURCE_VOXELS": f"{int(np.prod(step.source_size))}ll",
        "TABLES": len(epilogue.pointers),
    }
    source = kernel_text("prelude.cuh") + definitions(defined) + epilogue.text
    return source + kernel_text("read_source.cuh", "layernorm.cu"), (-(-step.voxels // rows), threads)


def attention_source(plan: KernelPlan, step: Step, epilogue: EpilogueSource) -> tuple[str, int]:
    """CUDA C of attention, and the bytes of shared memory that a block takes."""
    assert step.source is not None and step.attention is not None
    a = step.attention
    rows, bias, regions = step.tables
    defined: dict[str, object] = {
        "WARPS": _WARPS,
        "KEY_PARTS": _key_parts(a),
        "TOKENS": a.tokens,
        "HEADS": a.heads,
        "HEAD": a.width,
        "DEEP": _deep(a.width),
        "WINDOWS": a.windows,
        "PITCH": plan.buffers[step.source.buffer].pitch,
        **{f"START_{name}": start for name, start in zip("QKV", a.starts, strict=True)},
        "SCALE": _float(a.scale),
        "APART": _float(a.apart),
        "HAS_ROWS": int(bool(rows)),
        "HAS_BIAS": int(bool(bias)),
        "HAS_REGIONS": int(bool(regions)),
        "BIAS_PITCH": plan.arrays[bias].shape[2] if bias else 0,
        "TABLES": len(epilogue.pointers),
    }
    keys = -(-a.tokens // 32) * 32
    shared = keys * (_deep(a.width) + 8) * 2 * 2 + _WARPS * 16 * _deep(a.width) * 4 + (a.tokens * 4 if regions else 0)
    if _key_parts(a) > 1:
        shared += _WARPS * 16 * 2 * 4
    return kernel_text("prelude.cuh") + definitions(defined) + epilogue.text + kernel_text("attention.cu"), shared


def attention_grid(step: Step, batch: int) -> tuple[int, int, int]:
    """Blocks of attention: one for each window and head, more where those are few."""
    assert step.attention is not None
    a = step.attention
    pairs = a.windows * a.heads
    most = -(-a.tokens * _key_parts(a) // (16 * _WARPS))
    return pairs, min(most, max(1, -(-_BUSY // (pairs * batch)))), batch


def _key_parts(attention: Attention) -> int:
    """Warps that share the keys of sixteen queries: several where windows and heads are few, and keys enough."""
    blocks = attention.windows * attention.heads * -(-attention.tokens // (16 * _WARPS))
    return 2 if blocks < _BUSY // 4 and attention.tokens > 32 else 1


def _deep(width: int) -> int:
    """Channels of a head as tensor cores take them."""
    return -(-width // 16) * 16


def _float(value: float) -> str:
    """A number as CUDA C; in hexadecimal a float stays what it is."""
    return f"{float(np.float32(value)).hex()}f"
