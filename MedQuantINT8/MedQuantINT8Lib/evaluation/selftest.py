"""``medquant selftest``: does an engine keep its promise on this machine?

Known networks are built in every precision that the engine has. Each result is compared with ONNX Runtime (INT8 with the
same network simulated), times and sizes are measured in turn, and a row passes only if the numbers agree and the engine's own
report says INT8. The report holds nothing that names the user or the machine's name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines import BuildOptions, EngineBackend, choose_backend
from ..engines.base import needs_gpu, precisions_of
from ..engines.fidelity import Distance, labels_of
from ..engines.onnxruntime import OnnxRuntimeBackend
from ..engines.preparation import prepare
from ..errors import InputError, MedQuantError
from ..files import write_json, write_text
from ..importers.networks import STUDY
from ..inference.structure_dice import PooledDice, WorstStructures, network_voxel_ml
from ..models.installed import DEMO, installed_models
from ..models.package import ModelPackage
from ..models.spec import ModelSpec
from ..progress import Task
from ..system import machine
from .reports.pages import require_templates
from .reports.selftest_page import selftest_page
from .study_tables import in_turn, scan_patch, study_package

#: How far FP32 and FP16 results may be from ONNX Runtime's FP32: relative error of the output.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}
_ROUNDS = 10
#: What is written into the folder.
FILES = ("selftest.json", "selftest.html")


def run_selftest(engine: str, names: Sequence[str], folder: Path, task: Task) -> dict[str, Any]:
    """Test networks by name ("demo", "all", or those of ``medquant networks``); writes the report into ``folder``.

    Raises:
        InputError: a network that is not known.
        EngineError: the engine cannot run here.
        DependencyError: Jinja2 is not installed.
    """
    require_templates()
    chosen = [n for name in names for n in (STUDY if name == "all" else [name])]
    if unknown := [name for name in chosen if name != DEMO and name not in STUDY]:
        raise InputError(f"There is no network {unknown[0]!r}.", f"Choose among demo, all, {', '.join(STUDY)}.")
    backend = choose_backend(engine, "int8")
    rows: list[dict[str, Any]] = []
    with task.stage("networks", len(chosen)):
        for name in chosen:
            try:
                rows += _network(name, backend, task)
            except MedQuantError as error:
                if task.cancelled:
                    raise
                rows.append({"network": name, "precision": "–", "passed": False, "reason": str(error)})
            task.step()
    value = {
        "engine": backend.name,
        "version": backend.version(),
        "device": backend.device_name("gpu" if needs_gpu(backend) else "cpu"),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
        "passed": all(row["passed"] for row in rows),
    }
    write_json(folder / "selftest.json", value)
    write_text(folder / "selftest.html", selftest_page(value))
    return value


def _network(name: str, backend: EngineBackend, task: Task) -> list[dict[str, Any]]:
    with TemporaryDirectory(prefix="medquant-selftest-") as scratch:
        if name == DEMO:
            with ModelPackage.load(installed_models()[DEMO][0]) as package:
                return _package(name, package, backend, task)
        package, _ = study_package(STUDY[name], Path(scratch), task)
        return _package(name, package, backend, task)


def _package(name: str, package: ModelPackage, backend: EngineBackend, task: Task) -> list[dict[str, Any]]:
    patch = package.spec.window.patch_size
    batch = scan_patch(package.spec, patch)
    with TemporaryDirectory(prefix="medquant-reference-") as scratch:
        reference = OnnxRuntimeBackend()
        exact = BuildOptions("fp32", patch)
        reference.build(package.onnx_path("fp32"), Path(scratch), exact)
        expected = np.array(reference.load(Path(scratch), exact).infer(batch))
    prepared, rows = {}, []
    for precision in precisions_of(backend):
        options = replace(exact, precision=precision)  # type: ignore[arg-type]
        try:
            prepared[precision] = prepare(package, backend, options, [batch[0]], task)
        except MedQuantError as error:
            if task.cancelled:
                raise
            rows.append({"network": name, "precision": precision, "passed": False, "reason": str(error)})
    with task.stage(f"{name}: timing"):
        times = in_turn({p: item.engine for p, item in prepared.items()}, batch, _ROUNDS)
    labels = labels_of(package.spec.output)
    for precision, item in prepared.items():
        distance = Distance(labels)
        output = np.array(item.engine.infer(batch))
        distance.add(output, expected)
        described = item.describe()
        row: dict[str, Any] = {
            "network": name,
            "precision": precision,
            "median_ms": float(np.median(times[precision])),
            "p95_ms": float(np.percentile(times[precision], 95)),
            "engine_mb": item.entry.bytes / 1e6,
            "int8_share": described.int8_mac_share,
            "verdict": described.verdict,
            "relative_error": distance.relative_error,
            "other_labels": distance.label_disagreement,
            **_worst_structures(package.spec, labels(output), labels(expected)).to_json(),
            "fidelity": item.fidelity.to_json() if item.fidelity else None,
            "fallback_layers": list(item.fallback),
        }
        row["reason"] = _fault(precision, row)
        row["passed"] = not row["reason"]
        rows.append(row)
        item.close()
    return rows


def _worst_structures(spec: ModelSpec, ours: Any, theirs: Any) -> WorstStructures:
    """Return the structures that agree least with FP32 in one patch, as labels or masks of it."""
    names = {label.channel: label.name for label in spec.labels}
    pooled = PooledDice(spec.output.activation == "softmax", names, network_voxel_ml(spec))
    pooled.add(ours, theirs)
    return WorstStructures.of((item.name, item.dice, item.ml) for item in pooled.structures)


def _fault(precision: str, row: dict[str, Any]) -> str:
    """Return why a row fails, or an empty string."""
    if precision != "int8":
        limit = TOLERANCE[precision]
        return (
            f"differs from ONNX Runtime by {row['relative_error']:.2g} (relative)"
            if row["relative_error"] > limit
            else ""
        )
    if row["verdict"] != "INT8":
        return f"only {100 * row['int8_share']:.0f} % of the work runs in INT8: {row['verdict']}"
    if row["fidelity"] is None or not row["fidelity"]["trusted"]:
        return "was not found to compute what the simulation computes"
    return f"{len(row['fallback_layers'])} layer(s) had to leave INT8" if row["fallback_layers"] else ""


def lines_of(value: dict[str, Any]) -> list[str]:
    """For a terminal."""
    lines = [f"{value['engine']} {value['version']} on {value['device']}"]
    for row in value["rows"]:
        figures = (
            f"{row['median_ms']:9.2f} ms  {row['engine_mb']:8.1f} MB  {100 * row['int8_share']:5.1f} % INT8"
            if "median_ms" in row
            else ""
        )
        worst = row.get("worst") or row.get("worst_small")
        figures += f"  worst structure {worst['name']} {worst['dice']:.3f}" if worst else ""
        lines.append(
            f"  {'PASS' if row['passed'] else 'FAIL'}  {row['network']:10} {row['precision']:5} {figures}  {row['reason']}".rstrip()
        )
    return lines
