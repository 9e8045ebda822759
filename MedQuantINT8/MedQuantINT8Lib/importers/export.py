"""Export of a torch.nn.Module to ONNX, compared with the module it came from."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DependencyError, PackageError
from ..progress import Task
from .class_scores import single_output

if TYPE_CHECKING:
    from torch import nn

INPUT, OUTPUT = "image", "logits"
#: ModelOpt raises older networks to this; exporting it so keeps the layers' names.
OPSET = 19
#: Relative error (norm of the difference over norm of the output) that an export may have.
PARITY = 1e-3

#: Warnings of torch's exporter that are understood, and why they do not matter here.
_EXPLAINED_WARNINGS = (
    (r"torchvision is not installed", "none of torchvision's operators is in a 3D network"),
    (r"Exporting a model while it is in training mode", "evaluation mode is set right before"),
    (r"# ?'?dynamic_axes'? is not recommended|dynamic_axes", "the exporter's advice on an argument that is not used"),
    (r"LeafSpec.*deprecated|isinstance\(treespec, LeafSpec\)", "torch's own use of a name that it renames later"),
    (
        r"Setting the opset version lower|opset_version|version conversion|The model version conversion",
        "the opset is checked below",
    ),
    (r"copyreg|_constant|torch\.jit\.script|torch\.jit\.trace", "torch's own use of older parts of torch"),
    (r"onnxscript.*(deprecated|experimental)|onnx_ir", "the exporter's own libraries speak to each other"),
    (
        r"The tensor attributes? .* (was|were) assigned during export",
        "caches of masks and sizes, which a static graph does not need",
    ),
)


@dataclass
class ExportReport:
    """An export, and its difference from the module.

    Attributes:
        parity: relative error of ONNX Runtime's output against PyTorch's, at a batch of 1 and of 2.
        unexplained: the exporter's warnings that are not understood.
        notes: what was changed in the module, in words.
    """

    path: Path
    parity: float
    bytes: int
    seconds: float
    unexplained: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export_network(
    module: nn.Module,
    target: Path,
    patch: tuple[int, int, int],
    channels: int = 1,
    *,
    dynamic_spatial: bool = False,
    task: Task | None = None,
) -> ExportReport:
    """Export a network with a dynamic batch, and open spatial sizes if asked, and compare the two.

    Args:
        module: (N, channels, *patch) to (N, classes, *patch), on the CPU.
        dynamic_spatial: leave the spatial sizes open.

    Raises:
        DependencyError: torch's exporter or ONNX Runtime is not installed.
        PackageError: the module cannot be exported, or ONNX computes something else.
    """
    try:
        import onnxscript  # noqa: F401
        import torch
        import torch.onnx._internal.exporter._registration  # its logger has to exist before its messages are collected
    except ImportError as error:
        raise DependencyError(
            f"Networks cannot be exported: {error}.", "Install what is missing with: pip install 'medquantint8[import]'"
        ) from error
    task = task or Task()
    if not isinstance(module, torch.fx.GraphModule):  # those of torch.export have only the one mode
        module.eval()
    module, notes = as_float32(module)
    example = torch.randn(2, channels, *patch, generator=torch.Generator().manual_seed(0))
    traceable = _reduce_to_tensor(module, example[:1])
    if traceable is not module:
        module, notes = (
            traceable,
            [
                *notes,
                "the network gives several results, of which the first (of a dictionary: the class scores) is taken",
            ],
        )
    start = time.perf_counter()
    messages: list[str] = []
    try:
        with _collect_messages(messages), torch.no_grad():
            torch.onnx.export(
                module,
                (example,),
                str(target),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
                **_choose_exporter(module, dynamic_spatial),
            )
    except Exception as error:
        # torch.export raises dozens of types of its own; their first line says what it stumbled over.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PackageError(
            f"The network cannot be exported: {reason[:200]}.",
            "Export it to ONNX yourself and use: medquant import onnx",
        ) from error
    seconds = time.perf_counter() - start
    with task.stage("comparing the export with PyTorch"):
        parity = _measure_parity(module, target, example)
    if parity > PARITY:
        raise PackageError(
            f"The exported network computes something else than the original (relative error {parity:.2g}).",
            "Please report this with the network.",
        )
    unexplained = [
        text
        for text in messages
        if not any(re.search(pattern, text, re.IGNORECASE) for pattern, _ in _EXPLAINED_WARNINGS)
    ]
    return ExportReport(target, parity, target.stat().st_size, seconds, unexplained, notes)


def as_float32(module: Any) -> tuple[Any, list[str]]:
    """Return the module with its weights in float32, and notes on the change: numbers of 16 bits are kept exactly."""
    import torch

    kinds = {
        str(p.dtype).removeprefix("torch.") for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()
    }
    others = sorted(kinds - {"float32"})
    if not others:
        return module, []
    change = "are rounded to" if "float64" in others else "are kept exactly, as"
    with torch.no_grad():
        return module.float(), [f"its {' and '.join(others)} weights {change} float32, in which it computes here"]


def _reduce_to_tensor(module: Any, example: Any) -> Any:
    """Return the module as it is, or TorchScript that gives a list, a tuple or a dictionary traced so that it gives the class scores alone.

    torch's exporters read either kind of program, not one inside the other.
    """
    import torch

    if not isinstance(module, torch.jit.ScriptModule):
        return module
    try:
        with torch.no_grad():
            gives_tensor = isinstance(module(example), torch.Tensor)
            if gives_tensor:
                return module
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.jit.trace(single_output(module, "The network"), example, check_trace=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PackageError(
            f"The network does not run on such a patch: {(lines or ['no reason given'])[-1][:160]}.",
            "Check --patch and --channels.",
        ) from error


def _choose_exporter(module: Any, dynamic_spatial: bool) -> dict[str, Any]:
    """Return the exporter's settings: TorchScript takes torch's older exporter, because torch.export does not read it."""
    import torch

    axes = (2, 3, 4) if dynamic_spatial else ()
    if isinstance(module, torch.jit.ScriptModule):
        names = {0: "batch", **{axis: f"size{axis}" for axis in axes}}
        return {"dynamo": False, "dynamic_axes": {INPUT: names, OUTPUT: names}}
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=64), **dict.fromkeys(axes, torch.export.Dim.AUTO)}
    return {"dynamo": True, "external_data": False, "dynamic_shapes": (shape,)}


def _measure_parity(module: Any, path: Path, example: Any) -> float:
    import numpy as np
    import torch

    from ..engines.onnxruntime import session

    run = session(path.read_bytes(), "fp32")
    worst: float = 0.0
    for batch in (example[:1], example):
        with torch.no_grad():
            expected = module(batch).numpy()
        scores = run.run(None, {INPUT: batch.numpy()})[0]
        worst = max(worst, float(np.linalg.norm(scores - expected)) / max(float(np.linalg.norm(expected)), 1e-30))
    return worst


@contextlib.contextmanager
def _collect_messages(messages: list[str]) -> Iterator[None]:
    """Collect what the exporter says through warnings and logging, and keep it off the screen."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    # By name, because torch gives handlers of their own to loggers below its first.
    roots = ("torch", "onnxscript", "onnx_ir")
    names = {*roots, *(name for name in logging.root.manager.loggerDict if name.split(".")[0] in roots)}
    loggers = [logging.getLogger(name) for name in names]
    collector = Collector(logging.WARNING)
    previous = [(logger, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
    try:
        with (
            warnings.catch_warnings(record=True) as warning_records,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for logger, propagate, handlers in previous:
            logger.handlers, logger.propagate = handlers, propagate
    messages.extend(
        str(item.message) for item in warning_records if not issubclass(item.category, (ResourceWarning, ImportWarning))
    )
