"""The importer of a result folder of nnU-Net v2, which becomes one package a fold.

The network is built by nnU-Net's own ``dynamic-network-architectures`` from plans.json; weights are read as data.
Preprocessing follows nnU-Net: voxels as its reader lays them out, crop to non-zero, normalization, cubic resampling by
outer edges, slice by slice where voxels are anisotropic. 2D configurations run slice by slice, across nnU-Net's first axis.
Class scores are blended and resampled as the network gives them. The package allows the axes along which the training mirrored, and
leaves mirroring off: it costs eight times the time. For the networks that TotalSegmentator resamples for, see :mod:`.totalsegmentator`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..models.spec import Channel, Cleaning, Crop, Geometry, Mirroring, ModelSpec, Normalization, Output, Window
from . import nnunet_network
from .base import ImportedModel
from .fields import read_described
from .import_check import OriginalPipeline
from .nnunet_dataset import Dataset, read_dataset
from .nnunet_folds import Training, choose
from .nnunet_original import TrainedFold, nnunet_original
from .nnunet_plans import Intensity, Plans, configurations, read_network, read_plans
from .nnunet_postprocessing import find_postprocessing, read_postprocessing
from .totalsegmentator import (
    NOTE,
    Resampling,
    published_data_set,
    resampled_as_totalsegmentator,
    totalsegmentator_original,
)


def understand(
    folder: Path,
    *,
    folds: Sequence[int | str] | None = None,
    configuration: str | None = None,
    spec: ModelSpec | None = None,
    resampling: Resampling | None = None,
) -> list[ImportedModel]:
    """Read a result folder: plans.json, dataset.json and fold_N/checkpoint_final.pth; one result a fold.

    Args:
        folds: the folds to import, by number or "all"; every numbered one if None.
        configuration: such as "3d_fullres"; by default what the checkpoint was trained for, else what the folder's name says.
        spec: the user's own description: what it replaces need not be understood.
        resampling: how a scan reaches the network and labels come back; by default as nnU-Net does it, or as TotalSegmentator does for
            the networks that it publishes.

    Raises:
        PackageError: a part that is missing, or a plan that is not understood.
        InputError: a fold that is not there, or a network that TotalSegmentator cannot resample for.
    """
    if spec is not None:
        try:
            zooms = spec.geometry.anchor == "corners"
            resampling = "totalsegmentator" if zooms else resampling
            return understand(folder, folds=folds, configuration=configuration, resampling=resampling)
        except PackageError as error:
            return _understand_networks(folder, folds, configuration, spec, error)
    folder = _find_result_folder(folder, configuration)
    plans_json = read_described(folder / "plans.json", "result folder of nnU-Net v2")
    dataset_json = read_described(folder / "dataset.json", "result folder of nnU-Net v2")
    dataset = read_dataset(dataset_json)
    trainings, notes = choose(folder, folds)
    postprocessing = find_postprocessing(folder, [training.fold for training in trainings])
    cleaning: tuple[Cleaning, ...] = ()
    if postprocessing is not None:
        cleaning = read_postprocessing(postprocessing, [label.value for label in dataset.labels])
        place = postprocessing.relative_to(folder)
        notes.append(f"{place}: {_in_words(cleaning, dataset)}")
    models = []
    for training in trainings:
        name = _choose_configuration(folder, plans_json, training, configuration)
        plans = read_plans(plans_json, name, len(dataset.channels))
        spec = _build_spec(plans, dataset)
        architecture = plans.architecture.with_batch_norm() if training.batch_norm else plans.architecture
        network = partial(
            nnunet_network.build, architecture, spec.input_channels, dataset.outputs, plans.order, training.path
        )
        mirroring = Mirroring(_mirror_axes(training, plans))
        fold_spec = replace(spec, name=f"{spec.name}-fold{training.fold}", mirroring=mirroring, cleaning=cleaning)
        fold_notes = [*notes, *training.notes()]
        fold = TrainedFold(
            plans_json,
            dataset_json,
            name,
            architecture,
            plans.order,
            spec.input_channels,
            dataset.outputs,
            training.path,
            postprocessing,
            plans.previous is not None,
        )
        original: Callable[[], OriginalPipeline] = partial(nnunet_original, fold)
        data_set = published_data_set(folder, plans.name)
        if resampling == "totalsegmentator" or (resampling is None and data_set is not None):
            fold_spec = resampled_as_totalsegmentator(fold_spec, data_set or plans.name)
            original = partial(totalsegmentator_original, fold, fold_spec)
            fold_notes.append(NOTE)
        models.append(ImportedModel(fold_spec, network, fold_notes, original))
    return models


def _understand_networks(
    folder: Path, folds: Sequence[int | str] | None, configuration: str | None, spec: ModelSpec, error: PackageError
) -> list[ImportedModel]:
    """Return the networks alone, for the description ``spec`` of the user; ``error`` says what else was not understood."""
    folder = _find_result_folder(folder, configuration)
    plans = read_described(folder / "plans.json", "result folder of nnU-Net v2")
    trainings, notes_of_choice = choose(folder, folds)
    models = []
    for training in trainings:
        architecture, order = read_network(plans, _choose_configuration(folder, plans, training, configuration))
        architecture = architecture.with_batch_norm() if training.batch_norm else architecture
        network = partial(
            nnunet_network.build, architecture, spec.input_channels, spec.output_channels, order, training.path
        )
        notes = [*notes_of_choice, *training.notes(), f"described by hand, in place of: {error.args[0]}"]
        fold_spec = replace(spec, name=f"{spec.name}-fold{training.fold}")
        models.append(ImportedModel(fold_spec, network, notes, not_compared="the description is by hand", by_hand=True))
    return models


def _find_result_folder(folder: Path, configuration: str | None) -> Path:
    """Return the folder with plans.json; archives hold it as DATASET/TRAINER__PLANS__CONFIGURATION."""
    if (folder / "plans.json").is_file():
        return folder
    folders = sorted(path.parent for path in folder.rglob("plans.json"))
    if len(folders) > 1 and configuration is not None:
        folders = [path for path in folders if path.name.split("__")[-1] == configuration]
    if len(folders) > 1:
        names = ", ".join(path.name for path in folders)
        raise PackageError(
            f"{folder.name} holds several trainings: {names}.", "Give one of these folders, or --configuration."
        )
    if not folders and next(folder.rglob("plans.pkl"), None):
        raise PackageError(
            f"{folder.name} is a result folder of nnU-Net v1: its plans.pkl is code.",
            "Train with nnU-Net v2, or export the network to ONNX.",
        )
    return folders[0] if folders else folder


def _choose_configuration(folder: Path, plans: Any, training: Training, choice: str | None) -> str:
    checkpoint_configuration = training.configuration
    if choice is not None and checkpoint_configuration is not None and choice != checkpoint_configuration:
        raise PackageError(
            f"Fold {training.fold} was trained for the configuration {checkpoint_configuration}, not {choice}.",
            f"Give --configuration {checkpoint_configuration}.",
        )
    names = configurations(plans)
    by_folder = folder.name.split("__")[-1]
    return choice or checkpoint_configuration or (names[0] if len(names) == 1 and by_folder not in names else by_folder)


def _build_spec(plans: Plans, dataset: Dataset) -> ModelSpec:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", plans.name).lstrip("._-") or "nnunet"
    remarks = dataset.remarks
    resampled = plans.data is not None
    channels = [Channel(channel) for channel in dataset.channels]
    if plans.previous is not None:
        channels.append(Channel(f"labels of {plans.previous}", dataset.foreground))
    return ModelSpec(
        name=name,
        version=remarks.get("release") or remarks.get("version") or "1",
        modality="CT" if dataset.channels[0].upper() == "CT" else dataset.channels[0],
        channels=tuple(channels),
        geometry=Geometry(
            "KJI",
            plans.orientation,
            _restore_axes(plans.spacing, plans.order) if resampled else None,
            anchor="edges",
            interpolation="nnunet",
            tolerance=0.0,
            spline=plans.data,
            score_spline=plans.scores,
            label_spline=plans.labels,
        ),
        normalization=_build_normalization(plans.intensities),
        window=Window(
            _restore_axes(plans.patch, plans.order),
            _restore_axes(plans.architecture.total_strides, plans.order),
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


def _in_words(cleaning: Sequence[Cleaning], dataset: Dataset) -> str:
    """Return what the postprocessing does, for a note."""
    names = {label.value: label.name for label in dataset.labels}
    return "; ".join(step.in_words(names) for step in cleaning) or "no postprocessing helped, so none is done"


def _mirror_axes(training: Training, plans: Plans) -> tuple[int, ...]:
    """Return the axes K, J, I of the array along which the training allows mirroring: nnU-Net counts along its transposed axes, 2D
    configurations within a slice.

    Raises:
        PackageError: an axis that the network does not have.
    """
    count = plans.architecture.axes
    axes = training.mirror_axes or []
    if strangers := [axis for axis in axes if axis >= count]:
        raise PackageError(
            f"fold {training.fold}: inference_allowed_mirroring_axes names the axis {strangers[0]} of a network with {count}.",
            "Get the checkpoint again.",
        )
    return tuple(sorted({plans.order[axis + 3 - count] for axis in axes}))


def _restore_axes(values: Sequence[Any], order: list[int]) -> tuple[Any, Any, Any]:
    """Three values along nnU-Net's transposed axes, put into the order of the array's axes K, J, I."""
    values_kji = [values[0]] * 3
    for position, axis in enumerate(order):
        values_kji[axis] = values[position]
    return values_kji[0], values_kji[1], values_kji[2]


def _build_normalization(channels: list[Intensity]) -> tuple[Normalization, ...]:
    """Return the normalization steps of all channels; a step that all channels share is written once, for all."""
    steps = [_build_step(channel) for channel in channels]
    if all(step == steps[0] for step in steps):
        return () if steps[0] is None else (steps[0],)
    channels_of_step: dict[Normalization, list[int]] = {}
    for channel, step in enumerate(steps):
        if step is not None:
            channels_of_step.setdefault(step, []).append(channel)
    return tuple(replace(step, channels=tuple(numbers)) for step, numbers in channels_of_step.items())


def _build_step(intensity: Intensity) -> Normalization | None:
    if intensity.scheme == "CTNormalization":
        statistics = intensity.properties or {}
        low, high = statistics["percentile_00_5"], statistics["percentile_99_5"]
        return Normalization("nnunet_ct", low, high, statistics["mean"], max(statistics["std"], 1e-8))
    if intensity.scheme == "ZScoreNormalization":
        return Normalization("zscore", mask="nonzero_filled" if intensity.masked else "all")
    if intensity.scheme == "RescaleTo01Normalization":
        return Normalization("minmax")
    if intensity.scheme == "RGBTo01Normalization":
        return Normalization("window", low=0.0, high=255.0, clip=False)
    return None
