"""One JSON result (``Resources/report.schema.json``) and one self-contained HTML page from it."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import write_json, write_text
from ...inference.pipeline import SegmentationRun
from ...inference.structure_dice import WorstStructures
from ...models.package import FP32, INT8, ModelPackage
from ...system import machine, peak_memory
from ..agreement import StructureAgreement, mean_dice
from .pages import Table, counted, number, render
from .summary import by_precision, gained, lost, structures
from .viewer import ViewerScan, viewer_values

#: What a report is written as.
REPORT_FILES = ("report.json", "report.html")


def run_json(scan: str, run: SegmentationRun) -> dict[str, Any]:
    """Return a run as the report and ``medquant segment --json`` show it; its peak of memory is that of this process."""
    return {
        "scan": Path(scan).name,
        "precision": run.engine["precision"],
        "seconds": run.seconds,
        "latency_ms": run.latency_ms,
        "windows": run.result.windows,
        "skipped_share": run.result.skipped_share,
        "notes": run.result.notes,
        "ranges": run.ranges,
        "parts": run.parts,
        "boxes": run.boxes,
        "engine": run.engine,
        "peak_memory_bytes": peak_memory(),
    }


def write_report(report: dict[str, Any], folder: Path, viewed: Sequence[ViewerScan] = ()) -> None:
    """Write report.json and report.html into ``folder``.

    Args:
        viewed: the scans that the page's viewer shows.
    """
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", report_html(report, viewed))


def report_json(
    package: ModelPackage, runs: list[dict[str, Any]], agreements: list[dict[str, Any]], pictures: list[dict[str, str]]
) -> dict[str, Any]:
    """Return the report of a package's runs.

    Args:
        runs: what ``medquant segment --json`` gives, one for each scan and precision.
        agreements: rows made by :func:`agreement_json`.
        pictures: ``title`` and base64 ``png`` of each.
    """
    spec = package.spec
    sizes: dict[str, Any] = {"fp32_bytes": (package.folder / FP32).stat().st_size}
    if package.has(INT8):
        sizes["int8_bytes"] = (package.folder / INT8).stat().st_size
        sizes["ratio"] = sizes["int8_bytes"] / sizes["fp32_bytes"]
    calibration = package.calibration() or {}
    return {
        "schema": "medquant-report",
        "schema_version": "1.0",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "medquant_version": __version__,
        "machine": machine(),
        "model": {
            "name": spec.name,
            "title": spec.title,
            "version": spec.version,
            "modality": spec.modality,
            "license": spec.license,
            "citation": spec.citation,
            "source_url": spec.source_url,
        },
        "sizes": sizes,
        "calibration": {
            k: calibration[k] for k in ("method", "patches_used", "volumes", "warnings", "versions") if k in calibration
        },
        "quantization": calibration.get("quantization"),
        "runs": runs,
        "agreement": agreements,
        "pictures": pictures,
    }


def agreement_json(
    scan: str, first: str, second: str, rows: list[StructureAgreement], left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """One comparison, such as of "int8" with "fp32" or of "int8" with "labels".

    Args:
        left_out: structures that ``second`` does not have, and that the mean therefore leaves out.
    """
    return {
        "scan": scan,
        "first": first,
        "second": second,
        "mean_dice": mean_dice(rows),
        **WorstStructures.of((row.name, row.dice, max(row.ml, row.other_ml)) for row in rows).to_json(),
        "left_out": list(left_out),
        "structures": [row.to_json() for row in rows],
    }


def picture_json(title: str, png: bytes) -> dict[str, str]:
    return {"title": title, "png": base64.b64encode(png).decode()}


def report_html(report: dict[str, Any], viewed: Sequence[ViewerScan] = ()) -> str:
    """Return the report as one page that needs nothing else: gains, losses with pictures, structures; then the details, folded.

    Raises:
        DependencyError: Jinja2 is not installed.
    """
    model = report["model"]
    scans = list(dict.fromkeys(run["scan"] for run in report["runs"]))
    engines = {run["engine"]["name"]: run["engine"]["description"]["version"] for run in report["runs"]}
    versions = {**report["calibration"].get("versions", {}), **engines}
    return render(
        "report.html",
        title=model["title"] or model["name"],
        on=f" on {scans[0]}" if len(scans) == 1 else f" on {counted(len(scans), 'scan')}" if scans else "",
        created=report["created"].replace("T", " "),
        gains=gained(report),
        loss=lost(report),
        shown=viewer_values(viewed),
        pictures=report["pictures"],
        structures=structures(report["agreement"]),
        times=_times(report["runs"]),
        engines=_engines(report["runs"]),
        quantization=_quantization(report),
        medquant_version=report["medquant_version"],
        machine=report["machine"],
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        model=model,
    )


def _ratio(first: float | None, second: float | None) -> str:
    return f"{first / second:.2f}" if first and second else "–"


def _times(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return where the time went, the mean over the scans: one row a stage, so that the table stays narrow; then notes and ``ranges``."""
    if not runs:
        return None
    report = {"runs": runs}
    precisions = [p for p in ("fp32", "int8") if any(run["precision"] == p for run in runs)]
    stages = dict.fromkeys(stage for run in runs for stage in run["seconds"] if stage != "total")
    figures: list[tuple[str, Any, int]] = [(stage, lambda r, s=stage: r["seconds"].get(s), 2) for stage in stages]
    figures += [("all together", lambda r: r["seconds"]["total"], 2)]
    figures += [
        ("one call of the network, ms (median)", lambda r: r["latency_ms"].get("median"), 1),
        ("one call of the network, ms (95 % are faster)", lambda r: r["latency_ms"].get("p95"), 1),
        ("engine's file, MB", lambda r: r["engine"]["bytes"] / 1e6, 2),
        ("largest memory, MB", lambda r: (r.get("peak_memory_bytes") or 0) / 1e6 or None, 0),
    ]
    rows = []
    for name, key, digits in figures:
        values = by_precision(report, key)
        if values:
            last = [_ratio(values.get("fp32"), values.get("int8"))] if len(precisions) == 2 else []
            rows.append([name, *(number(values.get(p), digits) for p in precisions), *last])
    head = ["Seconds", *(p.upper() for p in precisions), *(["FP32 / INT8"] if len(precisions) == 2 else [])]
    notes = sorted({note for run in runs for note in run["notes"]})
    looked = [run for run in runs if run.get("ranges")]
    ranges = [
        [
            r["scan"],
            _percent(r["ranges"]["input"]),
            str(r["ranges"]["windows"]),
            number(((r["ranges"].get("second_look") or {}).get("agreement")), 4),
            _percent(r["ranges"]["mean"]),
            *_worst(r["ranges"]),
        ]
        for r in looked
    ]
    columns = [
        "Scan",
        "of the input",
        "windows looked at",
        "agreement with FP32 there",
        "of all tensors",
        "of the worst",
        "which is",
    ]
    return {
        "table": Table(head, rows),
        "notes": notes,
        "ranges": Table(columns, ranges, stack=True) if looked else None,
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3f} %"


def _worst(ranges: dict[str, Any]) -> list[str]:
    worst = ranges["worst"][:1]
    return [_percent(worst[0]["share"]), worst[0]["tensor"]] if worst else ["–", "–"]


def _engines(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each engine and precision once: what of its work is in INT8, how near it comes to the simulation, and its layers."""
    engines: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        engines.setdefault((run["engine"]["name"], run["precision"]), run["engine"])
    return [_engine(engine, precision) for (_, precision), engine in engines.items()]


def _engine(engine: dict[str, Any], precision: str) -> dict[str, Any]:
    description = engine["description"]
    layers = [layer for layer in description["layers"] if layer["macs"]]
    total = sum(layer["macs"] for layer in layers) or 1
    rows = [
        [*(layer[key] for key in ("name", "kind", "precision", "kernel")), f"{100 * layer['macs'] / total:.2f} %"]
        for layer in layers
    ]
    return {
        "title": engine["title"],
        "precision": precision,
        "kind": "good" if description["verdict"] == "INT8" else "bad" if precision == "int8" else "",
        "verdict": description["verdict"],
        "int8_share": number(100 * description["int8_mac_share"], 1),
        "fidelity": engine.get("fidelity"),
        "note": engine.get("note"),
        "layers": Table(["Layer", "Kind", "Computes in", "Kernel", "Work"], rows, 4, stack=True),
    }


def _quantization(report: dict[str, Any]) -> dict[str, Any] | None:
    quantization = report.get("quantization")
    if not quantization:
        return None
    calibration = report["calibration"]
    guard = quantization["guard"]
    agreement = guard["agreement"]
    kept = [[layer["name"], layer["op"], layer["reason"]] for layer in quantization["layers"] if not layer["quantized"]]
    return {
        "method": calibration.get("method"),
        "patches": counted(calibration.get("patches_used") or 0, "patch", "patches"),
        "volumes": counted(len(calibration.get("volumes", {})), "volume"),
        "agreement": "unknown, FP32 found nothing in them" if agreement is None else number(agreement, 4),
        "worst": WorstStructures.of_rows(guard.get("structures", ())).text,
        # Packages of earlier versions hold no scan out.
        "held_out": quantization.get("held_out", {}).get("lines", []),
        "scans": _scans(quantization.get("held_out", {}).get("scans", [])),
        "guard": _guard(guard),
        "warnings": calibration.get("warnings", []),
        "kept": Table(["Kept in high precision", "Operator", "Why"], kept, 9, stack=True),
        # Packages of earlier versions have no halves.
        "halves": Table(
            ["Runs as two INT8 halves", "Why"], [list(item) for item in guard.get("halves", {}).items()], 9, stack=True
        ),
        "work": {kind: number(100 * share, 1) for kind, share in quantization.get("work", {}).items()},
    }


def _scans(scans: list[dict[str, Any]]) -> Table | None:
    """Return the agreement scan by scan, with the structures that agree least; None where nothing was measured."""
    if not scans:
        return None
    rows = [
        [
            scan["scan"],
            number(scan["agreement"], 4),
            number(scan["own_ranges"], 4),
            *(_structure(scan[key]) for key in ("worst", "worst_small")),
        ]
        for scan in scans
    ]
    head = ["Scan", "ranges of the others", "with its own", "worst structure", "worst below 1 ml"]
    return Table(head, rows, stack=True)


def _structure(structure: dict[str, Any] | None) -> str:
    return "–" if structure is None else f"{structure['name']} {structure['dice']:.3f}"


def _guard(guard: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the layers that the guard takes in two halves or kept in float cost, in milliseconds a window, and gain in agreement; None if it was not timed."""
    times = guard.get("milliseconds")
    if not times:
        return None
    return {
        "layers": counted(len(guard["returned"]) + len(guard.get("halves", {})), "layer"),
        # Packages of earlier versions have the times alone.
        "cost": guard.get("cost_ms", max(0.0, times[-1] - times[0])),
        "total": times[-1],
        "before": guard["agreement_before"],
        "after": guard["agreement"],
    }
