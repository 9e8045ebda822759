"""What benchmarks/several_gpus.py runs, and on what: scans, packages of random weights, a task of these, their engines, and the link between GPUs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Along (K, J, I).
SPACING, TARGET = (1.0, 0.8, 0.8), 1.5
PARTS = 4


@dataclass
class Setup:
    """What is run, and on what."""

    folder: Path
    engine: str
    gpus: list[str]
    shape: tuple[int, int, int]
    patch: int
    rounds: int
    cases: int
    until: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def together(self) -> str:
        return "cpu" if self.gpus == ["cpu"] else "gpu:" + ",".join(name.partition(":")[2] for name in self.gpus)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()


def scan(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A made-up scan (K, J, I): blocks of like voxels in noise, so that label maps are packed as those of organs are."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-160, 400, [-(-side // 32) for side in shape]).astype(np.int16)
    coarse = np.kron(blocks, np.ones((32, 32, 32), np.int16))[tuple(slice(side) for side in shape)]
    return coarse + rng.integers(-20, 20, (1, *shape[1:])).astype(np.int16)


def package(
    setup: Setup, network: Path, name: str, seed: int, spacing: float | None = TARGET, mirrored: bool = False
) -> Path:
    """Write a model package of an INT8 network with random weights.

    Args:
        spacing: in mm; without one scans are not resampled.
        mirrored: whether each window is run in eight mirrored forms, as nnU-Net does unless it is told not to.
    """
    import onnx

    from cuda_int8 import int8_weights
    from MedQuantINT8Lib.models.package import FP32, INT8, write_package
    from MedQuantINT8Lib.models.spec import (
        Channel,
        Geometry,
        Label,
        Mirroring,
        ModelSpec,
        Normalization,
        Output,
        Window,
    )

    model, rng = onnx.load(network), np.random.default_rng(seed)
    for tensor in int8_weights(model):
        tensor.raw_data = rng.integers(-127, 128, tuple(tensor.dims)).astype(np.int8).tobytes()
    path = setup.folder / f"{name}.onnx"
    onnx.save(model, path)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    spec = ModelSpec(
        name=name,
        version="1",
        modality="CT",
        channels=(Channel("CT"),),
        license="Apache-2.0",
        geometry=Geometry("KJI", "LPS", None if spacing is None else (spacing,) * 3),
        normalization=(Normalization("window", low=-160.0, high=400.0),),
        labels=tuple(Label(n, f"s{n}", n) for n in range(1, classes)),
        output=Output(),
        window=Window((setup.patch,) * 3, overlap=0.5),
        mirroring=Mirroring((0, 1, 2), on=True) if mirrored else Mirroring(),
    )
    # A package holds an FP32 network; nothing here runs it.
    target = setup.folder / (name + " mirrored" * mirrored + " not resampled" * (spacing is None))
    write_package(target, spec, {FP32: path, INT8: path})
    return target


def task_of(setup: Setup, packages: list[Path]) -> Path:
    """Write a task whose parts are these packages; each structure is one of the task's own."""
    from MedQuantINT8Lib.models.package import ModelPackage
    from MedQuantINT8Lib.models.task_writing import write_task
    from task_packages import task_spec

    names: list[Any] = []
    parts: list[dict[str, Any]] = []
    for path in packages:
        with ModelPackage.load(path) as one:
            own = [{"value": label.value, "name": f"{path.name} {label.name}"} for label in one.spec.labels]
        names += [label["name"] for label in own]
        parts.append({"name": path.name, "packages": [f"packages/{path.name}"], "labels": own})
    spec = task_spec(names, parts, modality="CT", channels=[{"name": "CT"}])
    write_task(setup.folder / "task", spec, {f"packages/{path.name}": path for path in packages})
    return setup.folder / "task"


def build(setup: Setup, paths: list[Path]) -> float:
    """Build the engines; seconds."""
    from MedQuantINT8Lib.engines import cache
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.pipeline import build as build_engine
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.models.package import ModelPackage
    from MedQuantINT8Lib.progress import Task

    began = time.perf_counter()
    for path in paths:
        with ModelPackage.load(path) as one:
            choice = EngineChoice(setup.engine, "int8", device=setup.gpus[0])
            build_engine(one, choice, SegmentationOptions(), None, Task()).close()
    nothing = dict.fromkeys(
        ("relative_error", "label_disagreement", "simulated_relative_error", "simulated_label_disagreement"), 0.0
    )
    for entry in cache.entries():
        entry.update(
            fidelity={"patches": 0, **nothing, "real_relative_error": 0.0, "real_label_disagreement": 0.0},
            note="not compared with the simulation in this benchmark: weights are random",
        )
    return time.perf_counter() - began


def link(setup: Setup) -> dict[str, Any]:
    """Which GPUs there are, and whether they copy from each other without a detour."""
    from MedQuantINT8Lib.engines.cuda import device as cuda
    from MedQuantINT8Lib.engines.cuda.several import connect, copy_between

    indices = [int(name.partition(":")[2]) for name in setup.gpus]
    infos = [info for info in cuda.gpus() if info.index in indices]
    found: dict[str, Any] = {"gpus": [info.title for info in infos], "bytes": [info.total_bytes for info in infos]}
    if len(infos) < 2:
        return found
    one, other = cuda.Gpu(indices[0]), cuda.Gpu(indices[1])
    connect([one, other])
    access = cuda.checked(one.driver.cuDeviceCanAccessPeer(one.device, other.device), "look for a link")
    other.enter()
    there, stream = other.allocate((1 << 28,), np.uint8), other.stream()
    one.enter()
    here, times = one.allocate((1 << 28,), np.uint8), []
    other.enter()
    for _ in range(4):
        began = time.perf_counter()
        copy_between(here, there, stream)
        stream.synchronize()
        times.append(time.perf_counter() - began)
    stream.free()
    one.close()
    other.close()
    return {**found, "peer_access": bool(access), "gb_a_second": (1 << 28) / min(times) / 1e9}
