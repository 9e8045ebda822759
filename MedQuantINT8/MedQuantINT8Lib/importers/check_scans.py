"""Synthetic scans on which an import is compared with the software it comes from; they are awkward where imports go wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..imaging.volume import Grid, Volume, axis_map
from ..models.spec import ModelSpec

#: How far apart the slices of synthetic scans are, in finest sides of the network's voxel, for networks that work slice by slice: with the
#: forms' own voxels some scans are then anisotropic enough for nnU-Net to resample by slices, and some are not.
_BETWEEN_SLICES = 2.2
#: No scan has more voxels than this in a channel.
_MOST_VOXELS = 4_000_000


@dataclass(frozen=True)
class _Form:
    """The description of one synthetic scan: ``extent`` in patches and ``voxel`` in the network's voxels along R, A, S."""

    name: str
    extent: tuple[float, float, float]
    voxel: tuple[float, float, float]
    orientation: str = "RAS"
    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: float = 0.0
    zeros: bool = False
    negative: bool = False


_FORMS = (
    _Form("odd sizes, anisotropic, turned", (1.2, 0.8, 0.9), (0.71, 0.83, 2.37), "PLI"),
    _Form("oblique, negative values", (0.9, 1.15, 0.7), (1.3, 0.9, 1.1), "LPS", (13.0, -7.0, 21.0), negative=True),
    _Form("oblique by rounding, holes of zeros", (0.85, 0.75, 1.15), (1.21, 1.21, 1.47), "RAS", noise=2e-5, zeros=True),
    _Form("smaller than the patch", (0.55, 0.6, 0.45), (0.77, 0.93, 1.61), "LAS"),
    _Form(
        "the network's own voxels, holes of zeros, negative values",
        (0.8, 0.9, 0.7),
        (1.0, 1.0, 1.0),
        zeros=True,
        negative=True,
    ),
)


def make_synthetic_scans(spec: ModelSpec) -> list[Volume]:
    """Make scans for a network, each named by what it is: turned, oblique, of odd sizes, with holes of zeros, negative, small.

    Their sizes follow the network's patch and spacing, so that a sliding window has work to do; gray values follow the limits of its
    normalization and leave them on both sides. Each channel has another brightness. The data is float32; matrices are numbers that
    float32 holds, so that a NIfTI file keeps them.
    """
    rng = np.random.default_rng(0)
    return [_make_scan(form, spec, rng) for form in _FORMS]


def _make_scan(form: _Form, spec: ModelSpec, rng: np.random.Generator) -> Volume:
    voxel = np.array(form.voxel) * _spacing_ras(spec)
    size = np.array(form.extent) * _patch_ras(spec) / np.array(form.voxel)
    size *= min(1.0, (_MOST_VOXELS / float(np.prod(size))) ** (1 / 3))
    i, j, k = (_undisputed(max(9, int(n) | 1), side) for n, side in zip(size, form.voxel, strict=True))
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation(form.degrees) * voxel
    if form.noise:
        matrix[:3, :3] += form.noise * rng.standard_normal((3, 3)) * voxel
    matrix[:3, 3] = (-37.25, 12.5, 80.75)
    grid = Grid((i, j, k), matrix)
    turn = axis_map(grid, form.orientation)
    channels = [_channel((k, j, i), spec, number, form, rng) for number in range(spec.scans)]
    channels += [_label_map((k, j, i), channel.one_hot, rng) for channel in spec.channels[spec.scans :]]
    data = np.ascontiguousarray(turn.apply(np.stack(channels)))
    ijk_to_ras = turn.map_grid(grid).ijk_to_ras.astype(np.float32).astype(np.float64)
    return Volume(data, ijk_to_ras, f"synthetic scan ({form.name})")


def _undisputed(count: int, side: float) -> int:
    """Return so many voxels or a few more: not so many that they make a half in the network's voxels, which rounds either way."""
    while abs(count * side % 1 - 0.5) < 0.02:
        count += 2
    return count


def _patch_ras(spec: ModelSpec) -> NDArray[np.float64]:
    return np.array(_along_ras(spec, spec.window.patch_size), dtype=float)


def _spacing_ras(spec: ModelSpec) -> NDArray[np.float64]:
    spacing = spec.geometry.spacing or (None, None, None)
    finest = min((value for value in spacing if value is not None), default=1.0)
    sides = spec.window.patch_size
    a, b, c = (
        value if value is not None else _BETWEEN_SLICES * finest if side == 1 else usual
        for usual, value, side in zip((1.1, 1.0, 1.3), spacing, sides, strict=True)
    )
    return np.array(_along_ras(spec, (a, b, c)), dtype=np.float64)


def _along_ras(spec: ModelSpec, values: tuple[float, float, float]) -> list[float]:
    """Return numbers along the tensor's axes as numbers along R, A and S, where the orientation says which axes they are."""
    ijk = list(values) if spec.geometry.axis_order == "IJK" else list(reversed(values))
    axes = {letter: axis for axis, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    places = [axes.get(letter) for letter in spec.geometry.orientation]
    if spec.geometry.reorient == "last" or sorted(str(p) for p in places) != ["0", "1", "2"]:
        return ijk
    return [ijk[places.index(axis)] for axis in range(3)]


def _rotation(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (n for n in range(3) if n != axis)
        axis_rotation = np.eye(3)
        axis_rotation[a, a] = axis_rotation[b, b] = np.cos(angle)
        axis_rotation[a, b], axis_rotation[b, a] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ axis_rotation
    return rotation


def _channel(
    shape: tuple[int, int, int], spec: ModelSpec, number: int, form: _Form, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw smooth blobs with noise, (K, J, I): so smooth that interpolation is well defined, so rough that a wrong voxel shows."""
    coarse = rng.standard_normal([n // 6 + 3 for n in shape])
    values = _stretch(coarse, shape) + 0.15 * rng.standard_normal(shape)
    values = (values - values.min()) / (values.max() - values.min())
    low, high = _limits(spec, number)
    margin = 0.2 * (high - low)
    intensities = low - margin + values * (high - low + 2 * margin)
    if not form.negative and low >= 0:
        intensities = np.maximum(intensities, 0.02 * (high - low))
    elif form.negative and low >= 0:
        intensities -= 0.3 * (high - low)
    if form.zeros:
        # A frame of zeros, wider on one side, and a hole inside; another place in each channel.
        k, j, i = shape
        if 1 not in spec.window.patch_size or spec.crop.kind != "none":
            # A slice of nothing but zeros has no scores to compare: normalizing a constant layer divides rounding errors by each other.
            intensities[:, : j // 8 + number] = intensities[:, :, -(i // 9 + 1) :] = intensities[: k // 10 + 1] = 0
        intensities[k // 3 : k // 2, j // 3 + number : j // 2 + number, i // 2 : 2 * i // 3] = 0
    return intensities.astype(np.float32)


def _label_map(shape: tuple[int, int, int], values: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a label map (K, J, I) of smooth structures beside each other, about half of it background."""
    coarse = _stretch(rng.standard_normal([n // 5 + 3 for n in shape]), shape)
    limits = np.quantile(coarse, np.linspace(0.5, 1, len(values) + 1)[:-1])
    return np.array([0, *values], np.float32)[np.digitize(coarse, limits)]


def _limits(spec: ModelSpec, number: int) -> tuple[float, float]:
    """Return the range of gray values in which the network sees differences."""
    for step in spec.normalization:
        if step.kind in ("window", "nnunet_ct") and step.low is not None and step.high is not None:
            return step.low, step.high
    if spec.modality.upper() in ("CT", "CTA", "HU"):
        return -900.0, 900.0
    return 0.0, 300.0 * 4.0**number


def _stretch(coarse: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Interpolate a coarse array linearly, axis by axis, to a shape."""
    values = coarse
    for axis, size in enumerate(shape):
        place = np.linspace(0, values.shape[axis] - 1.001, size)
        below = place.astype(int)
        share = (place - below).reshape([-1 if n == axis else 1 for n in range(3)])
        values = np.take(values, below, axis) * (1 - share) + np.take(values, below + 1, axis) * share
    return values
