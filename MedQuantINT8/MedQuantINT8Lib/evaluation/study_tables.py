"""The study's tables, made anew on this machine: ``medquant reproduce``.

Table "networks": each of the seven networks at the study's size with random weights, exported, quantized on synthetic scans,
built and run in real INT8 on one patch of 96^3, beside the same engine in FP32. Random weights leave sizes, times and
the share of INT8 as they are; the last layer is fitted to a synthetic scan, so that labels can be compared. They say nothing
of the accuracy of trained networks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines import BuildOptions, choose_backend
from ..engines.base import Engine, float_precision_of
from ..engines.preparation import prepare
from ..files import read_json, write_json, write_text
from ..imaging.phantom import make_phantom
from ..imaging.preprocessing import preprocess
from ..imaging.volume import Volume
from ..importers.export import export_network
from ..importers.networks import PATCH, STUDY, StudyNetwork, make, study_network
from ..importers.onnx import draft_for, import_onnx
from ..models.package import ModelPackage
from ..models.spec import Geometry, ModelSpec, Normalization
from ..progress import Task
from ..quantization.calibration import CalibrationOptions, PatchSampler
from ..system import machine
from .agreement import dice

_CALIBRATION_SEEDS, _SCAN_SEED, _FITTING_SEED = (1, 3), 2, 4
_SCAN_SIZE, _SCAN_SPACING = (240, 220, 210), 2.2
_ROUNDS = 5
#: Larger patches that the table "sizes" tries, as multiples of each network's own.
_LARGER = ((96, 96, 96), (128, 128, 128), (160, 160, 160))


def study_spec(network: StudyNetwork) -> ModelSpec:
    """Return a description that serves synthetic CT scans: the study's windows, structures without names."""
    return replace(
        draft_for(network.name, 1, network.classes, PATCH),
        modality="CT",
        geometry=Geometry("KJI", "RAS", spacing=(2.5, 2.5, 2.5)),
        normalization=(Normalization("window", low=-160, high=400),),
        license="Apache-2.0 (random weights)",
    )


def study_package(
    network: StudyNetwork, folder: Path, task: Task, *, dynamic: bool = False
) -> tuple[ModelPackage, dict[str, Any]]:
    """Export a network with random weights and quantize it on synthetic scans."""
    # torch and ModelOpt are looked at before the first minute of work.
    from ..importers.networks.fitting import fit_last_layer
    from ..quantization.accuracy_guard import Budget
    from ..quantization.quantize import QuantizationPolicy, quantize_package

    path = folder / f"{network.name}.onnx"
    with task.stage(f"{network.title}: exporting"):
        module = make(network)
        fit_last_layer(module, *_labelled_patch(study_spec(network)), network.classes)
        report = export_network(module, path, PATCH, dynamic_spatial=dynamic)
        del module
    package = import_onnx(path, study_spec(network), folder / network.name)
    options = CalibrationOptions(patches=2)
    scans = [partial(_scan, seed) for seed in _CALIBRATION_SEEDS]
    sampler = PatchSampler(scans, package.spec, PATCH, options, task=task)
    began = time.perf_counter()
    # Nothing is put back, the loss is only measured: the table shows what INT8 does to the whole network.
    policy = QuantizationPolicy(budget=Budget(fallback=False))
    package, quantized = quantize_package(package, sampler, folder / f"{network.name}.int8", options, policy, task)
    path.unlink()
    return package, {
        "fp32_mb": quantized.fp32_bytes / 1e6,
        "int8_mb": quantized.int8_bytes / 1e6,
        "parity": report.parity,
        "unexplained_warnings": report.unexplained,
        "quantize_seconds": time.perf_counter() - began,
        "int8_share_of_graph": quantized.int8_mac_share,
        "in_float": {layer.op: layer.reason for layer in quantized.layers if not layer.quantized},
    }


def _scan(seed: int) -> Volume:
    return make_phantom(seed)[0]


def _labelled_patch(spec: ModelSpec) -> tuple[Any, Any]:
    """Return the middle of a synthetic scan in network space, (1, *PATCH), and its labels."""
    volume, truth = make_phantom(_FITTING_SEED, _SCAN_SIZE, _SCAN_SPACING)
    network_input = preprocess(volume, spec)
    labels = network_input.labels_in_network_space(truth.astype(np.int32))
    return _middle(network_input.data, PATCH), _middle(labels[None], PATCH)[0]


def scan_patch(spec: ModelSpec, patch: tuple[int, int, int] = PATCH) -> Any:
    """Return a patch (1, 1, *patch) from the middle of a synthetic scan that was not used for calibration."""
    return _middle(preprocess(make_phantom(_SCAN_SEED, _SCAN_SIZE, _SCAN_SPACING)[0], spec).data, patch)[None]


def _middle(data: Any, patch: tuple[int, int, int]) -> Any:
    missing = [max(0, p - n) for p, n in zip(patch, data.shape[1:], strict=True)]
    data = np.pad(data, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    starts = [(n - p) // 2 for n, p in zip(data.shape[1:], patch, strict=True)]
    return np.ascontiguousarray(data[(slice(None), *(slice(s, s + p) for s, p in zip(starts, patch, strict=True)))])


def in_turn(engines: dict[str, Engine], batch: Any, rounds: int = _ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of each call, the engines in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.infer(batch)
            if number:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def network_row(network: StudyNetwork, engine: str, task: Task) -> dict[str, Any]:
    """One row of the table "networks"."""
    backend = choose_backend(engine, "int8")
    with TemporaryDirectory(prefix="medquant-reproduce-") as scratch:
        package, row = study_package(network, Path(scratch), task)
        batch = scan_patch(package.spec)
        int8 = prepare(package, backend, BuildOptions("int8", PATCH), [batch[0]], task)
        fp32 = prepare(package, backend, BuildOptions(float_precision_of(backend), PATCH), (), task)
        with task.stage(f"{network.title}: timing"):
            times = in_turn({"fp32": fp32.engine, "int8": int8.engine}, batch)
        description = int8.describe()
        agreement = _agreement(fp32.engine, int8.engine, batch)
        row |= {
            "network": network.name,
            "title": network.title,
            "study_mb": network.engine_mb,
            "note": network.note,
            "engine": backend.name,
            "engine_version": backend.version(),
            "fp32_ms": float(np.median(times["fp32"])),
            "int8_ms": float(np.median(times["int8"])),
            "int8_p95_ms": float(np.percentile(times["int8"], 95)),
            "ratio": float(np.median(np.array(times["fp32"]) / np.array(times["int8"]))),
            "int8_share": description.int8_mac_share,
            "verdict": description.verdict,
            "agreement": agreement,
            "fidelity": int8.fidelity.to_json() if int8.fidelity else None,
            "fallback_layers": list(int8.fallback),
            "engine_note": int8.note,
        }
        int8.close()
        fp32.close()
    return row


def _agreement(fp32: Engine, int8: Engine, batch: Any) -> float | None:
    """Mean Dice over the structures of a patch, real INT8 against FP32; None where FP32 finds none."""
    expected = np.array(fp32.infer(batch))[0].argmax(0)
    labels = np.asarray(int8.infer(batch))[0].argmax(0)
    values = [dice(labels == c, expected == c) for c in np.unique(expected) if c and (expected == c).sum() >= 100]
    found_any = [v for v in values if v is not None]
    return float(np.mean(found_any)) if found_any else None


def size_row(network: StudyNetwork, engine: str, task: Task) -> dict[str, Any]:
    """One row of the table "sizes": does the graph take other sizes, and what do larger patches do to speed?

    Agreement is that of the larger patch's middle with the same voxels at 96^3, both in INT8: how much of what a network
    says depends on how much it sees.
    """
    row: dict[str, Any] = {"network": network.name, "title": network.title, "free_size": network.free_size, "sizes": []}
    if not network.free_size:
        row["reason"] = f"tied to one size by {network.fixed_by}"
        return row
    backend = choose_backend(engine, "int8")
    with TemporaryDirectory(prefix="medquant-reproduce-") as scratch:
        package, _ = study_package(network, Path(scratch), task, dynamic=True)
        first = None
        for patch in _LARGER:
            batch = scan_patch(package.spec, patch)
            prepared = prepare(package, backend, BuildOptions("int8", patch), (), task)
            with task.stage(f"{network.title}: {patch[0]}^3"):
                times = in_turn({"int8": prepared.engine}, batch, 3)["int8"]
                labels = np.asarray(prepared.engine.infer(batch))[0].argmax(0)
            middle = labels[tuple(slice((n - p) // 2, (n - p) // 2 + p) for n, p in zip(patch, PATCH, strict=True))]
            first = middle if first is None else first
            milliseconds = float(np.median(times))
            row["sizes"].append(
                {
                    "patch": list(patch),
                    "int8_ms": milliseconds,
                    "mvoxel_per_s": float(np.prod(patch)) / 1e3 / milliseconds,
                    "same_labels": float((middle == first).mean()),
                }
            )
            prepared.close()
    return row


def reproduce(table: str, names: Sequence[str], engine: str, folder: Path | None, task: Task) -> dict[str, Any]:
    """Make a table; with a folder, add or replace its rows in ``TABLE.json`` and ``TABLE.md`` there after each network."""
    rows: dict[str, Any] = {}
    path = folder / f"{table}.json" if folder else None
    if path is not None and path.exists():
        rows = {row["network"]: row for row in read_json(path)["rows"]}
    value: dict[str, Any] = {}
    chosen = [study_network(name) for name in names or STUDY]
    with task.stage("networks", len(chosen)):
        for network in chosen:
            rows[network.name] = (network_row if table == "networks" else size_row)(network, engine, task)
            ordered = [rows[name] for name in STUDY if name in rows]
            value = {"table": table, "machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": ordered}
            if path is not None and folder is not None:
                write_json(path, value)
                write_text(folder / f"{table}.md", "\n".join([f"# {_TITLES[table]}", "", *page(value)]) + "\n")
            task.step()
    return value


#: Headings of the tables' pages.
_TITLES = {"networks": "The study's seven networks at its size", "sizes": "Larger patches"}


def page(value: dict[str, Any]) -> list[str]:
    """Return a table in Markdown."""
    described = value["machine"]
    lines = [
        f"Made by `medquant reproduce --table {value['table']}`; {described['processor']}, {described['cores']} cores "
        f"({', '.join(described['features'])}); {value['date']}.",
        "",
    ]
    return lines + (_networks_page if value["table"] == "networks" else _sizes_page)(value["rows"])


def _networks_page(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | study's engine MB | FP32 MB | INT8 MB | size | FP32 ms | INT8 ms | FP32 / INT8 | INT8 share | agreement with FP32 (Dice) | real against simulated: error | other labels | export parity |",
        "| --- |" + " ---: |" * 12,
    ]
    for r in rows:
        fidelity = r["fidelity"] or {"relative_error": float("nan"), "label_disagreement": float("nan")}
        lines.append(
            f"| {r['title']} | {r['study_mb']:.2f} | {r['fp32_mb']:.2f} | {r['int8_mb']:.2f} | {r['int8_mb'] / r['fp32_mb']:.3f} | {r['fp32_ms']:.0f} | {r['int8_ms']:.0f} | {r['ratio']:.2f} | {100 * r['int8_share']:.1f} % | {'–' if r['agreement'] is None else format(r['agreement'], '.4f')} | {fidelity['relative_error']:.4f} | {100 * fidelity['label_disagreement']:.3f} % | {r['parity']:.1e} |"
        )
    if rows:
        lines += [
            "",
            f"Median over {len(rows)} networks: {np.median([r['ratio'] for r in rows]):.2f} times faster than FP32 on the same engine.",
        ]
    lines += [
        "",
        "Weights are random: sizes, times and shares are those of trained networks, agreement and labels are not. Scores of many voxels are then nearly equal, and a",
        "label that flips says little; the relative error is what compares the real engine with the simulation here. docs/results/trained.md has both on trained networks.",
    ]
    lines += ["", *(f"- **{r['title']}**: {r['note']}." for r in rows if r["note"])]
    lines += [
        f"- **{r['title']}**, in float: {'; '.join(f'{op}: {why}' for op, why in r['in_float'].items())}."
        for r in rows
        if r["in_float"]
    ]
    return lines


def _sizes_page(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | patch | INT8 ms | million voxels a second | same labels as at 96^3 |",
        "| --- |" + " ---: |" * 4,
    ]
    for r in rows:
        lines += [
            f"| {r['title']} | {' x '.join(map(str, s['patch']))} | {s['int8_ms']:.0f} | {s['mvoxel_per_s']:.2f} | {100 * s['same_labels']:.1f} % |"
            for s in r["sizes"]
        ] or [f"| {r['title']} | 96 x 96 x 96 only | – | – | – |"]
    lines += [
        "",
        "Labels are those of the larger patch's middle against the same voxels at 96^3, both in INT8, with random weights: networks that normalize over the whole patch",
        "(InstanceNorm, GroupNorm) see other statistics, and scores that are nearly equal flip. How much a trained network changes is not told by this.",
    ]
    return [*lines, "", *(f"- **{r['title']}**: {r['reason']}." for r in rows if not r["free_size"])]
