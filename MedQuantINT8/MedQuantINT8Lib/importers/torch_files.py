"""TorchScript files, torch.export archives, and a Python class with a checkpoint.

All three are programs: they are run only with ``trust_code``. What they compute is exported to ONNX, which is data.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

from ..errors import InputError, PackageError
from ..model_spec import ModelSpec
from .base import Understood, single_output
from .checkpoints import load_weights
from .onnx import draft_of
from .onnx_trial import Facts, ending_of, made_patch


def _must_trust(path: Path, what: str, trust_code: bool) -> None:
    if not path.is_file():
        raise PackageError(f"There is no {what} at {path}.", "Check the path.")
    if not trust_code:
        raise PackageError(
            f"{path.name} is a {what}: a program, which would have to be run.", "If you trust where it comes from, give --trust-code."
        )


def draft(module: Any, name: str, channels: int, patch: tuple[int, int, int]) -> ModelSpec:
    """A first description of a module: what two runs on made patches tell.

    Raises:
        PackageError: it does not take such a patch, or gives no class scores.
    """
    import torch

    found = []
    for amplitude in (1.0, 1e3):
        try:
            with torch.no_grad():
                output = module(torch.from_numpy(made_patch(channels, patch, amplitude=amplitude)))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[-1][:160]
            raise PackageError(f"{name} does not take {channels} channel(s) of {patch}: {reason}.", "Check --channels and --patch.") from error
        if not isinstance(output, torch.Tensor) or output.ndim != 5:
            raise PackageError(f"{name} gives no tensor of class scores (N, classes, A0, A1, A2).", "Give a 3D segmentation network.")
        found.append(output.float().numpy())
    facts = Facts(channels, int(output.shape[1]), patch, ending_of(found[0], found[1], ""))
    return draft_of(facts, name, patch)


def understand_torchscript(
    path: Path, *, trust_code: bool, channels: int, patch: tuple[int, int, int] | None, spec: ModelSpec | None
) -> Understood:
    """A TorchScript file (torch.jit.save).

    Raises:
        PackageError: without ``trust_code``, or no such file.
        InputError: no patch size.
    """
    import torch

    _must_trust(path, "TorchScript file", trust_code)
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise PackageError(f"{path.name} is no TorchScript file, or it is damaged.", "Get it again.") from error
    size = _patch(path, patch, spec)
    described = spec or draft(module, path.stem, channels, size)
    return Understood(described, lambda: module, by_hand=True)


def understand_exported(
    path: Path, *, trust_code: bool, channels: int, patch: tuple[int, int, int] | None, spec: ModelSpec | None
) -> Understood:
    """An archive of torch.export (.pt2)."""
    import torch

    _must_trust(path, "torch.export archive", trust_code)
    try:
        module = torch.export.load(str(path)).module()
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError, zipfile.BadZipFile) as error:
        raise PackageError(f"{path.name} is no torch.export archive, or it is damaged.", "Get it again.") from error
    size = _patch(path, patch, spec)
    described = spec or draft(module, path.stem, channels, size)
    return Understood(described, lambda: module, by_hand=True)


def understand_class(
    path: Path,
    class_name: str,
    weights: Path | None,
    *,
    arguments: dict[str, Any],
    trust_code: bool,
    channels: int,
    patch: tuple[int, int, int] | None,
    spec: ModelSpec | None,
) -> Understood:
    """A class in a Python file, made with keyword arguments, with the weights of a checkpoint."""
    _must_trust(path, "Python file", trust_code)
    found = importlib.util.spec_from_file_location(f"medquant_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise PackageError(f"{path.name} is no Python file.", "Give the file that holds the class.")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        network = getattr(module, class_name)(**arguments)
    except AttributeError as error:
        raise InputError(f"{path.name} has no class {class_name}: {error}.", "Check --class.") from error
    except (TypeError, ValueError, ImportError, SyntaxError) as error:
        raise InputError(f"{class_name} of {path.name} cannot be made: {error}.", "Check --arguments.") from error
    if weights is not None:
        load_weights(network, weights)
    network = single_output(network.eval(), class_name)
    described = spec or draft(network, class_name, channels, _patch(path, patch, spec))
    return Understood(described, lambda: network, by_hand=True)


def _patch(path: Path, patch: tuple[int, int, int] | None, spec: ModelSpec | None) -> tuple[int, int, int]:
    if patch is None and spec is None:
        raise InputError(f"{path.name} does not say its patch size.", "Give it, such as --patch 96 96 96.")
    return patch or spec.window.patch_size  # type: ignore[union-attr]
