"""The kernels of the sliding window on the GPU and of what comes before and after it: the CUDA C of this folder, and its functions' names."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ..engines.cuda.source_files import cuda_text

#: One function for each kind of volume and of network (``float32`` or ``float16``).
NAMES = (
    *(f"cut_{source}_{target}" for source in ("f32", "i16", "u16", "u8") for target in ("f32", "f16")),
    "blend_f32",
    "blend_f16",
    "reduce_planes",
    "merge_labels",
)
#: Scores to labels on the scan's grid; one function for each kind of label map (``uint8`` or ``uint16``).
RESAMPLING_NAMES = (
    "prepare_planes",
    "gather_f32",
    "gather_f16",
    "resample_u8",
    "resample_u16",
    "clear_planes",
    "place_u8",
    "place_u16",
)
#: A scan to network space; the first two for each kind of voxel.
PREPARATION_NAMES = (
    *(
        f"{name}_{kind}"
        for name in ("lay_out", "weigh_axes")
        for kind in ("i8", "u8", "i16", "u16", "i32", "u32", "f32", "f64")
    ),
    "weigh_axis",
    "find_extremes",
    "clip_slices",
    "sum_values",
    "count_ranks",
    "change_values",
)
#: One function for each kind of network.
MEAN_NAMES = ("add_scores_f32", "add_scores_f16")
#: Parts of structures; one function for each kind of label map.
COMPONENT_NAMES = (
    "mark_parts",
    *(
        f"{name}_{kind}"
        for name in ("start_runs", "join_runs", "measure_parts", "list_parts", "erase_parts")
        for kind in ("u8", "u16")
    ),
)
CHECK_NAMES = ("score_f32", "score_f16")
#: A part's labels painted over a task's; one function for each kind of either label map.
MERGING_NAMES = tuple(f"paint_{source}_{target}" for source in ("u8", "u16") for target in ("u8", "u16"))
_HERE = Path(__file__).parent


def source() -> str:
    """Return the CUDA C text of the sliding window's kernels."""
    return cuda_text(_HERE / "sliding_window.cu")


def resampling_source() -> str:
    """Return the CUDA C text of the kernels that take scores to the scan's grid."""
    return cuda_text(_HERE / "score_resampling.cu")


def preparation_source() -> str:
    """Return the CUDA C text of the kernels that bring a scan to network space."""
    return cuda_text(_HERE / "scan_preparation.cu")


def mean_source() -> str:
    """Return the CUDA C text of the mean of several networks' scores."""
    return cuda_text(_HERE / "mean_scores.cu")


def components_source() -> str:
    """Return the CUDA C text of the parts of structures."""
    return cuda_text(_HERE / "connected_components.cu")


def merging_source() -> str:
    """Return the CUDA C text of the merging of a task's parts."""
    return cuda_text(_HERE / "label_merging.cu")


def check_source() -> str:
    """Return the CUDA C text of the network with which the way through the GPU is checked."""
    return cuda_text(_HERE / "road_check.cu")


@cache
def road_version() -> str:
    """Return a digest of all that decides how scans and scores go through a GPU: another state of it is checked anew."""
    names = ("array_layout", "axis_interpolation", "sampling_weights")
    imaging = [_HERE.parent / "imaging" / f"{name}.py" for name in names]
    compiling = [_HERE.parent / "engines" / "cuda" / name for name in ("compiler.py", "source_files.py")]
    digest = hashlib.sha256()
    for path in [*road_files(), *imaging, *compiling]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def road_files() -> list[Path]:
    """Return this folder's CUDA C, and the Python that launches it."""
    return sorted(path for pattern in ("*.cu", "*.cuh", "gpu_*.py") for path in _HERE.glob(pattern))
