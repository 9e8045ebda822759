"""Packages of one convolution each that find voxels by their brightness, and tasks of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models.package import FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Output, Window
from MedQuantINT8Lib.models.task import TaskSpec, parse_task
from MedQuantINT8Lib.models.task_writing import write_task
from tiny import convolutions, quantized

PATCH = 8


def bands(
    folder: Path, name: str, limits: dict[str, float], spacing: float | None = None, **changes: Any
) -> ModelPackage:
    """A package whose structures are bands of brightness: each begins at its limit and ends at the next.

    Class n wins where n * x - (sum of the first n limits) is the largest of all.
    """
    sums = np.cumsum(list(limits.values()))
    weight = np.arange(1 + len(limits), dtype=float).reshape(-1, 1, 1, 1, 1)
    network = convolutions({"a": weight}, {"a": np.concatenate([[0.0], -sums])}, PATCH)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(network, str(folder / f"{name}.onnx"))
    onnx.save(quantized(network, 0.01), str(folder / f"{name}.int8.onnx"))
    spec = ModelSpec(
        name=name,
        version="1",
        modality="MR",
        channels=(Channel("image"),),
        geometry=Geometry("KJI", "native", None if spacing is None else (spacing, spacing, spacing)),
        window=Window((PATCH,) * 3, overlap=0.0),
        labels=tuple(Label(n, label, n) for n, label in enumerate(limits, 1)),
        output=Output(),
        normalization=(),
        license="made",
    )
    target = folder / name
    write_package(target, replace(spec, **changes), {FP32: folder / f"{name}.onnx", INT8: folder / f"{name}.int8.onnx"})
    return ModelPackage.load(target)


def task_spec(structures: list[str], parts: list[dict[str, Any]], **changes: Any) -> TaskSpec:
    """A task whose structures have the values 1, 2, ..., as task.json would give it."""
    return parse_task(
        {
            "schema": "medquant-task",
            "schema_version": "1.0",
            "name": "together",
            "version": "1",
            "modality": "MR",
            "channels": [{"name": "image"}],
            "structures": [{"value": n, "name": name} for n, name in enumerate(structures, 1)],
            "parts": parts,
            "license": "made",
            **changes,
        }
    )


def three_parts(folder: Path, **changes: Any) -> Path:
    """A task of three parts: "dim" and "bright" see bands of brightness, "brightest" what is above all, at its own spacing."""
    packages = {
        "packages/dim": bands(folder, "dim", {"shadow": 0.2, "grey": 0.4}).folder,
        "packages/bright": bands(folder, "bright", {"light": 0.5, "white": 0.7}).folder,
        "packages/brightest": bands(folder, "brightest", {"glow": 0.8}, spacing=2.0).folder,
    }
    parts = [
        {"name": "dim", "packages": ["packages/dim"]},
        {"name": "bright", "packages": ["packages/bright"]},
        {"name": "brightest", "packages": ["packages/brightest"]},
    ]
    spec = task_spec(["white", "light", "grey", "shadow", "glow"], parts, **changes)
    write_task(folder / "together", spec, packages)
    return folder / "together"


def spotted(size: tuple[int, int, int] = (24, 20, 16), matrix: np.ndarray | None = None, seed: int = 0) -> Volume:
    """A scan of random brightness from 0 to 1, in blocks of two voxels."""
    i, j, k = size
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1, ((k + 1) // 2, (j + 1) // 2, (i + 1) // 2)).astype(np.float32)
    data = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[:k, :j, :i]
    return Volume(data, np.eye(4) if matrix is None else matrix, "spots")
