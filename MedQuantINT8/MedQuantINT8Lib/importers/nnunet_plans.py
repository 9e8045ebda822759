"""plans.json of nnU-Net v2, read strictly: what changes the network's input or its labels is understood or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import PackageError
from ..models.spec import NATIVE, SplineResampling
from .fields import (
    Fields,
    choice,
    count,
    each,
    flag,
    known,
    mapping,
    number,
    optional,
    positive,
    text,
    whole,
)
from .nnunet_network import Architecture, architecture_of
from .slices import with_slice_axis

_ADVICE = "If it changes nothing when a scan is segmented, take it out of plans.json; else use nnU-Net itself for this network."
#: Fields of plans that say how the network was planned and trained.
_ABOUT_TRAINING = (
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
    "experiment_planner_used", "continue_training",
)  # fmt: skip
_ABOUT_TRAINING_OF_CONFIGURATION = (
    "data_identifier", "batch_size", "median_image_size_in_voxels", "batch_dice", "next_stage", "inherits_from", "num_pool_per_axis",
)  # fmt: skip
#: How nnU-Net's readers lay the voxels out: all give (K, J, I) along the file's axes, or along axes turned to R, A, S.
_READERS = {
    "SimpleITKIO": NATIVE,
    "NibabelIO": NATIVE,
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
}
_READERS_OF_PICTURES = {
    "NaturalImage2DIO": "single pictures",
    "Tiff3DIO": "TIFF stacks, which have no place in the patient",
}
_SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
#: What resampling_fn_data and its like are, with the arguments that change nothing on a processor.
_SPLINE, _TORCH, _NONE = "resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"


@dataclass(frozen=True)
class Intensity:
    """The normalization of one channel.

    Attributes:
        scheme: the name of nnU-Net's class.
        masked: whether its statistics are those of the filled non-zero mask alone.
        properties: percentile_00_5, percentile_99_5, mean and std of the training's foreground, for CTNormalization.
    """

    scheme: str
    masked: bool
    properties: dict[str, float] | None = None


@dataclass(frozen=True)
class Plans:
    """One configuration of plans.json, along nnU-Net's own (transposed) axes.

    Attributes:
        name: the name of the data set.
        configuration: its name, such as 3d_fullres.
        order: nnU-Net's axis n is axis order[n] of the array (K, J, I).
        orientation: the orientation that the reader gives: "native" or "RAS".
        reader: the name of nnU-Net's reader.
        patch, spacing: sides in voxels and spacing in millimeters along three axes; a configuration of slices (2D) has 1 and None (the scan's own) along the first.
        data, scores, labels: how scans, class scores and label maps are resampled; None where nothing is. Label maps are read for a cascade
            alone.
        previous: the configuration whose labels a cascade takes as input; None for any other.
    """

    name: str
    configuration: str
    order: list[int]
    orientation: str
    reader: str
    patch: list[int]
    spacing: list[float | None]
    intensities: list[Intensity]
    data: SplineResampling | None
    scores: SplineResampling | None
    architecture: Architecture
    labels: SplineResampling | None = None
    previous: str | None = None


def configurations(plans: Any) -> list[str]:
    """Return the names of the configurations in plans.json."""
    return list(Fields(plans, "plans.json", _ADVICE).get("configurations", mapping))


def read_plans(value: Any, configuration: str, channels: int) -> Plans:
    """Return the configuration of plans.json for a network of ``channels`` input channels.

    Raises:
        PackageError: names the field that is missing, of the wrong type or not understood.
    """
    plans = Fields(value, "plans.json", _ADVICE)
    plans.ignore(*_ABOUT_TRAINING)
    plans.get("label_manager", choice("LabelManager"), "LabelManager")
    reader = plans.get("image_reader_writer", text)
    if reader not in _READERS:
        why = f"reads {_READERS_OF_PICTURES[reader]}" if reader in _READERS_OF_PICTURES else "is not known"
        raise PackageError(f"plans.json: image_reader_writer {reader} {why}.", f"Understood are: {known(_READERS)}.")
    order = plans.get("transpose_forward", each(whole, 3))
    if sorted(order) != [0, 1, 2] or plans.get("transpose_backward", each(whole, 3)) != [
        order.index(axis) for axis in range(3)
    ]:
        raise PackageError(
            "plans.json: transpose_forward and transpose_backward do not belong together.", "Get the folder again."
        )
    older_properties = plans.get("foreground_intensity_properties_by_modality", mapping, {})
    properties = plans.get("foreground_intensity_properties_per_channel", mapping, older_properties)
    settings = _resolve_inheritance(plans.get("configurations", mapping), configuration)
    where = f"plans.json, configuration {configuration}"
    fields = Fields(settings, where, _ADVICE)
    fields.ignore(*_ABOUT_TRAINING_OF_CONFIGURATION)
    axes = _count_axes(fields, configuration)
    patch, spacing = fields.get("patch_size", each(count, axes)), fields.get("spacing", each(positive, axes))
    fields.get("preprocessor_name", choice("DefaultPreprocessor"), "DefaultPreprocessor")
    data, scores = _read_resampling(fields, "data"), _read_resampling(fields, "probabilities")
    if (data is None) != (scores is None):
        raise PackageError(f"{where}: scans are resampled and class scores are not, or the other way about.", _ADVICE)
    previous = fields.get("previous_stage", optional(text), None)
    labels = None
    if previous is None:
        fields.get("resampling_fn_seg", choice(_SPLINE, _TORCH, _NONE))  # labels are resampled when training alone
        fields.get("resampling_fn_seg_kwargs", mapping)
    else:
        labels = _read_label_resampling(fields)
        if (data is None) != (labels is None):
            raise PackageError(f"{where}: scans are resampled and label maps are not, or the other way about.", _ADVICE)
    result = Plans(
        name=plans.get("dataset_name", text, "nnunet"),
        configuration=configuration,
        order=order,
        orientation=_READERS[reader],
        reader=reader,
        patch=patch if axes == 3 else list(with_slice_axis(patch, 0, 1)),
        # nnU-Net keeps the distance between slices, whichever axis is the first after transposing.
        spacing=[*spacing] if axes == 3 else list(with_slice_axis(spacing, 0, None)),
        intensities=_read_intensities(fields, properties, channels),
        data=data,
        scores=scores,
        architecture=architecture_of(fields, axes),
        labels=labels,
        previous=previous,
    )
    fields.finish()
    plans.finish()
    return result


def read_network(value: Any, configuration: str) -> tuple[Architecture, list[int]]:
    """Only the architecture of a configuration's network and the order of its axes: the user describes the rest.

    Raises:
        PackageError: as :func:`read_plans`, for these parts.
    """
    plans = Fields(value, "plans.json", _ADVICE)
    order = plans.get("transpose_forward", each(whole, 3))
    if sorted(order) != [0, 1, 2]:
        raise PackageError(f"plans.json: transpose_forward {order} is no order of three axes.", "Get the folder again.")
    settings = _resolve_inheritance(plans.get("configurations", mapping), configuration)
    fields = Fields(settings, f"plans.json, configuration {configuration}", _ADVICE)
    return architecture_of(fields, _count_axes(fields, configuration)), order


def _resolve_inheritance(configurations_json: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of a configuration, with those that it inherits."""
    chain: list[dict[str, Any]] = []
    names: list[str] = []
    current: str | None = name
    while current is not None:
        if current not in configurations_json:
            raise PackageError(
                f"plans.json has no configuration {current!r}.",
                f"It has: {known(configurations_json)}. Choose with --configuration.",
            )
        if current in names:
            raise PackageError(
                f"plans.json: the configuration {current!r} inherits from itself.", "Get the folder again."
            )
        names.append(current)
        chain.append(mapping(configurations_json[current], f"plans.json, configuration {current}"))
        current = optional(text)(
            chain[-1].get("inherits_from"), f"plans.json, configuration {current}: 'inherits_from'"
        )
    return {key: value for part in reversed(chain) for key, value in part.items()}


def _count_axes(fields: Fields, name: str) -> int:
    """Return the number of axes of a configuration's patch: 3, or 2 where it works slice by slice."""
    if (axes := len(fields.get("patch_size", each(count)))) not in (2, 3):
        raise PackageError(
            f"The configuration {name} has a patch of {axes} sides.", "Choose another one, such as 3d_fullres."
        )
    return axes


def _read_intensities(fields: Fields, properties: dict[str, Any], channels: int) -> list[Intensity]:
    schemes = fields.get("normalization_schemes", each(text, channels))
    masks = fields.get("use_mask_for_norm", each(flag, channels))
    intensities = []
    for channel, (scheme, masked) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in _SCHEMES:
            raise PackageError(
                f"{fields.where}: the normalization {scheme} is not understood.", f"Understood are: {known(_SCHEMES)}."
            )
        statistics = None
        if scheme == "CTNormalization":
            where = f"plans.json: intensity properties of channel {channel}"
            statistics_fields = Fields(properties.get(str(channel)), where, "Get the folder again.")
            statistics = {
                name: statistics_fields.get(name, number)
                for name in ("percentile_00_5", "percentile_99_5", "mean", "std")
            }
            if statistics["percentile_00_5"] >= statistics["percentile_99_5"]:
                raise PackageError(f"{where}: percentile_00_5 is not below percentile_99_5.", "Get the folder again.")
        intensities.append(Intensity(scheme, masked, statistics))
    return intensities


def _read_resampling(fields: Fields, what: str) -> SplineResampling | None:
    """Return the resampling of scans ("data") or class scores ("probabilities"); None where nothing is resampled."""
    name = f"resampling_fn_{what}"
    function = fields.get(name, text)
    arguments = Fields(fields.get(f"{name}_kwargs", mapping), f"{fields.where}: {name}_kwargs", _ADVICE)
    if function not in (_SPLINE, _TORCH, _NONE):
        raise PackageError(
            f"{fields.where}: {name} {function} is not understood.", f"Understood are: {_SPLINE}, {_TORCH} and {_NONE}."
        )
    if function == _NONE:
        arguments.finish()
        return None
    arguments.get("is_seg", choice(False), False)
    threshold = arguments.get("separate_z_anisotropy_threshold", positive, 3.0)
    if function == _TORCH:
        # Linear with the same sampling points; the number of threads and the device change nothing.
        arguments.ignore("num_threads", "device", "memefficient_seg_resampling")
        arguments.get("mode", choice("linear"), "linear")
        arguments.get("aniso_axis_mode", choice("nearest-exact"), "nearest-exact")
        separate = arguments.get("force_separate_z", optional(flag), None)
        arguments.finish()
        return SplineResampling(1, 0, separate, threshold)
    # What is left out has the default of nnU-Net's function; null is a value of its own, and leaves it to the spacing.
    separate = arguments.get("force_separate_z", flag, None if arguments.holds("force_separate_z") else False)
    order = arguments.get("order", choice(0, 1, 3), 3)
    order_z = arguments.get("order_z", choice(0, 1), 0)
    arguments.finish()
    return SplineResampling(order, order_z, separate, threshold)


def _read_label_resampling(fields: Fields) -> SplineResampling | None:
    """Return how a cascade resamples the previous stage's label map; None where nothing is resampled."""
    function = fields.get("resampling_fn_seg", text)
    arguments = Fields(
        fields.get("resampling_fn_seg_kwargs", mapping), f"{fields.where}: resampling_fn_seg_kwargs", _ADVICE
    )
    if function not in (_SPLINE, _NONE):
        raise PackageError(
            f"{fields.where}: resampling_fn_seg {function} of a cascade is not understood.",
            f"Understood are: {_SPLINE} and {_NONE}.",
        )
    if function == _NONE:
        arguments.finish()
        return None
    arguments.get("is_seg", choice(True))
    threshold = arguments.get("separate_z_anisotropy_threshold", positive, 3.0)
    separate = arguments.get("force_separate_z", flag, None if arguments.holds("force_separate_z") else False)
    order = arguments.get("order", choice(0, 1, 3), 3)
    order_z = arguments.get("order_z", choice(0, 1), 0)
    arguments.finish()
    return SplineResampling(order, order_z, separate, threshold)


def previous_stage(value: Any, configuration: str) -> str | None:
    """Return the configuration whose labels a cascade takes as input, or None for any other.

    Raises:
        PackageError: no such configuration.
    """
    configurations_json = mapping(mapping(value, "plans.json").get("configurations"), "plans.json: 'configurations'")
    settings = _resolve_inheritance(configurations_json, configuration)
    return optional(text)(
        settings.get("previous_stage"), f"plans.json, configuration {configuration}: 'previous_stage'"
    )
