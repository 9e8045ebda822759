"""The importers of TorchScript files, torch.export archives, and a Python class with a checkpoint.

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
from .base import ImportedModel
from .checkpoints import load_weights
from .class_scores import select_scores, single_output
from .onnx import draft_of
from .onnx_trial import Facts, Size, ending_of, random_patch


def _require_trust(path: Path, what: str, trust_code: bool) -> None:
    if not path.is_file():
        raise PackageError(f"There is no {what} at {path}.", "Check the path.")
    if not trust_code:
        raise PackageError(
            f"{path.name} is a {what}: a program, which would have to be run.",
            "If you trust where it comes from, give --trust-code.",
        )


Loader = Callable[[], Any]


def load_torchscript(path: Path) -> Any:
    """Return the module of a TorchScript file; raises :class:`PackageError`."""
    import torch

    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise PackageError(f"{path.name} is no TorchScript file, or it is damaged.", "Get it again.") from error


def load_exported(path: Path) -> Any:
    """Return the module of an archive of torch.export; raises :class:`PackageError`."""
    import torch

    try:
        return torch.export.load(str(path)).module()
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError, zipfile.BadZipFile) as error:
        raise PackageError(f"{path.name} is no torch.export archive, or it is damaged.", "Get it again.") from error


def load_class(path: Path, class_name: str, weights: Path | None, arguments: dict[str, Any]) -> Any:
    """Return an object of a class in a Python file, created with keyword arguments, with a checkpoint's weights.

    Raises:
        InputError: there is no such class, or one that does not take these arguments.
        PackageError: the file cannot be run.
    """
    module_spec = importlib.util.spec_from_file_location(f"medquant_user_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise PackageError(f"{path.name} is no Python file.", "Give the file that holds the class.")
    module = importlib.util.module_from_spec(module_spec)
    # Its own modules lie beside it, as where it was written.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[module.__name__] = module
    try:
        module_spec.loader.exec_module(module)
        network = getattr(module, class_name)(**arguments)
    except AttributeError as error:
        raise InputError(f"{path.name} has no class {class_name}: {error}.", "Check --class.") from error
    except Exception as error:
        # Foreign code raises any type of error.
        raise InputError(
            f"{class_name} of {path.name} cannot be made: {type(error).__name__}: {reason_of(error)}.",
            "Check the file and --arguments.",
        ) from error
    if weights is not None:
        load_weights(network, weights)
    return single_output(network.eval(), class_name)


def draft_description(load: Loader, name: str, channels: int, patch: Size, *, task: Task) -> ModelSpec:
    """Return a first description of a module, judged by two runs on random patches; runs in the child process.

    Raises:
        PackageError: it does not take such a patch, or gives no class scores.
    """
    import torch

    from .export import as_float32

    with task.stage("making the network"):
        module, _notes = as_float32(load())
    scores = []
    with task.stage("trying the network", 2):
        for amplitude in (1.0, 1e3):
            try:
                with torch.no_grad():
                    output = select_scores(
                        module(torch.from_numpy(random_patch(channels, patch, amplitude=amplitude))), name
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
            scores.append(output.float().numpy())
            task.step()
    facts = Facts(channels, int(output.shape[1]), patch, ending_of(scores[0], scores[1], ""))
    return draft_of(facts, name, patch)


@dataclass(frozen=True)
class Program:
    """The settings of the command line for a network that is a program."""

    trust_code: bool
    channels: int
    patch: Size | None
    spec: ModelSpec | None

    def imported_model(self, path: Path, load: Loader, name: str, task: Task) -> ImportedModel:
        """Return the network with its description, or with a draft of one."""
        spec = self.spec
        if spec is None:
            if self.patch is None:
                raise InputError(f"{path.name} does not say its patch size.", "Give it, such as --patch 96 96 96.")
            spec = run_in_child(
                partial(draft_description, load, name, self.channels, self.patch), task, f"The trial of {path.name}"
            )
        return ImportedModel(
            spec, load, [] if self.spec else ["preprocessing and labels are guesses: correct them"], by_hand=True
        )


def understand_torchscript(path: Path, program: Program, task: Task) -> ImportedModel:
    """Return the network of a TorchScript file (torch.jit.save), which is run in a process of its own.

    Raises:
        PackageError: ``trust_code`` is not set, there is no such file, or it is damaged.
        InputError: there is no patch size.
    """
    _require_trust(path, "TorchScript file", program.trust_code)
    return program.imported_model(path, partial(load_torchscript, path), path.stem, task)


def understand_exported(path: Path, program: Program, task: Task) -> ImportedModel:
    """Return the network of a torch.export archive (.pt2), which is run in a process of its own; raises as for TorchScript."""
    _require_trust(path, "torch.export archive", program.trust_code)
    return program.imported_model(path, partial(load_exported, path), path.stem, task)


def understand_class(
    path: Path, class_name: str, weights: Path | None, arguments: dict[str, Any], program: Program, task: Task
) -> ImportedModel:
    """Return the network of a class in a Python file, created with keyword arguments, with the weights of a checkpoint; run in a process of its own."""
    _require_trust(path, "Python file", program.trust_code)
    return program.imported_model(path, partial(load_class, path, class_name, weights, arguments), class_name, task)
