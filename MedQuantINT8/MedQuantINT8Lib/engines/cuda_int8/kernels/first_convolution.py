"""What fill_neighbors.cuh, a first convolution's left side, needs to know."""

from __future__ import annotations

from ..plan.kernel_plan import KernelPlan
from ..tiling.tiling import MOST_READ, Tiling
from .epilogue import inverse_of


def neighbor_definitions(plan: KernelPlan, tiling: Tiling) -> dict[str, object]:
    """Its sizes as definitions: M is the size of the network's input, R of what a tile takes of it."""
    step, region = tiling.step, tiling.region
    assert step.source is not None and step.neighbors is not None
    g = step.neighbors
    defined: dict[str, object] = {
        "CHANNELS": plan.channels,
        "SOURCE_INVERSE": f"{inverse_of(step.source.scale).hex()}f" if step.int8 else "1.0f",
    }
    defined |= {
        "ENTRIES": tiling.entries,
        "ENTRY_BYTES": tiling.entry_bytes,
        "READS_AHEAD": int(tiling.reads_ahead),
        "MOST_READ": MOST_READ,
    }
    for axis in range(3):
        defined |= {
            f"K{axis}": g.kernel[axis],
            f"S{axis}": g.stride[axis],
            f"D{axis}": g.dilation[axis],
            f"B{axis}": g.before[axis],
        }
        defined |= {f"M{axis}": plan.size[axis], f"R{axis}": region[axis]}
    return defined
