"""A result folder of nnU-Net v2 to one package a fold.

The network is built by nnU-Net's own ``dynamic-network-architectures`` from plans.json; weights are read as data.
Preprocessing follows nnU-Net: voxels as its reader lays them out, crop to non-zero, normalization, cubic resampling by
outer edges, slice by slice where voxels are anisotropic. 2D configurations run slice by slice, across nnU-Net's first axis. Class scores are blended and resampled as the network gives them.
Test-time mirroring is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..models.spec import Channel, Crop, Geometry, ModelSpec, Normalization, Output, Window
from . import nnunet_network
from .base import ImportedModel
from .fields import read_described
from .nnunet_dataset import Dataset, read_dataset
from .nnunet_folds import Training, choose
from .nnunet_original import TrainedFold, nnunet_original
from .nnunet_plans import Intensity, Plans, configurations, read_network, read_plans


def understand(
    folder: Path,
    *,
    folds: Sequence[int | str] | None = None,
    configuration: str | None = None,
    spec: ModelSpec | None = None,
) -> list[ImportedModel]:
    """Read a result folder: plans.json, dataset.json and fold_N/checkpoint_final.pth; one result a fold.

    Args:
        folds: which, by number or "all"; every numbered one if None.
        configuration: such as "3d_fullres"; by default what the checkpoint was trained for, else what the folder's name says.
        spec: the user's own description: what it replaces need not be understood.

    Raises:
        PackageError: a part that is missing, or a plan that is not understood.
        InputError: a fold that is not there.
    """
    if spec is not None:
        try:
            return understand(folder, folds=folds, configuration=configuration)
        except PackageError as error:
            return _networks(folder, folds, configuration, spec, error)
    folder = _result_folder(folder, configuration)
    plans = read_described(folder / "plans.json", "result folder of nnU-Net v2")
    given = read_described(folder / "dataset.json", "result folder of nnU-Net v2")
    dataset = read_dataset(given)
    trainings, left = choose(folder, folds)
    made = []
    for training in trainings:
        name = _configuration(folder, plans, training, configuration)
        read = read_plans(plans, name, len(dataset.channels))
        spec = _spec(read, dataset)
        architecture = read.architecture.with_batch_norm() if training.batch_norm else read.architecture
        network = partial(
            nnunet_network.build, architecture, len(dataset.channels), dataset.outputs, read.order, training.path
        )
        named = replace(spec, name=f"{spec.name}-fold{training.fold}")
        fold = TrainedFold(
            plans, given, name, architecture, read.order, len(dataset.channels), dataset.outputs, training.path
        )
        made.append(ImportedModel(named, network, [*left, *training.notes()], partial(nnunet_original, fold)))
    return made


def _networks(
    folder: Path, folds: Sequence[int | str] | None, configuration: str | None, spec: ModelSpec, error: PackageError
) -> list[ImportedModel]:
    """The networks alone, for a description that is given; ``error`` says what else was not understood."""
    folder = _result_folder(folder, configuration)
    plans = read_described(folder / "plans.json", "result folder of nnU-Net v2")
    trainings, left = choose(folder, folds)
    made = []
    for training in trainings:
        architecture, order = read_network(plans, _configuration(folder, plans, training, configuration))
        architecture = architecture.with_batch_norm() if training.batch_norm else architecture
        network = partial(
            nnunet_network.build, architecture, len(spec.channels), spec.output_channels, order, training.path
        )
        notes = [*left, *training.notes(), f"described by hand, in place of: {error.args[0]}"]
        named = replace(spec, name=f"{spec.name}-fold{training.fold}")
        made.append(ImportedModel(named, network, notes, not_compared="the description is by hand", by_hand=True))
    return made


def _result_folder(folder: Path, configuration: str | None) -> Path:
    """The folder with plans.json; archives hold it as DATASET/TRAINER__PLANS__CONFIGURATION."""
    if (folder / "plans.json").is_file():
        return folder
    inside = sorted(path.parent for path in folder.rglob("plans.json"))
    if len(inside) > 1 and configuration is not None:
        inside = [path for path in inside if path.name.split("__")[-1] == configuration]
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside)
        raise PackageError(
            f"{folder.name} holds several trainings: {names}.", "Give one of these folders, or --configuration."
        )
    if not inside and next(folder.rglob("plans.pkl"), None):
        raise PackageError(
            f"{folder.name} is a result folder of nnU-Net v1: its plans.pkl is code.",
            "Train with nnU-Net v2, or export the network to ONNX.",
        )
    return inside[0] if inside else folder


def _configuration(folder: Path, plans: Any, training: Training, wanted: str | None) -> str:
    trained = training.configuration
    if wanted is not None and trained is not None and wanted != trained:
        raise PackageError(
            f"Fold {training.fold} was trained for the configuration {trained}, not {wanted}.",
            f"Give --configuration {trained}.",
        )
    names = configurations(plans)
    by_folder = folder.name.split("__")[-1]
    return wanted or trained or (names[0] if len(names) == 1 and by_folder not in names else by_folder)


def _spec(plans: Plans, dataset: Dataset) -> ModelSpec:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", plans.name).lstrip("._-") or "nnunet"
    remarks = dataset.remarks
    resampled = plans.data is not None
    return ModelSpec(
        name=name,
        version=remarks.get("release") or remarks.get("version") or "1",
        modality="CT" if dataset.channels[0].upper() == "CT" else dataset.channels[0],
        channels=tuple(Channel(channel) for channel in dataset.channels),
        geometry=Geometry(
            "KJI",
            plans.orientation,
            _triple(plans.spacing, plans.order) if resampled else None,
            anchor="edges",
            interpolation="nnunet",
            tolerance=0.0,
            spline=plans.data,
            score_spline=plans.scores,
        ),
        normalization=_normalization(plans.intensities),
        window=Window(
            _triple(plans.patch, plans.order),
            _triple(plans.architecture.total_strides, plans.order),
            0.5,
            placement="nnunet",
        ),
        output=Output("sigmoid" if dataset.regions else "softmax", resample="logits"),
        labels=dataset.labels,
        license=remarks.get("licence") or remarks.get("license") or "unknown: see the data set",
        citation=remarks.get("reference") or "Isensee et al., nnU-Net, Nature Methods 2021",
        title=remarks.get("name") or name,
        description=remarks.get("description", ""),
        crop=Crop("nonzero"),
        normalize_in="input",
    )


def _triple(values: Sequence[Any], order: list[int]) -> tuple[Any, Any, Any]:
    """Values along nnU-Net's transposed axes, along the array's K, J, I instead."""
    found = [values[0]] * 3
    for position, axis in enumerate(order):
        found[axis] = values[position]
    return found[0], found[1], found[2]


def _normalization(channels: list[Intensity]) -> tuple[Normalization, ...]:
    """The steps of each channel; one that all channels share is written once, for all."""
    steps = [_step(channel) for channel in channels]
    if all(step == steps[0] for step in steps):
        return () if steps[0] is None else (steps[0],)
    shared: dict[Normalization, list[int]] = {}
    for channel, step in enumerate(steps):
        if step is not None:
            shared.setdefault(step, []).append(channel)
    return tuple(replace(step, channels=tuple(which)) for step, which in shared.items())


def _step(intensity: Intensity) -> Normalization | None:
    if intensity.scheme == "CTNormalization":
        found = intensity.properties or {}
        low, high = found["percentile_00_5"], found["percentile_99_5"]
        return Normalization("nnunet_ct", low, high, found["mean"], max(found["std"], 1e-8))
    if intensity.scheme == "ZScoreNormalization":
        return Normalization("zscore", mask="nonzero_filled" if intensity.masked else "all")
    if intensity.scheme == "RescaleTo01Normalization":
        return Normalization("minmax")
    if intensity.scheme == "RGBTo01Normalization":
        return Normalization("window", low=0.0, high=255.0, clip=False)
    return None
