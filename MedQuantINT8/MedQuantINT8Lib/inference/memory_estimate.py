"""How much memory a segmentation will take, told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..imaging.volume import Volume
from ..models.package import ModelPackage
from ..models.spec import ModelSpec
from ..system import available_memory
from .activation_sizes import activation_bytes
from .mirroring import mirror_axes_of
from .segmenter import SegmentationOptions, whole_volume_patch, window_of

_GB = 1 << 30
_SMALLEST_BLENDING = 256 << 20
#: An engine keeps its weights in another order beside the file that it read them from.
_WEIGHT_COPIES = 2.0
#: More windows a call fill no GPU better, and make cancelling slow.
MOST_WINDOWS = 4
#: Of a GPU's memory, what windows may take: the other half is for scores, and for other programs.
_GPU_SHARE = 0.5


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes beside the volume itself, which is there already.

    Attributes:
        volume: the volume in network space, twice while it is resampled, and the label map.
        engine: weights and the largest set of activations alive at once, for the batch; with mirroring, the reversed patches and their mean.
        blending: for class scores; less is possible, at the price of computing some windows twice.
    """

    volume: int
    engine: int
    blending: int

    @property
    def total(self) -> int:
        return self.volume + self.engine + self.blending

    def in_words(self) -> str:
        return f"about {_in_words(self.total)} ({_in_words(self.engine)} of them for the engine)"


def _in_words(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB // 10 else f"{max(1, round(size / (1 << 20)))} MB"


def estimate(package: ModelPackage, precision: str, volume: Volume, options: SegmentationOptions) -> MemoryEstimate:
    """What segmenting ``volume`` takes, from the sizes of things alone: nothing is loaded or run."""
    spec = package.spec
    shape = network_shape_of(volume, spec)
    voxels = int(np.prod(shape))
    patch = (
        whole_volume_patch(shape, spec)
        if spec.window.whole_volume and options.patch is None
        else window_of(spec, options)[0]
    )
    path = package.onnx_path("int8" if precision == "int8" else "fp32")
    weights = int(_WEIGHT_COPIES * path.stat().st_size)
    activations = max(1, options.batch) * activation_bytes(package, precision, patch)
    if mirror_axes_of(spec, options.mirroring):
        activations += (
            max(1, options.batch) * (spec.input_channels + 2 * spec.output_channels) * int(np.prod(patch)) * 4
        )
    allowed = options.memory_bytes if options.memory_bytes is not None else min(3 * _GB, available_memory() // 2)
    scores = spec.output_channels * voxels * 4
    return MemoryEstimate(
        2 * spec.input_channels * voxels * 4 + voxels + int(np.prod(volume.data.shape[1:])) * 2,
        weights + activations,
        min(scores, allowed),
    )


def gpu_batch(package: ModelPackage, precision: str, options: SegmentationOptions, gpu_bytes: int) -> int:
    """How many windows a call a GPU of that size takes beside weights and scores: at least one, at most :data:`MOST_WINDOWS`, or as many as a window
    has mirrored forms."""
    spec, patch = package.spec, window_of(package.spec, options)[0]
    path = package.onnx_path("int8" if precision == "int8" else "fp32")
    # Both ends in FP32, twice, for copies beside the work; FP16 between them at most.
    ends = 2 * 4 * (spec.input_channels + spec.output_channels) * int(np.prod(patch))
    window = ends + activation_bytes(package, precision, patch) // 2
    # All mirrored forms of a window may go together.
    most = max(MOST_WINDOWS, 1 << len(mirror_axes_of(spec, options.mirroring)))
    return int(min(most, max(1, (_GPU_SHARE * gpu_bytes - _WEIGHT_COPIES * path.stat().st_size) // window)))


def network_shape_of(volume: Volume, spec: ModelSpec) -> tuple[int, int, int]:
    """About how large the volume is in network space: turned axes and the crop are not looked at."""
    grid, geometry = volume.grid, spec.geometry
    if not geometry.resampled or not np.isfinite(grid.spacing).all():
        return grid.size
    if geometry.longest is not None:
        i, j, k = (max(1, round(n * geometry.longest / max(grid.size))) for n in grid.size)
    elif geometry.size is not None:
        i, j, k = (want or have for have, want in zip(grid.size, geometry.size, strict=True))
    else:
        assert geometry.spacing is not None
        # Which axis of the scan is which of the network's is not known here: the finest has the finest spacing.
        wanted = sorted(want or have for have, want in zip(sorted(grid.spacing), geometry.spacing, strict=True))
        i, j, k = (
            max(1, round(n * have / want))
            for n, have, want in zip(grid.size, sorted(grid.spacing), wanted, strict=True)
        )
    return i, j, k


def fitted(
    package: ModelPackage, precision: str, volume: Volume, options: SegmentationOptions
) -> tuple[SegmentationOptions, list[str]]:
    """The options, changed where the memory that is free asks for it, and what was changed, in words.

    Raises:
        InputError: not even the smallest way fits.
    """
    free = available_memory()
    needed = estimate(package, precision, volume, options)
    notes: list[str] = []
    if needed.total <= free:
        return options, notes
    if options.batch > 1:
        options = replace(options, batch=1)
        needed = estimate(package, precision, volume, options)
        notes.append(f"one window at a time: {needed.in_words()} of {free / _GB:.1f} GB free")
    if needed.total > free:
        left = free - needed.volume - needed.engine
        if left < _SMALLEST_BLENDING:
            raise InputError(
                f"Segmenting {volume.name} needs {needed.in_words()}, but only {free / _GB:.1f} GB are free.",
                "Close other programs, crop the volume, or choose a smaller network or patch.",
            )
        options = replace(options, memory_bytes=left)
        notes.append(f"class scores are blended in {left / _GB:.1f} GB, all that is free")
    return options, notes
