"""TorchScript files, torch.export archives, and a Python class with a checkpoint.

All three are programs: they are run only with ``trust_code``. What they compute is exported to ONNX, which is data.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..child_process import run_in_child
from ..errors import InputError, PackageError
from ..models.onnx_graph import reason_of
from ..models.spec import ModelSpec
from ..progress import Task
from .base import ImportedModel, chosen_output, single_output
from .checkpoints import load_weights
from .onnx import draft_of
from .onnx_trial import Facts, Size, ending_of, made_patch


def _must_trust(path: Path, what: str, trust_code: bool) -> None:
    if not path.is_file():
        raise PackageError(f"There is no {what} at {path}.", "Check the path.")
    if not trust_code:
        raise PackageError(
            f"{path.name} is a {what}: a program, which would have to be run.",
            "If you trust where it comes from, give --trust-code.",
        )


Loader = Callable[[], Any]


def load_torchscript(path: Path) -> Any:
    """The module of a TorchScript file; raises :class:`PackageError`."""
    import torch

    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise PackageError(f"{path.name} is no TorchScript file, or it is damaged.", "Get it again.") from error


def load_exported(path: Path) -> Any:
    """The module of an archive of torch.export; raises :class:`PackageError`."""
    import torch

    try:
        return torch.export.load(str(path)).module()
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError, zipfile.BadZipFile) as error:
        raise PackageError(f"{path.name} is no torch.export archive, or it is damaged.", "Get it again.") from error


def load_class(path: Path, class_name: str, weights: Path | None, arguments: dict[str, Any]) -> Any:
    """A class of a Python file, made with keyword arguments, with a checkpoint's weights.

    Raises:
        InputError: no such class, or one that does not take these arguments.
        PackageError: the file cannot be run.
    """
    found = importlib.util.spec_from_file_location(f"medquant_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise PackageError(f"{path.name} is no Python file.", "Give the file that holds the class.")
    module = importlib.util.module_from_spec(found)
    # Its own modules lie beside it, as where it was written.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[module.__name__] = module
    try:
        found.loader.exec_module(module)
        network = getattr(module, class_name)(**arguments)
    except AttributeError as error:
        raise InputError(f"{path.name} has no class {class_name}: {error}.", "Check --class.") from error
    except Exception as error:
        # A stranger's code raises what it likes.
        raise InputError(
            f"{class_name} of {path.name} cannot be made: {type(error).__name__}: {reason_of(error)}.",
            "Check the file and --arguments.",
        ) from error
    if weights is not None:
        load_weights(network, weights)
    return single_output(network.eval(), class_name)


def drafted(load: Loader, name: str, channels: int, patch: Size, *, task: Task) -> ModelSpec:
    """In the child: a first description of a module, from what two runs on made patches tell.

    Raises:
        PackageError: it does not take such a patch, or gives no class scores.
    """
    import torch

    from .export import as_float32

    with task.stage("making the network"):
        module, _notes = as_float32(load())
    found = []
    with task.stage("trying the network", 2):
        for amplitude in (1.0, 1e3):
            try:
                with torch.no_grad():
                    output = chosen_output(
                        module(torch.from_numpy(made_patch(channels, patch, amplitude=amplitude))), name
                    )
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                reason = str(error).strip().splitlines()[-1][:160]
                raise PackageError(
                    f"{name} does not take {channels} channel(s) of {patch}: {reason}.", "Check --channels and --patch."
                ) from error
            if output.ndim != 5:
                raise PackageError(
                    f"{name} gives no tensor of class scores (N, classes, A0, A1, A2).",
                    "Give a 3D segmentation network.",
                )
            if tuple(output.shape[2:]) != patch:
                raise PackageError(
                    f"{name} gives {tuple(output.shape[2:])} voxels of scores for a window of {patch}; it must give as many as it takes.",
                    "Give a network whose output has the size of its input.",
                )
            found.append(output.float().numpy())
            task.step()
    facts = Facts(channels, int(output.shape[1]), patch, ending_of(found[0], found[1], ""))
    return draft_of(facts, name, patch)


@dataclass(frozen=True)
class Program:
    """What is said on the command line of a network that is a program."""

    trust_code: bool
    channels: int
    patch: Size | None
    spec: ModelSpec | None

    def imported_model(self, path: Path, load: Loader, name: str, task: Task) -> ImportedModel:
        """The network with its description, or with a draft of one."""
        described = self.spec
        if described is None:
            if self.patch is None:
                raise InputError(f"{path.name} does not say its patch size.", "Give it, such as --patch 96 96 96.")
            described = run_in_child(
                partial(drafted, load, name, self.channels, self.patch), task, f"The trial of {path.name}"
            )
        return ImportedModel(
            described, load, [] if self.spec else ["preprocessing and labels are guesses: correct them"], by_hand=True
        )


def understand_torchscript(path: Path, given: Program, task: Task) -> ImportedModel:
    """A TorchScript file (torch.jit.save), which is run in a process of its own.

    Raises:
        PackageError: without ``trust_code``, no such file, or a damaged one.
        InputError: no patch size.
    """
    _must_trust(path, "TorchScript file", given.trust_code)
    return given.imported_model(path, partial(load_torchscript, path), path.stem, task)


def understand_exported(path: Path, given: Program, task: Task) -> ImportedModel:
    """An archive of torch.export (.pt2), which is run in a process of its own; raises as for TorchScript."""
    _must_trust(path, "torch.export archive", given.trust_code)
    return given.imported_model(path, partial(load_exported, path), path.stem, task)


def understand_class(
    path: Path, class_name: str, weights: Path | None, arguments: dict[str, Any], given: Program, task: Task
) -> ImportedModel:
    """A class in a Python file, made with keyword arguments, with the weights of a checkpoint; run in a process of its own."""
    _must_trust(path, "Python file", given.trust_code)
    return given.imported_model(path, partial(load_class, path, class_name, weights, arguments), class_name, task)
