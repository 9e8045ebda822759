"""The model card of a package: what others need to know before they segment with it, as Markdown.

Everything but the training data, which only its authors know, is read from the package: its origin and license, what it was
calibrated on, what INT8 lost, and which layers stayed in float. The card is the package's README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .package import INT8, ModelPackage

_NOT_STATED = "not stated"


@dataclass(frozen=True)
class EngineProof:
    """A real INT8 engine of this package's network that was compared with its simulation.

    Attributes:
        engine, version, device: as the engine names itself.
        int8_share: share of the multiply-accumulates that its own report says ran in INT8; None where it was not recorded.
        relative_error: of its scores to those of the simulation.
        label_disagreement: share of voxels with another label than the simulation's, 0 to 1.
    """

    engine: str
    version: str
    device: str
    int8_share: float | None
    relative_error: float
    label_disagreement: float


def model_card(package: ModelPackage, training_data: str = "", proofs: Sequence[EngineProof] = ()) -> str:
    """Return the card of a package.

    Args:
        training_data: what the network was trained on, in the words of whoever publishes it.
        proofs: engines that the INT8 network was compared on.
    """
    spec = package.spec
    lines = [
        f"# {_plain(spec.title or spec.name)}",
        "",
        *([_plain(spec.description), ""] if spec.description else []),
        f"A package of MedQuantINT8: `medquant models get FILE.zip` installs it, `medquant segment {spec.name} SCAN` segments with it.",
        "",
        "## The network",
        "",
        f"- Name and version: {spec.name} {_plain(spec.version)}",
        f"- Modality: {spec.modality}, {len(spec.channels)} channel{'s' if len(spec.channels) > 1 else ''}",
        f"- Origin: {_plain(spec.source_url) or _NOT_STATED}",
        f"- License: {_plain(spec.license)}",
        f"- To cite: {_plain(spec.citation) or _NOT_STATED}",
        f"- Training data: {_plain(training_data) or _NOT_STATED}",
        f"- Structures ({len(spec.labels)}): " + ", ".join(_plain(label.name) for label in spec.labels),
        "",
        "## INT8",
        "",
        *_int8_lines(package),
    ]
    if package.has(INT8):
        lines += ["", "## Engines", "", *_engine_lines(proofs)]
    return "\n".join(lines) + "\n"


def _int8_lines(package: ModelPackage) -> list[str]:
    if not package.has(INT8):
        return ["This package holds the FP32 network only; `medquant quantize` makes the INT8 network from scans."]
    calibration = package.calibration() or {}
    if not (quantization := calibration.get("quantization")):
        return ["This package holds an INT8 network. How it was calibrated is not recorded in it."]
    guard = quantization.get("guard") or {}
    volumes, patches = len(calibration.get("volumes", {})), calibration.get("patches_used")
    lines = [
        f"- Calibrated on: {volumes} scan{'s' if volumes != 1 else ''}, {patches} patches, method {calibration.get('method')}",
        f"- In INT8: {100 * quantization['int8_mac_share']:.1f} % of the multiply-accumulates",
        f"- Size: {quantization['int8_bytes'] / 1e6:.2f} MB, {100 * quantization['size_ratio']:.0f} % of FP32's {quantization['fp32_bytes'] / 1e6:.2f} MB",
    ]
    if (agreement := guard.get("agreement")) is not None:
        lines.append(f"- Agreement with FP32 (mean Dice): {agreement:.4f}")
    else:
        lines.append("- Agreement with FP32: not measured")
    if dice := guard.get("dice_to_labels"):
        lines.append(f"- Dice with labels: FP32 {_score(dice['fp32'])}, INT8 {_score(dice['after'])}")
    else:
        lines.append("- Dice with labels: not measured")
    floats = [layer for layer in quantization.get("layers", []) if not layer["quantized"]]
    lines.append(
        "- In float: " + ("no layer" if not floats else f"{len(floats)} of {len(quantization['layers'])} layers")
    )
    lines += [f"  - {layer['name']} ({layer['op']}): {_plain(layer['reason']) or _NOT_STATED}" for layer in floats]
    return lines


def _score(value: float | None) -> str:
    return _NOT_STATED if value is None else f"{value:.4f}"


def _engine_lines(proofs: Sequence[EngineProof]) -> list[str]:
    if not proofs:
        return ["No engine of this INT8 network was compared with its simulation on the machine that wrote this card."]
    lines = [
        "| engine | device | in INT8 | relative error to the simulation | other labels |",
        "| --- | --- | --- | --- | --- |",
    ]
    for proof in proofs:
        share = _NOT_STATED if proof.int8_share is None else f"{100 * proof.int8_share:.1f} %"
        cells = [
            f"{proof.engine} {proof.version}",
            proof.device,
            share,
            f"{proof.relative_error:.4f}",
            f"{100 * proof.label_disagreement:.3f} %",
        ]
        lines.append("| " + " | ".join(_plain(cell).replace("|", "/") for cell in cells) + " |")
    return lines


def _plain(text: str) -> str:
    """One line without what Markdown or HTML would take for more than text."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")
