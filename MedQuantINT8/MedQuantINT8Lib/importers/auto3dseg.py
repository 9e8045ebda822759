"""A model of MONAI Auto3DSeg (SegResNetDS) as the Slicer extension distributes them: model.pt, labels.csv.

model.pt holds the weights and, in ``config``, how the volume is prepared; Auto3DSeg's ``hyper_parameters.yaml`` holds the
same beside weights alone. It is imported as the extension's inference script uses it (lassoan/SlicerMONAIAuto3DSeg):
scans are normalized as a whole, then cropped around what is above 0 with a margin, then resampled; windows overlap by 0.625; labels
go back to the scan by the nearest voxel. Models of BraTS are normalized at the end instead, and their three regions overlap.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..models.colors import palette
from ..models.spec import (
    NATIVE,
    Channel,
    Cleaning,
    Crop,
    Geometry,
    Label,
    ModelSpec,
    Normalization,
    Output,
    Step,
    Window,
)
from .auto3dseg_config import Auto3DSegConfig, find_config, read_config, read_network
from .auto3dseg_original import Auto3DSegModel, auto3dseg_original
from .base import ImportedModel
from .checkpoints import load_weights, read_checkpoint, state_dict_of
from .class_scores import single_output

_OVERLAP = 0.625
_MARGIN = 10
#: Label values of three overlapping regions, in the order of the network's channels: edema around a core around what enhances
#: (BraTS 2023: necrosis 1, edema 2, enhancing 3); kidney with masses, masses, tumor (KiTS 2023: kidney 1, tumor 2, cyst 3).
_REGIONS = {"brats": (2, 1, 3), "kits": (1, 3, 2)}


def understand(source: Path, *, spec: ModelSpec | None = None) -> ImportedModel:
    """Read model.pt, or a folder with it and what lies beside it.

    Args:
        source: the file model.pt, or the folder that holds it.
        spec: the user's own description; the parts of the configuration that it replaces need not be understood.

    Raises:
        PackageError: The checkpoint has no configuration, or one that is not understood.
    """
    folder = source if source.is_dir() else source.parent
    path = (
        source
        if source.is_file()
        else next((p for p in (folder / "model.pt", folder / "model" / "model.pt") if p.is_file()), None)
    )
    if path is None:
        raise PackageError(
            f"{source} holds no model.pt.", "Give the folder that Auto3DSeg or the Slicer extension made."
        )
    checkpoint = read_checkpoint(path, mapped=True)
    raw_config = find_config(checkpoint, folder, path)
    state_dict_of(checkpoint, path.name)
    try:
        return _import_described(raw_config, folder, path)
    except PackageError as error:
        if spec is None:
            raise
        notes = [f"described by hand, in place of: {error.args[0]}"]
        network = partial(_network, *read_network(raw_config, path.name), path)
        return ImportedModel(spec, network, notes, not_compared="the description is by hand", by_hand=True)


def _import_described(raw_config: dict[str, Any], folder: Path, path: Path) -> ImportedModel:
    config = read_config(raw_config, path.name)
    kind = _kind(config, path)
    regions = _regions(config, kind)
    notes = [*config.remarks, *regions.notes]
    spec = _spec(config, folder, regions, brats=kind == "brats")
    if "whole-head" in path.resolve().as_posix():
        notes.append(
            "the two largest parts of each structure are kept, as the Slicer extension does for whole-head models"
        )
        spec = replace(spec, cleaning=(Cleaning("largest", count=2),))
    model = Auto3DSegModel(
        config,
        kind == "brats",
        tuple(label.value for label in spec.labels),
        partial(_network, config.target, config.network, path),
    )
    return ImportedModel(spec, model.network, notes, partial(auto3dseg_original, model))


def _kind(config: Auto3DSegConfig, path: Path) -> str:
    """Return which of the models that the extension treats by their names this is: "brats", "kits", or "" for any other.

    The extension looks for the word in the whole path; here it has to stand in the model's own folders.
    """
    places = [
        path.resolve().name,
        *(parent.name for parent in list(path.resolve().parents)[:3]),
        Path(config.bundle).name,
    ]
    return next((kind for kind in _REGIONS if any(kind in place.lower() for place in places)), "")


@dataclass(frozen=True)
class _Regions:
    """The label that each output channel paints (no labels for exclusive classes), and notes on what was assumed."""

    values: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def _regions(config: Auto3DSegConfig, kind: str) -> _Regions:
    if not config.sigmoid:
        return _Regions()
    if config.members is not None:
        return _Regions(_find_region_labels(config.members, config.classes))
    if config.classes == 1:
        return _Regions((1,))
    if kind and config.classes == 3:
        order = ", ".join(map(str, _REGIONS[kind]))
        return _Regions(
            _REGIONS[kind],
            (f"the regions 0, 1, 2 are painted as the labels {order}, as the Slicer extension does for {kind}",),
        )
    return _Regions(
        tuple(range(1, config.classes + 1)),
        (
            "the configuration does not say which labels its regions consist of (class_index): they are painted one over the other as the "
            f"labels 1 to {config.classes}; the Slicer extension takes the first region alone",
        ),
    )


def _find_region_labels(members: tuple[tuple[int, ...], ...], classes: int) -> tuple[int, ...]:
    """Return the label that remains of each region once the later regions are painted over it.

    Raises:
        PackageError: The regions are not nested so that painting them one over the other gives each label back.
    """
    if len(members) != classes:
        raise PackageError(
            f"class_index has {len(members)} regions, the network has {classes}.", "Correct the configuration."
        )
    values = []
    for n, region in enumerate(members):
        later = {label for other in members[n + 1 :] if set(other) <= set(region) for label in other}
        left = sorted(set(region) - later)
        if (
            len(left) != 1
            or left[0] == 0
            or any(set(other) & set(region) and not set(other) <= set(region) for other in members[n + 1 :])
        ):
            raise PackageError(
                f"class_index: region {n} consists of the labels {sorted(region)}, and the regions after it do not leave one of them.",
                "Such regions cannot be painted one over the other.",
            )
        values.append(left[0])
    if len(set(values)) != len(values):
        raise PackageError(f"class_index: two regions leave the same label ({values}).", "Correct the configuration.")
    return tuple(values)


def _spec(config: Auto3DSegConfig, folder: Path, regions: _Regions, *, brats: bool) -> ModelSpec:
    normalization = _normalization(config)
    crop = Crop()
    if config.crop and brats:
        crop = Crop("threshold", 0.0, _MARGIN)
    elif config.crop:
        # Where channels are normalized one by one, the extension looks at what became of the first; else at the scan itself.
        own = len(config.modes) > 1
        crop = Crop("threshold", 0.0, _MARGIN, channels=(0,) if own else (), look_at="current" if own else "scan")
    normalize: list[Step] = ["normalize"] * len(normalization)
    turn: list[Step] = ["reorient"] if config.reorient else []
    cut: list[Step] = ["crop"] if config.crop else []
    resample: list[Step] = ["resample"] if config.spacing is not None else []
    return ModelSpec(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "auto3dseg",
        version="1",
        modality=config.modality.upper(),
        channels=tuple(Channel(name.strip() or f"channel {n}") for n, name in enumerate(config.inputs)),
        geometry=Geometry(
            "IJK",
            "RAS" if config.reorient else NATIVE,
            config.spacing,
            anchor="monai",
            tolerance=0.0,
            min_spacing=_scale_spacing(config.spacing, 0.75),
            max_spacing=_scale_spacing(config.spacing, 1.25),
        ),
        normalization=normalization,
        window=Window(config.roi, config.factors, _OVERLAP),
        output=Output("sigmoid" if config.sigmoid else "softmax", resample="labels", inclusive=config.sigmoid),
        labels=_labels(config, folder, regions),
        license=_license(folder),
        citation="Myronenko et al., Auto3DSeg (MONAI)",
        crop=crop,
        order=() if brats else tuple(normalize + turn + cut + resample),
    )


def _scale_spacing(spacing: tuple[float, float, float] | None, factor: float) -> tuple[float, float, float] | None:
    return None if spacing is None else (spacing[0] * factor, spacing[1] * factor, spacing[2] * factor)


def _normalization(config: Auto3DSegConfig) -> tuple[Normalization, ...]:
    """Return the normalization steps for all channels, or those of one channel after the other where they differ."""
    if len(set(config.modes)) == 1:
        return tuple(_steps(config.modes[0], config))
    return tuple(replace(step, channels=(n,)) for n, mode in enumerate(config.modes) for step in _steps(mode, config))


def _steps(mode: str, config: Auto3DSegConfig) -> list[Normalization]:
    zscore = Normalization("zscore", mask="nonzero")
    if mode == "range":
        assert config.bounds is not None
        low, high = config.bounds
        if low >= high:
            raise PackageError("The configuration's intensity_bounds are turned over.", "Correct them.")
        window = Normalization("window", low=low, high=high, clip=False)
        return [window, Normalization("linear", low=-1.0, high=1.0), Normalization("sigmoid")]
    if mode == "pet":
        return [Normalization("spread"), Normalization("sigmoid")]
    if mode == "none":
        return []
    return [zscore] if mode == "meanstd" else [zscore, Normalization("tanh", high=3.0)]


def _labels(config: Auto3DSegConfig, folder: Path, regions: _Regions) -> tuple[Label, ...]:
    values = regions.values or tuple(range(1, config.classes))
    table_names = _read_label_names(folder / "labels.csv")
    channels = range(len(values)) if config.sigmoid else range(1, config.classes)
    config_names: dict[int, str] = {}
    if config.names and not table_names:
        # Names go with the channels; for exclusive classes background may be left out.
        start = 0 if config.sigmoid or len(config.names) == config.classes else 1
        config_names = dict(enumerate(config.names, start=start))
    colors = palette(len(values))
    return tuple(
        Label(
            value,
            table_names.get(value, "").strip() or config_names.get(channel, "").strip() or f"structure {value}",
            channel,
            colors[n],
        )
        for n, (value, channel) in enumerate(zip(values, channels, strict=True))
    )


def _read_label_names(path: Path) -> dict[int, str]:
    """Return the names by label value from the extension's labels.csv; the dictionary is empty where there is no such file."""
    names: dict[int, str] = {}
    if not path.is_file():
        return names
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                value = row.get("LabelValue") or row.get("label_value") or row.get("Label")
                if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
                    name = row.get("Name") or row.get("name") or row.get("SegmentName")
                    names[int(value)] = name if isinstance(name, str) else ""
    except (OSError, ValueError, csv.Error) as error:
        raise PackageError(f"{path.name} is no table of labels: {error}.", "Correct it, or take it away.") from error
    return names


def _license(folder: Path) -> str:
    for name in ("LICENSE", "LICENSE.txt"):
        if (folder / name).is_file():
            lines = (folder / name).read_text(errors="replace").strip().splitlines()
            return f"{lines[0].strip()} ({name})" if lines else name
    return "unknown: see where the model came from"


def _network(target: str, options: dict[str, Any], weights: Path) -> Any:
    from monai.networks import nets

    arguments = {**options, "dsdepth": options.get("dsdepth") or 1}
    try:
        module = getattr(nets, target)(**arguments)
    except Exception as error:
        # A foreign constructor answers wrong arguments with whatever it runs into.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise PackageError(f"The configuration's network {target} cannot be built: {reason}.", "Correct it.") from error
    load_weights(module, weights)
    return single_output(module.eval(), target)
