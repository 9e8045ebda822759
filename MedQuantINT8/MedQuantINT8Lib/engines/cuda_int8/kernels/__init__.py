"""CUDA C of every step: texts (.cu and .cuh), and the modules that put them together with what is generated.

Generated are sizes (as definitions), tables, the epilogue (:mod:`.epilogue`) and wgmma's lists of operands (:mod:`.wgmma`); all else is
written in files, which editors color and clang-format lays out.
"""

from __future__ import annotations

from pathlib import Path

from ...cuda.source_files import cuda_text


def kernel_text(*names: str) -> str:
    """The texts of files of this folder, one after the other."""
    return "".join(cuda_text(Path(__file__).parent / name) for name in names)


def definitions(values: dict[str, object]) -> str:
    """Return values as ``#define`` lines."""
    return "".join(f"#define {name} {value}\n" for name, value in values.items())
