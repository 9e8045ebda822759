"""Checkpoints of PyTorch, read as data: ``weights_only`` everywhere, no pickled code is run."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError, PackageError

#: Keys under which checkpoints keep the weights, clearest name first.
_PLACES = ("network_weights", "state_dict", "model_state_dict", "model", "net", "network", "weights")


def read_checkpoint(path: str | os.PathLike[str], what: str = "checkpoint", *, mapped: bool = False) -> Any:
    """Return the content of a file that ``torch.save`` wrote: tensors, numbers, text and containers of them; NumPy's numbers are read as well.

    Args:
        mapped: leave the tensors in the file until they are used, to look at what stands beside them.

    Raises:
        PackageError: no such file, a damaged one, or one that holds anything else, which would mean running its code.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise PackageError(f"There is no {what} at {path}.", "Check the path.")
    try:
        with _numpy_numbers():
            # Files of before PyTorch 1.6 are no zip, and cannot be mapped.
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=(mapped and zipfile.is_zipfile(path)) or None
            )
    except pickle.UnpicklingError as error:
        raise PackageError(
            f"{path.name} holds Python objects beside weights, and reading those would run their code: {_first_line(error)}.",
            "Save its state_dict alone, with torch.save(model.state_dict(), ...).",
        ) from error
    except Exception as error:
        # torch's own unpickler answers damage with whatever Python raises: IndexError, TypeError, struct.error, AssertionError.
        raise PackageError(
            f"{path.name} is no PyTorch {what}, or it is damaged: {_first_line(error)}.", "Get it again."
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (causes or lines or [type(error).__name__])[0][:160].rstrip(".")


@contextlib.contextmanager
def _numpy_numbers() -> Iterator[None]:
    """Let NumPy's scalars, arrays and their dtypes through: nnU-Net logs with them, MONAI's DiNTS keeps its architecture in them, and
    rebuilding one runs nothing else."""
    import numpy as np
    import torch

    core = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")}
    # Written by NumPy 1 it is called numpy.core, by NumPy 2 numpy._core.
    functions = [
        (getattr(core, function), f"numpy.{name}.multiarray.{function}")
        for name in ("core", "_core")
        for function in ("scalar", "_reconstruct")
    ]
    with torch.serialization.safe_globals([np.dtype, np.ndarray, *functions, *dtypes]):
        yield


def state_dict_of(checkpoint: Any, name: str) -> dict[str, Any]:
    """Return the weights in a checkpoint, wherever it keeps them, without the prefixes of parallel training.

    Raises:
        PackageError: there are no weights.
    """
    import torch

    weights = checkpoint
    for place in _PLACES:
        if isinstance(weights, dict) and isinstance(weights.get(place), dict):
            weights = weights[place]
            break
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise PackageError(
            f"{name} holds no weights.", f"Expected tensors by name, or a dictionary with one of {', '.join(_PLACES)}."
        )
    for prefix in ("module.", "_orig_mod.", "net."):
        if all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def load_weights(module: Any, weights: str | os.PathLike[str] | dict[str, Any]) -> None:
    """Put weights into a module; every one must have its place, and every place its weight.

    Raises:
        InputError: names that are missing or left over, or shapes that differ.
    """
    name = "the checkpoint" if isinstance(weights, dict) else Path(weights).name
    state = weights if isinstance(weights, dict) else state_dict_of(read_checkpoint(weights), name)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        mismatch = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error)[:200])
        raise InputError(f"{name} does not fit the network: {mismatch}.", "Check the network's settings.") from error
    if missing or unexpected:
        raise InputError(
            f"{name} does not fit the network: {len(missing)} weight(s) missing, {len(unexpected)} left over, such as {[*missing, *unexpected][0]}.",
            "Check which network the weights belong to.",
        )
