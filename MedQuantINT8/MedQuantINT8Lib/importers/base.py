"""What every importer gives: a description, a network, and what the user should know; and how they become a package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import PackageError
from ..model import ModelPackage
from ..model_spec import ModelSpec
from ..progress import Task
from .onnx import import_onnx


@dataclass
class Understood:
    """A network with its preprocessing, as an importer understood it.

    Attributes:
        spec: to be saved, edited and given back.
        network: makes the torch module (N, C, *patch) to (N, classes, *patch), or is the path of an ONNX file.
        notes: what is not the same as in the original software, in words.
    """

    spec: ModelSpec
    network: Callable[[], Any] | Path
    notes: list[str] = field(default_factory=list)


def write(understood: Understood, target: str | os.PathLike[str], task: Task, *, dynamic: bool = False) -> ModelPackage:
    """Export (and prove) the network and write the package.

    Args:
        dynamic: leave spatial sizes open, for networks whose graph allows it.

    Raises:
        PackageError: the network cannot be exported or does not fit its description.
    """
    if isinstance(understood.network, Path):
        return import_onnx(understood.network, understood.spec, target)
    from ..export import export_network

    spec = understood.spec
    with TemporaryDirectory(prefix="medquant-export-") as scratch:
        path = Path(scratch) / f"{spec.name}.onnx"
        with task.stage("making the network"):
            module = understood.network()
        with task.stage("exporting"):
            report = export_network(module, path, spec.window.patch_size, len(spec.channels), dynamic_spatial=dynamic)
        understood.notes.extend(f"torch's exporter warned: {text}" for text in report.unexplained)
        return import_onnx(path, spec, target)


def single_output(module: Any, name: str) -> Any:
    """The module with only its first, full-size output (deep supervision gives several).

    Raises:
        PackageError: its output is no tensor.
    """
    from torch import Tensor, nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Tensor) -> Tensor:
            y = self.network(x)
            while isinstance(y, list | tuple):
                y = y[0]
            if not isinstance(y, Tensor):
                raise PackageError(f"{name} gives {type(y).__name__}, not a tensor of class scores.", "Wrap it in a module that does.")
            return y

    return First()
