"""One JSON result (``Resources/report.schema.json``) and one self-contained HTML page from it."""

from __future__ import annotations

import base64
import html
import time
from typing import Any

from . import __version__
from .evaluation import StructureAgreement, mean_dice
from .model import FP32, INT8, ModelPackage
from .system import machine

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { margin-top: 2rem; font-size: 1.2rem; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } .muted { opacity: .7; } img { max-width: 100%; border-radius: 6px; }
.good { color: var(--good); } .bad { color: var(--bad); } summary { cursor: pointer; } .wide { overflow-x: auto; }
"""


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


def agreement_json(scan: str, first: str, second: str, rows: list[StructureAgreement]) -> dict[str, Any]:
    """One comparison, such as of "int8" with "fp32" or of "int8" with "labels"."""
    return {
        "scan": scan,
        "first": first,
        "second": second,
        "mean_dice": mean_dice(rows),
        "structures": [row.to_json() for row in rows],
    }


def picture_json(title: str, png: bytes) -> dict[str, str]:
    return {"title": title, "png": base64.b64encode(png).decode()}


def report_html(report: dict[str, Any]) -> str:
    """The report as one page that needs nothing else."""
    model = report["model"]
    title = model["title"] or model["name"]
    parts = [
        f"<h1>{_text(title)}</h1><p class=muted>{_text(model['name'])} {_text(model['version'])}, {_text(model['modality'])}; "
        f"MedQuantINT8 {_text(report['medquant_version'])}, {_text(report['created'])}</p>",
        _summary(report),
        _pictures(report["pictures"]),
        _runs(report["runs"]),
        _agreements(report["agreement"]),
        _engines(report["runs"]),
        _quantization(report),
        _machine(report),
        _model(model),
    ]
    return f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{_text(title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: float | None, digits: int = 3, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _mb(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.2f} MB"


def _table(head: list[str], rows: list[list[str]], numeric_from: int = 1) -> str:
    def cell(tag: str, index: int, value: str) -> str:
        return f"<{tag}{' class=n' if index >= numeric_from else ''}>{value}</{tag}>"

    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{''.join(cell('th', i, h) for i, h in enumerate(head))}</tr>{body}</table></div>"


def _by_precision(report: dict[str, Any], key: Any) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in report["runs"]:
        if (value := key(run)) is not None:
            found.setdefault(run["precision"], []).append(value)
    return {precision: sum(values) / len(values) for precision, values in found.items()}


def _summary(report: dict[str, Any]) -> str:
    sizes = report["sizes"]
    rows = [
        [
            "Network file",
            _mb(sizes["fp32_bytes"]),
            _mb(sizes.get("int8_bytes")),
            _ratio(sizes["fp32_bytes"], sizes.get("int8_bytes")),
        ]
    ]
    for name, key, unit in (
        ("Engine file", lambda r: r["engine"]["bytes"] / 1e6, " MB"),
        ("Network, one call (median)", lambda r: r["latency_ms"].get("median"), " ms"),
        ("Scan to label map", lambda r: r["seconds"]["total"], " s"),
        ("Peak memory", lambda r: (r.get("peak_memory_bytes") or 0) / 1e6 or None, " MB"),
    ):
        values = _by_precision(report, key)
        fp32, int8 = values.get("fp32"), values.get("int8")
        rows.append([name, _number(fp32, 2, unit), _number(int8, 2, unit), _ratio(fp32, int8)])
    means = [a["mean_dice"] for a in report["agreement"] if a["second"] == "fp32" and a["mean_dice"] is not None]
    text = f"<p>Agreement of INT8 with FP32 (mean Dice): <b>{_number(sum(means) / len(means), 4)}</b></p>" if means else ""
    return "<h2>Gained and lost</h2>" + _table(["", "FP32", "INT8", "FP32 / INT8"], rows) + text


def _ratio(first: float | None, second: float | None) -> str:
    return f"{first / second:.2f} x" if first and second else "–"


def _pictures(pictures: list[dict[str, str]]) -> str:
    return "".join(
        f"<figure><img alt='{_text(p['title'])}' src='data:image/png;base64,{p['png']}'><figcaption class=muted>{_text(p['title'])}</figcaption></figure>"
        for p in pictures
    )


def _runs(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    stages = sorted({stage for run in runs for stage in run["seconds"]} - {"total"})
    rows = [
        [
            _text(r["scan"]),
            r["precision"],
            _text(r["engine"]["name"]),
            *(_number(r["seconds"].get(s), 2) for s in stages),
            _number(r["seconds"]["total"], 2),
            _number(r["latency_ms"].get("median"), 1),
            _number(r["latency_ms"].get("p95"), 1),
        ]
        for r in runs
    ]
    notes = sorted({note for run in runs for note in run["notes"]})
    return (
        "<h2>Time by stage, seconds</h2>"
        + _table(["Scan", "Precision", "Engine", *(_text(s) for s in stages), "total", "call median ms", "call p95 ms"], rows, 3)
        + "".join(f"<p class=muted>{_text(note)}.</p>" for note in notes)
    )


def _agreements(agreements: list[dict[str, Any]]) -> str:
    parts = []
    for item in agreements:
        rows = [
            [_text(s["name"]), _number(s["dice"], 4), _number(s["ml"], 2), _number(s["other_ml"], 2)] for s in item["structures"]
        ]
        parts.append(
            f"<details open><summary>{_text(item['scan'])}: {_text(item['first'])} against {_text(item['second'])}, mean Dice {_number(item['mean_dice'], 4)}</summary>"
            + _table(["Structure", "Dice", f"{_text(item['first'])}, ml", f"{_text(item['second'])}, ml"], rows)
            + "</details>"
        )
    return "<h2>Agreement by structure</h2>" + "".join(parts) if parts else ""


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
            f"<p><b>{_text(engine['title'])}</b>, {run['precision']}: <span class='{good}'>{_text(description['verdict'])}</span>, "
            f"{100 * description['int8_mac_share']:.1f} % of multiply-accumulates in INT8.</p>"
        )
        if fidelity := engine.get("fidelity"):
            text += (
                f"<p>Real INT8 against the simulation in ONNX Runtime on {fidelity['patches']} patch(es): relative error {fidelity['relative_error']:.4f}, "
                f"{100 * fidelity['label_disagreement']:.3f} % of voxels with another label (simulation against FP32: {fidelity['simulated_relative_error']:.4f}, "
                f"{100 * fidelity['simulated_label_disagreement']:.3f} %).</p>"
            )
        if engine.get("note"):
            text += f"<p class=bad>{_text(engine['note'])}.</p>"
        rows = [
            [
                _text(layer["name"]),
                _text(layer["kind"]),
                _text(layer["precision"]),
                _text(layer["kernel"]),
                f"{100 * layer['macs'] / total:.2f} %",
            ]
            for layer in layers
        ]
        parts.append(
            text
            + "<details><summary>Layers as the engine runs them</summary>"
            + _table(["Layer", "Kind", "Computes in", "Kernel", "Work"], rows, 4)
            + "</details>"
        )
    return "<h2>What really ran in INT8</h2>" + "".join(parts) if parts else ""


def _quantization(report: dict[str, Any]) -> str:
    quantization = report.get("quantization")
    if not quantization:
        return ""
    calibration = report["calibration"]
    kept = [layer for layer in quantization["layers"] if not layer["quantized"]]
    rows = [[_text(layer["name"]), _text(layer["op"]), _text(layer["reason"])] for layer in kept]
    warnings = "".join(f"<p class=bad>{_text(warning)}</p>" for warning in calibration.get("warnings", []))
    guard = quantization["guard"]
    cost = guard.get("milliseconds") or []
    speed = (
        f"<p>The {len(guard['returned'])} layer(s) that the guard put back cost {cost[-1] - cost[0]:.1f} ms of {cost[-1]:.1f} ms a patch "
        f"(agreement {guard['agreement_before']:.4f} before, {guard['agreement']:.4f} after).</p>"
        if cost
        else ""
    )
    return (
        f"<h2>Quantization</h2><p>Method {_text(calibration.get('method'))}, {calibration.get('patches_used')} patches from {len(calibration.get('volumes', {}))} volume(s). "
        f"Agreement of simulated INT8 with FP32 on calibration patches: {guard['agreement']:.4f}.</p>{speed}{warnings}"
        + (
            _table(["Kept in high precision", "Operator", "Why"], rows, 9)
            if rows
            else "<p>Every convolution and matrix product is quantized.</p>"
        )
    )


def _machine(report: dict[str, Any]) -> str:
    described = report["machine"]
    versions = report["calibration"].get("versions", {})
    engines = {run["engine"]["name"]: run["engine"]["description"]["version"] for run in report["runs"]}
    text = ", ".join(f"{_text(k)} {_text(v)}" for k, v in {**versions, **engines}.items())
    return f"<h2>Machine and versions</h2><p>{_text(described['processor'])}, {described['cores']} cores, {_text(', '.join(described['features']))}; {_text(described['system'])}; Python {_text(described['python'])}.<br>{text}</p>"


def _model(model: dict[str, Any]) -> str:
    return f"<h2>The model</h2><p>Licence: {_text(model['license'])}.<br>Cite: {_text(model['citation'] or '–')}<br>{_text(model['source_url'])}</p>"
