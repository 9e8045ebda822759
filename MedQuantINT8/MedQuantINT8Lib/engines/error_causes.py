"""What TensorRT, CUDA and ONNX Runtime say when something is wrong, and the advice that helps.

Only causes that are known: for the rest there is no advice, because a wrong one costs the user an afternoon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import EngineError
from .cuda.driver import GpuMemoryError

_AGAIN = "This installation is broken: install it again with pip install --force-reinstall, in one version."
_CLEAR = "The engine was built for another GPU or version: remove it with: medquant cache clear"
_DRIVER = "Install NVIDIA's driver, or update it to one that fits this CUDA."
_MEMORY = "Close other programs that use the GPU, or choose a smaller batch or patch."

#: Words of a cause, and its advice; the first that is found counts.
CAUSES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(words, re.IGNORECASE), advice)
    for words, advice in (
        (r"out ?of ?memory|cudaErrorMemoryAllocation|Requested size was \d+ bytes|error: 2\b", _MEMORY),
        (r"nvinfer_builder_resource|validateCaskKLibSize", _AGAIN),
        (
            r"engine cannot run on this GPU|incompatible device|expecting compute|Version tag does not match|different version of TensorRT"
            r"|serialized (engine|plan)[^.]*version|older plan file",
            _CLEAR,
        ),
        (
            r"CUDA (initialization|driver)[^.]*error:? ?(35|100|803|804)\b|cudaErrorInsufficientDriver|insufficient for CUDA|driver version is insufficient"
            r"|no CUDA-capable device|cudaErrorNoDevice|libcuda\.so|nvcuda\.dll|libnvidia-ml\.so",
            _DRIVER,
        ),
        (
            r"libnvinfer\w*\.so|libnvonnxparser\w*\.so|nvinfer\w*\.dll|libcudart\.so|libcublas\w*\.so|libcudnn\w*\.so",
            _AGAIN,
        ),
    )
)


def advice(texts: str | Iterable[str]) -> str:
    """What helps against the cause that the texts name; an empty string where it is not known."""
    text = texts if isinstance(texts, str) else "\n".join(texts)
    return next((hint for words, hint in CAUSES if words.search(text)), "")


def failure(message: str, texts: str | Iterable[str], otherwise: str = "") -> EngineError:
    """The error for a message, with the advice that fits; too little memory is an error of its own, which lets ``auto`` go elsewhere.

    Args:
        texts: all that was said.
        otherwise: the hint where the cause is not known.
    """
    hint = advice(texts)
    return (GpuMemoryError if hint == _MEMORY else EngineError)(message, hint or otherwise)


_LONGEST = 400


def last_and_first(lines: Sequence[str]) -> str:
    """The last error, and the first one where they are many: what follows a cause often says less than the cause."""
    errors = [line.strip()[:_LONGEST].rstrip(". ") for line in lines if line.strip()]
    if not errors:
        return "no reason was given"
    return errors[-1] if errors[0] == errors[-1] else f"{errors[-1]} (first: {errors[0]})"
