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
from ...models.package import FP32, INT8, ModelPackage
from ...system import machine, peak_memory
from ..agreement import StructureAgreement, mean_dice
from .pages import counted, document, escaped, table
from .summary import by_precision, gained, lost, number, structures

#: What a report is written as.
REPORT_FILES = ("report.json", "report.html")


def run_json(scan: str, run: SegmentationRun) -> dict[str, Any]:
    """A run as the report and ``medquant segment --json`` show it; its peak of memory is that of this process."""
    return {
        "scan": Path(scan).name,
        "precision": run.engine["precision"],
        "seconds": run.seconds,
        "latency_ms": run.latency_ms,
        "windows": run.result.windows,
        "skipped_share": run.result.skipped_share,
        "notes": run.result.notes,
        "ranges": run.ranges,
        "engine": run.engine,
        "peak_memory_bytes": peak_memory(),
    }


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write report.json and report.html into ``folder``."""
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", report_html(report))


def report_json(
    package: ModelPackage, runs: list[dict[str, Any]], agreements: list[dict[str, Any]], pictures: list[dict[str, str]]
) -> dict[str, Any]:
    """The report of a package's runs.

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
        "left_out": list(left_out),
        "structures": [row.to_json() for row in rows],
    }


def picture_json(title: str, png: bytes) -> dict[str, str]:
    return {"title": title, "png": base64.b64encode(png).decode()}


def report_html(report: dict[str, Any]) -> str:
    """The report as one page that needs nothing else: gains, losses with pictures, structures; then the details, folded."""
    model = report["model"]
    title = model["title"] or model["name"]
    scans = list(dict.fromkeys(run["scan"] for run in report["runs"]))
    on = f" on {escaped(scans[0])}" if len(scans) == 1 else f" on {counted(len(scans), 'scan')}" if scans else ""
    parts = [
        f"<h1>{escaped(title)}</h1><p class=muted>INT8 beside FP32{on}; {escaped(report['created'].replace('T', ' '))}</p>",
        gained(report),
        lost(report),
        _pictures(report["pictures"]),
        structures(report["agreement"]),
        _runs(report["runs"]),
        _engines(report["runs"]),
        _quantization(report),
        _machine(report),
        _model(model),
    ]
    return document(title, "".join(parts))


def _pictures(pictures: list[dict[str, str]]) -> str:
    return "".join(
        f"<figure><img alt='{escaped(p['title'])}' src='data:image/png;base64,{p['png']}'><figcaption class=muted>{escaped(p['title'])}</figcaption></figure>"
        for p in pictures
    )


def _ratio(first: float | None, second: float | None) -> str:
    return f"{first / second:.2f}" if first and second else "–"


def _runs(runs: list[dict[str, Any]]) -> str:
    """Where the time went, the mean over the scans: one row a stage, so that the table stays narrow."""
    if not runs:
        return ""
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
            rows.append([escaped(name), *(number(values.get(p), digits) for p in precisions), *last])
    head = ["Seconds", *(p.upper() for p in precisions), *(["FP32 / INT8"] if len(precisions) == 2 else [])]
    notes = sorted({note for run in runs for note in run["notes"]})
    looked = [run for run in runs if run.get("ranges")]
    ranges = [
        [
            escaped(r["scan"]),
            _percent(r["ranges"]["input"]),
            str(r["ranges"]["windows"]),
            _percent(r["ranges"]["mean"]),
            *_worst(r["ranges"]),
        ]
        for r in looked
    ]
    beyond = (
        "<details><summary>Values beyond the calibrated ranges</summary>"
        + table(
            ["Scan", "of the input", "windows looked at", "of all tensors", "of the worst", "which is"],
            ranges,
            stack=True,
        )
        + "</details>"
        if looked
        else ""
    )
    return (
        "<h2>Time by stage</h2>"
        + table(head, rows)
        + "".join(f"<p class=muted>{escaped(note)}.</p>" for note in notes)
        + beyond
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3f} %"


def _worst(ranges: dict[str, Any]) -> list[str]:
    worst = ranges["worst"][:1]
    return [_percent(worst[0]["share"]), escaped(worst[0]["tensor"])] if worst else ["–", "–"]


def _engines(runs: list[dict[str, Any]]) -> str:
    parts, seen = [], set()
    for run in runs:
        engine = run["engine"]
        if (engine["name"], run["precision"]) in seen:
            continue
        seen.add((engine["name"], run["precision"]))
        description = engine["description"]
        layers = [layer for layer in description["layers"] if layer["macs"]]
        total = sum(layer["macs"] for layer in layers) or 1
        good = "good" if description["verdict"] == "INT8" else "bad" if run["precision"] == "int8" else ""
        text = (
            f"<p><b>{escaped(engine['title'])}</b>, {run['precision']}: <span class='{good}'>{escaped(description['verdict'])}</span>, "
            f"{100 * description['int8_mac_share']:.1f} % of multiply-accumulates in INT8.</p>"
        )
        if fidelity := engine.get("fidelity"):
            text += (
                f"<p>Real INT8 against the simulation in ONNX Runtime on {counted(fidelity['patches'], 'patch', 'patches')}: relative error {fidelity['relative_error']:.4f}, "
                f"{100 * fidelity['label_disagreement']:.3f} % of voxels with another label (simulation against FP32: {fidelity['simulated_relative_error']:.4f}, "
                f"{100 * fidelity['simulated_label_disagreement']:.3f} %).</p>"
            )
        if engine.get("note"):
            text += f"<p class=bad>{escaped(engine['note'])}.</p>"
        rows = [
            [
                escaped(layer["name"]),
                escaped(layer["kind"]),
                escaped(layer["precision"]),
                escaped(layer["kernel"]),
                f"{100 * layer['macs'] / total:.2f} %",
            ]
            for layer in layers
        ]
        parts.append(
            text
            + "<details><summary>Layers as the engine runs them</summary>"
            + table(["Layer", "Kind", "Computes in", "Kernel", "Work"], rows, 4, stack=True)
            + "</details>"
        )
    return "<h2>What really ran in INT8</h2>" + "".join(parts) if parts else ""


def _quantization(report: dict[str, Any]) -> str:
    quantization = report.get("quantization")
    if not quantization:
        return ""
    calibration = report["calibration"]
    kept = [layer for layer in quantization["layers"] if not layer["quantized"]]
    rows = [[escaped(layer["name"]), escaped(layer["op"]), escaped(layer["reason"])] for layer in kept]
    warnings = "".join(f"<p class=bad>{escaped(warning)}</p>" for warning in calibration.get("warnings", []))
    guard = quantization["guard"]
    times = guard.get("milliseconds") or []
    # Packages of earlier versions have the times alone.
    cost = guard.get("cost_ms", max(0.0, times[-1] - times[0]) if times else None)
    speed = (
        f"<p>{counted(len(guard['returned']), 'layer')} kept in float by the guard cost {cost:.1f} ms of {times[-1]:.1f} ms a window "
        f"(agreement {number(guard['agreement_before'], 4)} before, {number(guard['agreement'], 4)} after).</p>"
        if times
        else ""
    )
    return (
        f"<h2>Quantization</h2><p>Method {escaped(calibration.get('method'))}, {counted(calibration.get('patches_used') or 0, 'patch', 'patches')} from {counted(len(calibration.get('volumes', {})), 'volume')}. "
        f"Agreement of simulated INT8 with FP32 on calibration patches: {number(guard['agreement'], 4) if guard['agreement'] is not None else 'unknown, FP32 found nothing in them'}.</p>{speed}{warnings}"
        + (
            table(["Kept in high precision", "Operator", "Why"], rows, 9, stack=True)
            if rows
            else "<p>Every convolution and matrix product is quantized.</p>"
        )
    )


def _machine(report: dict[str, Any]) -> str:
    described = report["machine"]
    versions = report["calibration"].get("versions", {})
    engines = {run["engine"]["name"]: run["engine"]["description"]["version"] for run in report["runs"]}
    text = ", ".join(f"{escaped(k)} {escaped(v)}" for k, v in {**versions, **engines}.items())
    return f"<h2>Machine and versions</h2><p>MedQuantINT8 {escaped(report['medquant_version'])} on {escaped(described['processor'])}, {described['cores']} cores, {escaped(', '.join(described['features']))}; {escaped(described['system'])}; Python {escaped(described['python'])}.<br>{text}</p>"


def _model(model: dict[str, Any]) -> str:
    return f"<h2>The model</h2><p>{escaped(model['name'])} {escaped(model['version'])}, {escaped(model['modality'])}.<br>License: {escaped(model['license'])}.<br>Cite: {escaped(model['citation'] or '–')}<br>{escaped(model['source_url'])}</p>"
