"""A model of MONAI Auto3DSeg (SegResNetDS) as the Slicer extension distributes them: model.pt, labels.csv.

model.pt holds the weights and, in ``config``, how the volume is prepared; Auto3DSeg's ``hyper_parameters.yaml`` holds the
same beside weights alone. What the extension does with it is read from its inference script (lassoan/SlicerMONAIAuto3DSeg).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..model_spec import NATIVE, Channel, Crop, Geometry, Label, ModelSpec, Normalization, Output, Window
from .base import Understood, single_output
from .checkpoints import load_weights, read_checkpoint, state_dict_of
from .colors import palette
from .expressions import Config, NotPlain

_OVERLAP = 0.625
_MARGIN = 10


def understand(source: Path) -> Understood:
    """Read model.pt, or a folder with it and what lies beside it.

    Raises:
        PackageError: no configuration in it, or one that is not understood.
    """
    folder = source if source.is_dir() else source.parent
    path = source if source.is_file() else next((p for p in (folder / "model.pt", folder / "model" / "model.pt") if p.is_file()), None)
    if path is None:
        raise PackageError(f"{source} holds no model.pt.", "Give the folder that Auto3DSeg or the Slicer extension made.")
    checkpoint = read_checkpoint(path)
    config = _config(checkpoint, folder, path)
    target = str(config.get("network", {}).get("_target_", "")).rsplit(".", 1)[-1]
    if target not in ("SegResNetDS", "SegResNetDS2"):
        raise PackageError(f"{path.name} holds a {target or 'network without a name'}, not a SegResNetDS.", "Use another importer.")
    spec, notes = _spec(config, folder, path)
    weights = state_dict_of(checkpoint, path.name)
    arguments = {k: v for k, v in config["network"].items() if not k.startswith("_")}
    return Understood(spec, lambda: _network(target, arguments, weights), notes)


def _config(checkpoint: Any, folder: Path, path: Path) -> dict[str, Any]:
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("config"), dict):
        return checkpoint["config"]
    for candidate in (folder / "hyper_parameters.yaml", folder / "configs" / "hyper_parameters.yaml"):
        if candidate.is_file():
            read = Config.read(candidate)
            found = {}
            for key in read._value:
                try:
                    found[key] = read.get(key)
                except NotPlain:
                    continue  # paths and devices of the training machine
            return found
    raise PackageError(f"{path.name} holds no configuration, and no hyper_parameters.yaml lies beside it.", "Copy it there.")


def _spec(config: dict[str, Any], folder: Path, path: Path) -> tuple[ModelSpec, list[str]]:
    notes = []
    sigmoid = bool(config.get("sigmoid", False))
    classes = int(config["network"]["out_channels"])
    channels = int(config["network"].get("in_channels", 1))
    spacing = config.get("resample_resolution") if config.get("resample", True) else None
    a, b, c = (int(n) for n in config["roi_size"])
    levels = len(config["network"].get("blocks_down", (1, 2, 2, 4)))
    factor = 2 ** (levels - 1)
    if any(side % factor for side in (a, b, c)):
        raise PackageError(f"The window {a} x {b} x {c} is no multiple of {factor}, as the network needs.", "Correct roi_size.")
    normalization, pad = _normalization(str(config.get("normalize_mode", "none")), config.get("intensity_bounds"))
    labels = _labels(config, folder, classes, sigmoid)
    if config.get("crop_foreground", True) and spacing is None:
        notes.append(f"the foreground crop keeps a margin of {_MARGIN} voxels")
    if sigmoid:
        notes.append("regions are painted one over the other in the order of their labels")
    return (
        ModelSpec(
            name=re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "auto3dseg",
            version="1",
            modality=str(config.get("modality", "unknown")).upper(),
            channels=tuple(Channel(f"channel {n}") for n in range(channels)),
            geometry=Geometry(
                "IJK",
                "RAS" if config.get("orientation_ras", False) else NATIVE,
                tuple(float(n) for n in spacing) if spacing else None,  # type: ignore[arg-type]
                tolerance=0.25 if spacing else 0.001,
            ),
            normalization=normalization,
            window=Window((a, b, c), (factor,) * 3, _OVERLAP, pad_value=pad),
            output=Output("sigmoid" if sigmoid else "softmax"),
            labels=labels,
            license=_license(folder),
            citation="Myronenko et al., Auto3DSeg (MONAI)",
            crop=Crop("threshold", 0.0, _MARGIN) if config.get("crop_foreground", True) else Crop(),
        ),
        notes,
    )


def _normalization(mode: str, bounds: Any) -> tuple[tuple[Normalization, ...], float]:
    zscore = Normalization("zscore", mask="nonzero")
    if mode in ("range", "ct"):
        if not (isinstance(bounds, list | tuple) and len(bounds) == 2):
            raise PackageError("The configuration has no intensity_bounds.", "Correct it.")
        steps = Normalization("window", low=float(bounds[0]), high=float(bounds[1]), clip=False)
        return (steps, Normalization("linear", low=-1.0, high=1.0), Normalization("sigmoid")), 0.0
    if mode in ("meanstd", "mri"):
        return (zscore,), 0.0
    if mode == "meanstdtanh":
        return (zscore, Normalization("tanh", high=3.0)), 0.0
    if mode == "none":
        return (), 0.0
    raise PackageError(f"Auto3DSeg's normalize_mode {mode!r} is not understood.", "Give a description with --spec.")


def _labels(config: dict[str, Any], folder: Path, classes: int, sigmoid: bool) -> tuple[Label, ...]:
    names: dict[int, str] = {}
    if (path := folder / "labels.csv").is_file():
        with open(path, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                value = row.get("LabelValue") or row.get("label_value") or row.get("Label")
                if value and value.strip().isdigit():
                    names[int(value)] = row.get("Name") or row.get("name") or row.get("SegmentName") or f"label {value}"
    given = config.get("class_names")
    if isinstance(given, list) and not names:
        texts = [str(item if isinstance(item, str) else item.get("name", "")) for item in given]
        start = 1 if sigmoid or len(texts) < classes else 0
        names = {n: text for n, text in enumerate(texts, start=start) if n > 0}
    count = classes if sigmoid else classes - 1
    colors = palette(count)
    return tuple(
        Label(n + 1, names.get(n + 1) or f"structure {n + 1}", n if sigmoid else n + 1, colors[n]) for n in range(count)
    )


def _license(folder: Path) -> str:
    for name in ("LICENSE", "LICENSE.txt"):
        if (folder / name).is_file():
            lines = (folder / name).read_text(errors="replace").strip().splitlines()
            return f"{lines[0].strip()} ({name})" if lines else name
    return "unknown: see where the model came from"


def _network(target: str, arguments: dict[str, Any], weights: dict[str, Any]) -> Any:
    from monai.networks import nets

    cls = getattr(nets, target)
    module = cls(**{**arguments, "dsdepth": arguments.get("dsdepth", 1)})
    load_weights(module, weights)
    return single_output(module.eval(), target)
