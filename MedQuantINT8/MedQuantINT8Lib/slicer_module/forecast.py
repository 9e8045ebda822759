"""What a run will be, told before it starts: engine, precision, time and memory; what is not known is not made up."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path

from ..engines import backend, backend_names
from ..errors import MedQuantError
from ..files import parse_json, split_paths
from ..imaging.region_of_interest import at_least_two, cut_volume, outer_box
from ..imaging.volume import Volume
from ..inference.engine_choice import EngineChoice
from ..inference.memory_estimate import estimate, network_shape_of
from ..inference.segmenter import SegmentationOptions, window_in_force, window_of
from ..inference.windows import plan_windows
from ..models.installed import holds_int8, source_paths
from ..models.package import MODEL_JSON, ModelPackage, peek
from ..models.spec import ModelSpec
from ..models.task import TaskSpec
from ..models.task_package import describe, is_task, peek_task
from .run_records import RunRecord, find_run, keep_number, kept_number, model_stamp

#: Of a voxel of the label map, at most.
_LABEL_BYTES = 2


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it starts.

    Attributes:
        engine: title of the engine, or an empty text where the program will choose it.
        precision: "int8", "fp16" or "fp32", or an empty text where the program will choose it.
        seconds: by the last run of the same kind with this model on this computer; None before the first.
        at_most: whether it may be less: of a task only the parts that have the chosen structures are run.
        memory_bytes: beside the scan itself, from the sizes of network and scan; None where they cannot be looked at.
    """

    engine: str
    precision: str
    seconds: float | None
    memory_bytes: int | None
    at_most: bool = False


def forecast(paths: str, volume: Volume, choice: EngineChoice, options: SegmentationOptions) -> Forecast:
    """Look at what was recorded and at the sizes of things; nothing is built, loaded or run.

    Args:
        paths: of the model's packages, joined by commas.

    Raises:
        InputError: a region of interest that lies outside of the scan.
    """
    seen = seen_part(volume, options)
    record = find_run(paths, choice, options)
    if record is None and options.roi is not None:
        record = find_run(paths, choice, replace(options, roi=None))
    packages = [Path(path) for path in split_paths(paths)]
    spec = describe(packages[0])
    precision = choice.precision if record is None else record.precision
    if precision == "auto":
        precision = "" if holds_int8(packages) else "fp32"
    title = record.engine if record is not None else _title(choice.name)
    seconds, memory = _seconds(record, seen, spec, options), _memory(paths, seen, precision, options)
    if memory is not None:
        # The label map has the size of the whole scan.
        memory += _LABEL_BYTES * (int(volume.data[0].size) - int(seen.data[0].size))
    return Forecast(title, precision, seconds, memory, isinstance(spec, TaskSpec) and options.structures is not None)


def seen_part(volume: Volume, options: SegmentationOptions) -> Volume:
    """Return the part of a volume that the network is given, about: the box around the region of interest, or the whole.

    Raises:
        InputError: a region of interest that lies outside of the volume.
    """
    if options.roi is None:
        return volume
    return cut_volume(volume, at_least_two(outer_box(volume.grid, options.roi, volume.name), volume.grid.size))


def _title(name: str) -> str:
    return backend(name).title if name in backend_names() else ""


def _seconds(
    record: RunRecord | None, volume: Volume, spec: ModelSpec | TaskSpec, options: SegmentationOptions
) -> float | None:
    if record is None:
        return None
    voxels = int(volume.data[0].size)
    if isinstance(spec, TaskSpec) or (spec.window.whole_volume and options.patch is None):
        # Networks with windows of their own, or one window as large as the scan: the work grows with the scan.
        windows = max(1, round(record.windows * voxels / max(1, record.voxels)))
    else:
        patch = window_of(spec, options)[0]
        windows = plan_windows(network_shape_of(volume, spec), window_in_force(spec, options), patch).count
    return record.seconds(windows, voxels)


def _memory(paths: str, volume: Volume, precision: str, options: SegmentationOptions) -> int | None:
    """Bytes that the run needs, of the largest package; kept, since looking at a large network takes a moment."""
    if importlib.util.find_spec("onnx") is None:
        return None
    asked = replace(options, roi=None, structures=None)
    key = json.dumps(
        ["memory", model_stamp(paths), precision, volume.data.shape, list(volume.grid.spacing), repr(asked)]
    )
    known = kept_number(key)
    if known is not None:
        return known
    try:
        needed = max(_estimate(path, volume, precision, options) for path in _packages(paths))
    except MedQuantError:
        return None
    if options.roi is None:
        # A region that is dragged has a hundred sizes, which would push out what is worth to be kept.
        keep_number(key, needed)
    return needed


def _packages(paths: str) -> list[Path]:
    """The packages that are run: those that were given, or those of a task."""
    first = Path(split_paths(paths)[0])
    if not is_task(first):
        return [Path(path) for path in split_paths(paths)]
    spec = peek_task(first)
    return [path for source in spec.sources for path in source_paths(spec, source, first)]


def _estimate(path: Path, volume: Volume, precision: str, options: SegmentationOptions) -> int:
    if path.is_dir():
        # Its files are checked when they are run; their sizes are enough here.
        spec, _files = peek(path)
        hashes = parse_json((path / MODEL_JSON).read_text(encoding="utf-8"))["files"]
        package = ModelPackage(path, spec, hashes)
        return estimate(package, precision or "int8", volume, options).total
    with ModelPackage.load(path) as package:
        return estimate(package, precision or "int8", volume, options).total
