"""The package of an INT8 network: what quantizing reports, and the files that it writes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..engines.int8_or_float import LEAST_SHARE
from ..files import write_json
from ..models import onnx_graph as graph
from ..models.layers import Layer, int8_share, weighted_layers, work_shares
from ..models.package import CALIBRATION, INT8, ModelPackage
from ..models.task_writing import note_package
from .calibration import Calibration
from .effort import with_packed_weights
from .guard_result import GuardResult
from .held_out import HeldOut
from .rounding import RoundingReport


@dataclass
class QuantizationReport:
    """The report of a quantization: what became of each layer.

    Attributes:
        layers: every convolution and matrix product with its share of the work and, if it stayed in high precision,
            why.
        int8_mac_share: share of multiply-accumulates between Q/DQ pairs, of the network as it runs: both products of a layer in halves
            count.
        size_ratio: bytes of the INT8 network over bytes of FP32.
        guard: agreement with FP32 before and after the fallback, on patches of the calibration scans.
        held_out: the agreement on scans that the ranges do not come from.
        split: convolutions of concatenations that run as one for each part, whose ranges are very unlike.
        effort, weight_bits: as asked for.
        rounding: what learned rounding did; None where the network has plain rounding.
        four_bit_layers: layers whose weights are stored in 4 bits.
    """

    layers: list[Layer]
    int8_mac_share: float
    fp32_bytes: int
    int8_bytes: int
    guard: GuardResult
    held_out: HeldOut
    warnings: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    effort: str = "normal"
    weight_bits: int = 8
    rounding: RoundingReport | None = None
    four_bit_layers: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        """The agreement to report: on held-out scans, or on the calibration scan where there is one; None where nothing is found."""
        return self.held_out.agreement

    @property
    def size_ratio(self) -> float:
        return self.int8_bytes / self.fp32_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "int8_mac_share": self.int8_mac_share,
            "work": work_shares(self.layers),
            "fp32_bytes": self.fp32_bytes,
            "int8_bytes": self.int8_bytes,
            "size_ratio": self.size_ratio,
            "layers": [asdict(layer) for layer in self.layers],
            "guard": self.guard.to_json(),
            "split": self.split,
            "agreement": self.agreement,
            "held_out": self.held_out.to_json(),
            "effort": self.effort,
            "weight_bits": self.weight_bits,
            "learned_rounding": None if self.rounding is None else self.rounding.to_json(),
            "four_bit_layers": self.four_bit_layers,
            "warnings": self.warnings,
        }


def write_quantized(
    package: ModelPackage,
    model: Any,
    measured: Calibration,
    report: QuantizationReport,
    reasons: dict[str, str],
    target: str | os.PathLike[str],
) -> ModelPackage:
    """Write the package with its INT8 network, what calibration measured, and the report, which is filled in here; a task that the package
    lies in notes that it was written anew.

    Args:
        measured: of the calibration.
        reasons: layers (node names) that stayed in high precision, and why.
    """
    report.layers = weighted_layers(graph.inferred(model), reasons)
    report.int8_mac_share = int8_share(report.layers)
    report.fp32_bytes = package.onnx_path("fp32").stat().st_size
    guarded = report.guard
    expected = report.held_out.warning(guarded.budget.agreement)
    report.warnings = [*measured.warnings, *guarded.notes, *([expected] if expected else [])]
    if report.int8_mac_share < LEAST_SHARE:
        report.warnings.append(
            f"INT8 is not worth it for this network: {100 * report.int8_mac_share:.1f} % of its multiply-accumulates run in INT8 within the budget; "
            "the precision auto takes FP32"
        )
    # The package's network keeps the open shapes of the FP32 one: engines fix them for themselves.
    _open_shapes(model, package)
    if report.weight_bits == 4:
        model, report.four_bit_layers = with_packed_weights(model, f"{package.spec.name}: {INT8}")
    with TemporaryDirectory(prefix="medquant-quantize-") as scratch:
        folder = Path(scratch)
        # The size of the file as it is kept, in the package's own report as well.
        report.int8_bytes = (folder / INT8).write_bytes(model.SerializeToString())
        _write_calibration(folder, measured, report)
        written = package.with_files(target, {INT8: folder / INT8, CALIBRATION: folder / CALIBRATION})
    note_package(target)
    return written


def with_report(
    package: ModelPackage, measured: Calibration, report: QuantizationReport, target: str | os.PathLike[str]
) -> ModelPackage:
    """Write a package anew that :func:`write_quantized` has written, with what its report says now."""
    report.warnings += [note for note in report.guard.notes if note not in report.warnings]
    with TemporaryDirectory(prefix="medquant-quantize-") as scratch:
        _write_calibration(Path(scratch), measured, report)
        written = package.with_files(target, {CALIBRATION: Path(scratch) / CALIBRATION})
    note_package(target)
    return written


def _write_calibration(folder: Path, measured: Calibration, report: QuantizationReport) -> None:
    write_json(folder / CALIBRATION, {**measured.to_json(), "quantization": report.to_json()})


def _open_shapes(model: Any, package: ModelPackage) -> None:
    original = graph.load_network(package.onnx_path("fp32"))
    initializers = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initializers]
    for mine, theirs in ((inputs[0], original.graph.input[0]), (model.graph.output[0], original.graph.output[0])):
        mine.type.CopyFrom(theirs.type)
    del model.graph.value_info[:]


def versions() -> dict[str, str]:
    """Return the versions of the packages that have a say in the result."""
    from importlib.metadata import PackageNotFoundError, version

    by_name = {}
    for name in ("medquantint8", "nvidia-modelopt", "onnx", "onnxruntime", "torch", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            by_name[name] = version(name)
    return by_name
