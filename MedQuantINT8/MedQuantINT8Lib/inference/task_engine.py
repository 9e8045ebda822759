"""One report of several engines that ran a task together, in the form of a single engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engines.base import EngineDescription


def merged_engine(parts: Sequence[tuple[str, dict[str, Any], int]]) -> dict[str, Any]:
    """Return the report of all engines together.

    What is computed in INT8 is counted by what was run: each layer's multiply-accumulates as often as its network saw a window.

    Args:
        parts: name, report and number of windows of each part that was run.
    """
    reports = [report for _, report, _ in parts]
    first = reports[0]
    descriptions = [report["description"] for report in reports]
    layers = [
        {**layer, "name": f"{name}: {layer['name']}", "macs": layer["macs"] * windows}
        for (name, report, windows) in parts
        for layer in report["description"]["layers"]
    ]
    total = sum(layer["macs"] for layer in layers)
    share = sum(layer["macs"] for layer in layers if layer["int8"]) / total if total else 0.0
    seconds = [report["build_seconds"] for report in reports if report["build_seconds"] is not None]
    return {
        **first,
        "title": " and ".join(_each([report["title"] for report in reports])),
        "precision": "/".join(_each([report["precision"] for report in reports])),
        "real_int8": all(report["real_int8"] for report in reports),
        "bytes": sum(report["bytes"] for report in reports),
        "cached": all(report["cached"] for report in reports),
        "build_seconds": sum(seconds) if seconds else None,
        "note": "; ".join(f"{name}: {report['note']}" for name, report, _ in parts if report["note"]),
        "fallback_layers": [f"{name}: {layer}" for name, report, _ in parts for layer in report["fallback_layers"]],
        "fidelity": max(
            (report["fidelity"] for report in reports if report["fidelity"]), key=_relative_error, default=None
        ),
        "description": {
            **descriptions[0],
            "verdict": EngineDescription.verdict_of(share),
            "int8_mac_share": share,
            "layers": layers,
        },
    }


def _each(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _relative_error(fidelity: dict[str, Any]) -> float:
    return float(fidelity["relative_error"])
