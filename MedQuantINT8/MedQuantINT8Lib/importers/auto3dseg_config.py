"""The configuration in a model.pt of MONAI Auto3DSeg (SegResNetDS), read strictly.

What is meant by it is what the Slicer extension's inference script does (lassoan/SlicerMONAIAuto3DSeg), with the network as
Auto3DSeg's own Segmenter builds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PackageError
from .expression_evaluator import NotAConstant
from .expressions import Config
from .fields import Fields, choice, count, each, flag, known, mapping, number, positive, text, whole

_ADVICE = "If it changes nothing when a scan is segmented, take it out of the configuration; else use Auto3DSeg itself."
NETWORKS = ("SegResNetDS", "SegResNetDS2")
#: Each normalization by its names; "range" needs intensity_bounds.
MODES = {
    "none": "none",
    "range": "range",
    "ct": "range",
    "meanstd": "meanstd",
    "mri": "meanstd",
    "meanstdtanh": "meanstdtanh",
    "pet": "pet",
}
#: Fields that say how the network was trained, or on which machine.
_ABOUT_TRAINING = (
    "_meta_", "ckpt_path", "mlflow_tracking_uri", "mlflow_experiment_name", "data_file_base_dir", "data_list_file_path", "fold",
    "input_channels", "output_classes", "debug", "ckpt_save", "cache_rate", "auto_scale_allowed", "auto_scale_batch", "auto_scale_roi",
    "auto_scale_filters", "quick", "channels_last", "validate_final_original_res", "calc_val_loss", "amp", "log_output_file",
    "cache_class_indices", "early_stopping_fraction", "determ", "learning_rate", "batch_size", "num_images_per_batch", "num_epochs",
    "num_warmup_epochs", "crop_mode", "crop_ratios", "crop_add_background", "num_epochs_per_validation", "num_epochs_per_saving",
    "num_workers", "num_steps_per_image", "num_crops_per_image", "loss", "optimizer", "lr_scheduler", "finetune", "validate", "infer", "acc",
    "cuda", "fork", "notf32", "float32_precision", "max_samples_per_class", "start_epoch", "stop_on_lowacc", "pretrained_ckpt_name", "rank",
    "global_rank", "mgpu", "task", "name", "image_size", "image_size_mm_median", "image_size_mm_90", "spacing_median", "spacing_lower",
    "spacing_upper", "augment_mode", "augment_flips", "augment_rots", "cache_image_int16", "dice_ignore_empty", "validation_key",
    "best_metric", "use_ckpt_config", "n_cases", "multigpu", "continue", "description", "version", "training", "epoch", "checkpoint", "class_weights",
)  # fmt: skip


@dataclass(frozen=True)
class Auto3DSegConfig:
    """The configuration of an Auto3DSeg model, as far as it bears on segmenting a scan.

    Attributes:
        target: The name of the network's class.
        network: The arguments of that class, by name.
        channels, classes: The numbers of input and of output channels.
        modes: The normalization of each input channel; one for all where the configuration names no others.
        bounds: The two intensity limits of the normalization "range", or None.
        spacing: The voxel spacing in millimeters along I, J and K, or None.
        roi: The window's size in voxels along I, J and K.
        factors: The numbers of which each side of a window has to be a multiple.
        crop: Whether the scan is cropped around its foreground.
        reorient: Whether the scan is turned to RAS.
        sigmoid: Whether the classes are regions that may overlap.
        modality: The modality of the first channel, as the configuration names it.
        inputs: The names of the input channels.
        names: The names of the classes, as the configuration has them.
        members: The labels of which each region consists, or None.
        bundle: The folder in which the model was trained; may be empty.
        remarks: Sentences on what was read in a way that the user should know of.
    """

    target: str
    network: dict[str, Any]
    channels: int
    classes: int
    modes: tuple[str, ...]
    bounds: tuple[float, float] | None
    spacing: tuple[float, float, float] | None
    roi: tuple[int, int, int]
    factors: tuple[int, int, int]
    crop: bool
    reorient: bool
    sigmoid: bool
    modality: str
    inputs: tuple[str, ...]
    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...] | None
    bundle: str
    remarks: tuple[str, ...]


def find_config(checkpoint: Any, folder: Path, path: Path) -> dict[str, Any]:
    """Return the configuration in a checkpoint, or that in hyper_parameters.yaml beside weights alone.

    Raises:
        PackageError: There is neither.
    """
    if isinstance(checkpoint, dict) and checkpoint.get("config") is not None:
        return mapping(checkpoint["config"], f"{path.name}: 'config'")
    for candidate in (folder / "hyper_parameters.yaml", folder / "configs" / "hyper_parameters.yaml"):
        if candidate.is_file():
            config, entries = Config.read(candidate), {}
            for key in config.values:
                try:
                    entries[key] = config.get(key)
                except NotAConstant:
                    continue  # paths and devices of the training machine
            return entries
    raise PackageError(
        f"{path.name} holds no configuration, and no hyper_parameters.yaml lies beside it.", "Copy it there."
    )


def read_config(value: Any, where: str) -> Auto3DSegConfig:
    """Read the configuration; ``where`` names its file in messages.

    Raises:
        PackageError: A field, which the message names, is missing, of the wrong type or not understood.
    """
    try:
        return _read(value, where)
    except NotAConstant as error:
        raise PackageError(f"{where}: an entry that is needed is code: {error}.", "Write its value there.") from error


def read_network(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Read the network's class and its arguments alone, where the user describes the rest; raises as :func:`read_config`."""
    try:
        fields = Fields(value, f"{where}: the configuration", _ADVICE)
        return _network(fields, fields.get("resample_resolution", each(positive, 3), None))
    except NotAConstant as error:
        raise PackageError(f"{where}: an entry that is needed is code: {error}.", "Write its value there.") from error


def _read(value: Any, where: str) -> Auto3DSegConfig:
    fields = Fields(value, f"{where}: the configuration", _ADVICE)
    fields.ignore(*_ABOUT_TRAINING)
    spacing = fields.get("resample_resolution", each(positive, 3), None)
    target, network = _network(fields, spacing)
    channels, classes = network.get("in_channels", 1), network["out_channels"]
    extra = fields.get("extra_modalities", mapping, {})
    modes, remarks = _modes(fields, extra, channels), []
    modality = fields.get("modality", text, "unknown").strip() or "unknown"
    bounds = fields.get("intensity_bounds", each(number, 2), None)
    if "range" in modes and (bounds is None or bounds[0] == bounds[1]):
        raise PackageError(
            f"{fields.where}: the normalization by range needs two different intensity_bounds.", "Correct it."
        )
    if fields.get("resample", flag, True) is False and spacing is not None:
        remarks.append(
            "resample is false, but resample_resolution is given: scans are resampled, as the Slicer extension does"
        )
    roi = fields.get("roi_size", each(count, 3))
    factors = _factors(network)
    if any(side % factor for side, factor in zip(roi, factors, strict=True)):
        raise PackageError(
            f"{fields.where}: roi_size {' x '.join(map(str, roi))} is no multiple of {' x '.join(map(str, factors))}, which the network needs.",
            "Correct roi_size.",
        )
    names, members = _classes(fields)
    config = Auto3DSegConfig(
        target=target,
        network=network,
        channels=channels,
        classes=classes,
        modes=modes,
        bounds=(bounds[0], bounds[1]) if bounds else None,
        spacing=(spacing[0], spacing[1], spacing[2]) if spacing else None,
        roi=(roi[0], roi[1], roi[2]),
        factors=factors,
        crop=fields.get("crop_foreground", flag, True),
        reorient=fields.get("orientation_ras", flag, False),
        sigmoid=fields.get("sigmoid", flag, False),
        modality=modality,
        inputs=tuple(f"channel {n}" for n in range(channels))
        if len(modes) == 1 and channels > 1
        else (modality, *extra),
        names=names,
        members=members,
        bundle=fields.get("bundle_root", text, ""),
        remarks=tuple(remarks),
    )
    fields.finish()
    return config


def _network(fields: Fields, spacing: list[float] | None) -> tuple[str, dict[str, Any]]:
    arguments = fields.get("network", mapping)
    network_fields = Fields(arguments, f"{fields.where}: network", fields.advice)
    target = network_fields.get("_target_", text, "").rsplit(".", 1)[-1]
    if target not in NETWORKS:
        raise PackageError(
            f"{fields.where} is of a {target or 'network without a name'}, not a SegResNetDS.", "Use another importer."
        )
    network_fields.get("out_channels", count)
    network_fields.get("in_channels", count, 1)
    network_fields.get("spatial_dims", choice(3), 3)
    if "preprocess" in network_fields:
        raise PackageError(
            f"{network_fields.where}: 'preprocess' is code that runs before the network, which is not understood.",
            fields.advice,
        )
    network_fields.get("blocks_down", each(count), [1, 2, 2, 4])
    resolution = network_fields.get("resolution", each(positive, 3), None)
    network = {name: item for name, item in arguments.items() if not name.startswith("_")}
    # Auto3DSeg tells the network of anisotropic voxels when it builds it, and does without its faster norm where that is missing.
    if fields.get("anisotropic_scales", flag, False) and resolution is None and spacing is not None:
        network["resolution"] = spacing
    norm = network.get("norm")
    if isinstance(norm, str) and norm.upper() == "INSTANCE_NVFUSER":
        network["norm"] = "INSTANCE"
    elif isinstance(norm, list | tuple) and norm and str(norm[0]).upper() == "INSTANCE_NVFUSER":
        network["norm"] = ["INSTANCE", *norm[1:]]
    return target, network


def _factors(network: dict[str, Any]) -> tuple[int, int, int]:
    """Return by what factor the deepest level is smaller along each axis: coarse axes are halved later (MONAI's SegResNetDS.shape_factor)."""
    levels = len(network.get("blocks_down", (1, 2, 2, 4))) - 1
    resolution = network.get("resolution") or (1.0, 1.0, 1.0)
    # An axis of the finest voxels is halved from the start, another one only when the finest has caught up with it.
    late = [math.floor(math.log2(max(resolution) / side)) for side in resolution]
    first = max(late)
    a, b, c = (2 ** sum(level < finer or level >= first for level in range(levels)) for finer in late)
    return a, b, c


def _modes(fields: Fields, extra: dict[str, Any], channels: int) -> tuple[str, ...]:
    """Return the normalization of each channel, or the single one of all channels."""
    main = _mode(fields.get("normalize_mode", text), f"{fields.where}: normalize_mode")
    if not extra:
        return (main,)
    others = [
        _mode(text(mode, f"{fields.where}: {name}"), f"{fields.where}: extra_modalities, {name}")
        for name, mode in extra.items()
    ]
    if len(others) + 1 != channels:
        raise PackageError(
            f"{fields.where}: extra_modalities names {len(others)} channels besides the first, the network has {channels}.",
            "Correct it.",
        )
    return (main, *others)


def _mode(name: str, where: str) -> str:
    if name not in MODES:
        raise PackageError(f"{where} {name!r} is not understood.", f"Understood are: {known(MODES)}.")
    return MODES[name]


def _classes(fields: Fields) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...] | None]:
    """Return the names of the classes and the labels of each region, which stand in the names or beside them."""

    def read_class(value: Any, where: str) -> tuple[str, list[int] | None]:
        if isinstance(value, str):
            return value, None
        item = Fields(value, where, fields.advice)
        name_and_labels = item.get("name", text), item.get("index", each(whole), None)
        item.finish()
        return name_and_labels

    rows = fields.get("class_names", each(read_class), [])
    index = fields.get("class_index", each(each(whole)), None)
    inside = [members for _, members in rows]
    if not index and rows and all(members is not None for members in inside):
        index = [members for members in inside if members is not None]
    return tuple(name for name, _ in rows), tuple(tuple(row) for row in index) if index else None
