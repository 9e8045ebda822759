"""The kernels of the sliding window on the GPU: sliding_window.cu, and the names of its functions."""

from __future__ import annotations

from pathlib import Path

from ..engines.cuda.source_files import cuda_text

#: One function for each kind of volume and of network (``float32`` or ``float16``).
NAMES = (
    *(f"cut_{source}_{target}" for source in ("f32", "i16", "u16", "u8") for target in ("f32", "f16")),
    "blend_f32",
    "blend_f16",
    "reduce_planes",
)


def source() -> str:
    """Return the CUDA C text of all kernels."""
    return cuda_text(Path(__file__).parent / "sliding_window.cu")
