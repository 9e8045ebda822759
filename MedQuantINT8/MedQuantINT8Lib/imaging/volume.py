"""Volume: voxels with the matrix that says where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Matrix = NDArray[np.float64]
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Two grids are one if no corner of the volume moves by more than this share of a voxel between them.
GRID_TOLERANCE = 0.01
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: ``size`` (I, J, K) and ``ijk_to_ras``, a 4x4 matrix in millimeters (RAS)."""

    size: tuple[int, int, int]
    ijk_to_ras: Matrix

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimeters between voxel centers along I, J and K."""
        i, j, k = np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def axcodes(self) -> str:
        """The direction towards which I, J and K grow, as three letters (nearest axes for oblique volumes)."""
        letters = ["?"] * 3
        for axis, (world, sign) in enumerate(nearest_axes(self.ijk_to_ras)):
            letters[axis] = _LETTERS[world][sign > 0]
        return "".join(letters)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in milliliters."""
        return abs(float(np.linalg.det(self.ijk_to_ras[:3, :3]))) / 1000.0

    def apart(self, other: Grid) -> float:
        """Return how far two grids of one size lie from each other: the largest distance of their corners, in voxels of this one."""
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.size) - 1)
        offsets = corners @ (other.ijk_to_ras - self.ijk_to_ras)[:3, :3].T + (other.ijk_to_ras - self.ijk_to_ras)[:3, 3]
        return float(np.linalg.norm(offsets, axis=1).max() / max(min(self.spacing), 1e-9))

    def __eq__(self, other: object) -> bool:
        """Return whether voxels lie at the same places: to a hundredth of a voxel at every corner, since files round to float32."""
        if not isinstance(other, Grid) or self.size != other.size:
            return False
        difference = self.ijk_to_ras - other.ijk_to_ras
        if not difference.any():
            return True
        i, j, k = self.size
        corners = np.array([[x, y, z, 1.0] for x in (0, i - 1) for y in (0, j - 1) for z in (0, k - 1)])
        return bool(np.linalg.norm((corners @ difference.T)[:, :3], axis=1).max() <= GRID_TOLERANCE * min(self.spacing))

    def __hash__(self) -> int:
        return hash(self.size)


@dataclass(frozen=True)
class Volume:
    """An image of one or several channels.

    Attributes:
        data: array (C, K, J, I), any numeric dtype.
        ijk_to_ras: 4x4 matrix from voxel indices (I, J, K) to millimeters in RAS. Slicer's ``GetIJKToRASMatrix``.
        name: what messages call it: a file or a node.
        notes: what the reader had to choose or mend, for whoever gets the result.
        dicom_files: the files of the DICOM images that its first channel was read from, in no order; none for other scans.
    """

    data: NDArray[Any]
    ijk_to_ras: Matrix
    name: str = "volume"
    notes: tuple[str, ...] = ()
    dicom_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data.ndim == 3:
            object.__setattr__(self, "data", self.data[None])
        object.__setattr__(self, "ijk_to_ras", np.asarray(self.ijk_to_ras, dtype=np.float64))

    @property
    def grid(self) -> Grid:
        """Where the voxels lie, in I, J, K order (RAS, millimeters)."""
        _, k, j, i = self.data.shape
        return Grid((i, j, k), self.ijk_to_ras)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return int(self.data.shape[0])

    def check(self, channels: int | None = None, label_maps: int = 0) -> None:
        """Refuse what no network can answer for.

        Args:
            label_maps: how many of the last channels are label maps, which may be empty.

        Raises:
            InputError: wrong number of channels, one slice only, zero spacing, singular matrix, NaN or infinite voxels,
                or the same value everywhere.
        """
        if channels is not None and self.channels != channels:
            raise InputError(
                f"{self.name} has {self.channels} channel(s), but the network needs {channels}.",
                "Give one file or node for each channel, in the order of the model's channels.",
            )
        if min(self.grid.size) < 2:
            raise InputError(
                f"{self.name} is {' x '.join(map(str, self.grid.size))} voxels: a single slice, not a volume.",
                "Load the whole series.",
            )
        matrix = self.ijk_to_ras[:3, :3]
        if not np.isfinite(self.ijk_to_ras).all() or min(self.grid.spacing) <= 1e-6:
            raise InputError(
                f"{self.name} has a voxel spacing of zero or a position that is no number.",
                "Repair its header, for example in Slicer's Volumes module.",
            )
        if abs(np.linalg.det(matrix / np.linalg.norm(matrix, axis=0))) < 1e-3:
            raise InputError(
                f"{self.name} has a singular direction matrix: two of its axes are the same.",
                "Repair its header, or export the scan again.",
            )
        for index, channel in enumerate(self.data):
            where = f"{self.name}, channel {index}" if self.channels > 1 else self.name
            if channel.dtype.kind == "f" and not np.isfinite(channel).all():
                count = int(channel.size - np.isfinite(channel).sum())
                raise InputError(
                    f"{where} has {count} voxel(s) that are NaN or infinite.",
                    "Replace them, for example by the value of air, and try again.",
                )
            # Slice by slice: nearly always the first few differ already.
            if index < self.channels - label_maps and all((plane == channel.flat[0]).all() for plane in channel):
                raise InputError(
                    f"{where} has the value {channel.flat[0]} everywhere: there is nothing to segment.",
                    "Choose another volume.",
                )


def nearest_axes(ijk_to_ras: Matrix) -> list[tuple[int, int]]:
    """Return, for each of I, J, K, the RAS axis (0 to 2) it runs along most, each used once, and the sign.

    The assignment is taken from the polar factor of the direction matrix, largest cosine first, so that it agrees with
    what nibabel's ``io_orientation`` does for oblique volumes.
    """
    matrix = ijk_to_ras[:3, :3] / np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    left, _, right = np.linalg.svd(matrix)
    rotation = left @ right
    cosines = np.abs(rotation)
    assignment: dict[int, tuple[int, int]] = {}
    for _ in range(3):
        world, axis = np.unravel_index(int(np.argmax(cosines)), (3, 3))
        assignment[int(axis)] = (int(world), 1 if rotation[world, axis] > 0 else -1)
        cosines[world, :] = cosines[:, axis] = -1
    return [assignment[axis] for axis in range(3)]


@dataclass(frozen=True)
class AxisMap:
    """An exact reorientation: output axis n is input axis ``permutation[n]`` (I, J, K order), flipped if ``flips[n]``."""

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, data: NDArray[Any]) -> NDArray[Any]:
        """Reorient an array whose last three axes are (K, J, I); a view, no copy."""
        lead = data.ndim - 3
        order = [lead + 2 - self.permutation[2 - n] for n in range(3)]
        transposed = data.transpose(*range(lead), *order)
        steps = [slice(None, None, -1 if self.flips[2 - n] else 1) for n in range(3)]
        return transposed[(slice(None),) * lead + tuple(steps)]

    def inverse(self) -> AxisMap:
        """Return the map that undoes this one."""
        back = [0, 0, 0]
        flips = [False, False, False]
        for out_axis, in_axis in enumerate(self.permutation):
            back[in_axis] = out_axis
            flips[in_axis] = self.flips[out_axis]
        return AxisMap((back[0], back[1], back[2]), (flips[0], flips[1], flips[2]))

    def map_grid(self, grid: Grid) -> Grid:
        """Return the grid of a volume on ``grid`` after :meth:`apply`; every voxel keeps its place in the patient."""
        matrix = grid.ijk_to_ras.copy()
        for out_axis, in_axis in enumerate(self.permutation):
            column = grid.ijk_to_ras[:3, in_axis]
            if self.flips[out_axis]:
                matrix[:3, 3] += column * (grid.size[in_axis] - 1)
            matrix[:3, out_axis] = -column if self.flips[out_axis] else column
        i, j, k = (grid.size[axis] for axis in self.permutation)
        return Grid((i, j, k), matrix)


def axis_map(grid: Grid, orientation: str) -> AxisMap:
    """Return the reorientation that brings ``grid`` as near as flips and swaps can to ``orientation`` (such as "RAS")."""
    axes = nearest_axes(grid.ijk_to_ras)
    permutation, flips = [], []
    for letter in orientation:
        world = next(w for w, pair in enumerate(_LETTERS) if letter in pair)
        sign = 1 if letter == _LETTERS[world][1] else -1
        source = next(axis for axis, (w, _) in enumerate(axes) if w == world)
        permutation.append(source)
        flips.append(axes[source][1] != sign)
    return AxisMap((permutation[0], permutation[1], permutation[2]), (flips[0], flips[1], flips[2]))


def to_sitk(data: NDArray[Any], grid: Grid) -> Any:
    """Return a SimpleITK image (LPS) of one channel, array (K, J, I). Spacing and direction are taken from the matrix."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data))
    lps = LPS_FROM_RAS @ grid.ijk_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def matrix_from_sitk(image: Any) -> Matrix:
    """Return the IJK-to-RAS matrix of a 3D SimpleITK image."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return LPS_FROM_RAS @ lps


def _with_border(
    data: NDArray[Any], to_source: Matrix, target_size: tuple[int, int, int], outside: str = "border"
) -> tuple[NDArray[Any], Matrix]:
    """Continue a scan where the target reaches up to two voxels beyond its outermost ones: by these, or by zeros.

    SimpleITK takes the nearest voxel outside, along all axes at once; MONAI clamps each axis and still interpolates
    along the others. With the border repeated both give the same.
    """
    corners = np.array(
        [
            [i, j, k, 1]
            for i in (0, target_size[0] - 1)
            for j in (0, target_size[1] - 1)
            for k in (0, target_size[2] - 1)
        ]
    )
    source_corners = corners @ to_source.T[:, :3]
    last = np.array(data.shape[::-1]) - 1
    # Up to half a voxel beyond, SimpleITK's own answer is the border, but not at half a voxel itself, where a grid of half the spacing ends;
    # zeros are blended in from the outermost centers on.
    room = 0.499 if outside == "border" else 1e-5
    before = np.clip(np.ceil(-source_corners.min(axis=0) - room), 0, 2).astype(int)
    after = np.clip(np.ceil(source_corners.max(axis=0) - last - room), 0, 2).astype(int)
    if not (before.any() or after.any()):
        return data, to_source
    return _pad(data, to_source, before, after, "edge" if outside == "border" else "constant")


def _pad(
    data: NDArray[Any], to_source: Matrix, before: NDArray[Any], after: NDArray[Any], mode: Any
) -> tuple[NDArray[Any], Matrix]:
    shifted = to_source.copy()
    shifted[:3, 3] += before
    return np.pad(data, list(zip(before[::-1], after[::-1], strict=True)), mode=mode), shifted


def _spline_of_two_voxels(data: NDArray[Any], source: Grid, target: Grid, to_source: Matrix) -> NDArray[Any]:
    """As :func:`resample` by a spline, of a channel (K, J, I) with two voxels along an axis, beyond which SimpleITK reads other memory.

    Such axes are mirrored here, as SimpleITK does it with longer ones.
    """
    thin = np.array([size == 2 for size in source.size])
    mirrored, shift = _pad(data, np.eye(4), thin.astype(int), thin.astype(int), "reflect")
    planes, rows, columns = mirrored.shape
    splined = resample(
        mirrored, Grid((columns, rows, planes), source.ijk_to_ras @ np.linalg.inv(shift)), target, "bspline"
    )
    nearest = resample(data, source, target, "nearest")
    k, j, i = np.ogrid[tuple(slice(size) for size in target.size[::-1])]
    for axis in np.flatnonzero(thin):
        place = to_source[axis, 0] * i + to_source[axis, 1] * j + to_source[axis, 2] * k + to_source[axis, 3]
        splined = np.where((place >= -0.5) & (place < 1.5), splined, nearest)
    return splined


_INTERPOLATORS = {"linear": "sitkLinear", "bspline": "sitkBSpline", "nearest": "sitkNearestNeighbor"}


#: nnU-Net resamples slice by slice where the longest side of a voxel is more than this many times the shortest.
ANISOTROPY = 3.0


def slice_axis(source: Grid, target: Grid) -> int | None:
    """Return the I, J or K axis across which nnU-Net does not interpolate, or None (Isensee et al., Nature Methods 2021)."""
    for grid in (source, target):
        spacing = np.array(grid.spacing)
        if spacing.max() / spacing.min() > ANISOTROPY:
            longest = np.flatnonzero(spacing == spacing.max())
            return int(longest[0]) if len(longest) == 1 else None
    return None


def resample_by_slices(data: NDArray[Any], source: Grid, target: Grid, interpolation: str) -> NDArray[Any]:
    """Resample as :func:`resample` does, but with the nearest slice across the axis that :func:`slice_axis` names.

    For grids that differ in spacing and size only, not in direction.
    """
    axis = slice_axis(source, target)
    if axis is None:
        return resample(data, source, target, interpolation)
    # First the target's voxels inside the source's slices, then the nearest slice for each of the target's.
    size, matrix = list(target.size), target.ijk_to_ras.copy()
    size[axis] = source.size[axis]
    matrix[:3, axis] = source.ijk_to_ras[:3, axis]
    to_source = np.linalg.inv(source.ijk_to_ras) @ target.ijk_to_ras
    origin = to_source[:3, 3].copy()
    origin[axis] = 0.0
    matrix[:3, 3] = (source.ijk_to_ras @ np.append(origin, 1.0))[:3]
    between = Grid((size[0], size[1], size[2]), matrix)
    return resample(resample(data, source, between, interpolation), between, target, "nearest")


def resample(
    data: NDArray[Any], source: Grid, target: Grid, interpolation: str, *, outside: str = "border", border: int = 0
) -> NDArray[Any]:
    """Sample one channel (K, J, I) of ``source`` at the voxel centers of ``target``.

    Outside the source the nearest voxel's value is taken, as MONAI's ``padding_mode="border"`` does. float arrays stay
    float32; integer arrays keep their dtype with "nearest" and become float32 otherwise.

    Args:
        outside: "zeros" for 0 outside the source, which is blended in between its outermost voxels and the next (linear only).
        border: so many of the outermost voxels are repeated before a spline is fitted; without them it is mirrored.
    """
    if source == target:
        return data if interpolation == "nearest" else data.astype(np.float32, copy=False)
    import SimpleITK as sitk

    # Both grids are moved into source's voxel space: SimpleITK then handles sheared or left-handed matrices as well.
    if interpolation != "nearest":
        data = data.astype(np.float32, copy=False)
    to_source = np.linalg.inv(source.ijk_to_ras) @ target.ijk_to_ras
    if interpolation == "linear":
        data, to_source = _with_border(data, to_source, target.size, outside)
    elif border:
        data, to_source = _pad(data, to_source, np.full(3, border), np.full(3, border), "edge")
    elif interpolation == "bspline" and 2 in data.shape:
        return _spline_of_two_voxels(data, source, target, to_source)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data))
    transform = sitk.AffineTransform(to_source[:3, :3].ravel().tolist(), to_source[:3, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in target.size])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(getattr(sitk, _INTERPOLATORS[interpolation]))
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetOutputPixelType(image.GetPixelID())
    return sitk.GetArrayFromImage(resampler.Execute(image))
