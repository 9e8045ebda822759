"""TotalSegmentator's networks: nnU-Net's, between two steps of its own that resample the scan and the label map.

TotalSegmentator (Wasserthal et al., Radiology: Artificial Intelligence 2023) turns a scan to R, A, S, resizes it by SciPy's ``zoom`` to the
network's spacing (cubic, whole numbers), lets nnU-Net segment that as it lies, and resizes the label map back by the nearest voxel. Its tasks
in a box (vessels of the liver and the like) leave resampling to nnU-Net, as any other import does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import Volume
from ..models.spec import ModelSpec, Normalization, Step
from .nnunet_original import NnunetPipeline, TrainedFold, nnunet_original
from .original_software import at_work

#: How a scan reaches nnU-Net's network and labels come back.
Resampling = Literal["nnunet", "totalsegmentator"]
NOTE = "scan and labels are resampled as TotalSegmentator does it: labels, not class scores, by the nearest voxel"
#: The data sets of its networks that it resamples for: the five parts, and all structures at 3 and at 6 mm.
_DATA_SET = re.compile(r"Dataset\d{3}_TotalSegmentator_(part[1-5]_\w+|total_\dmm)_\d+subj\w*")
#: Of the parts' networks at 1.5 mm windows overlap by less, four of five steps of a window.
_PART_OVERLAP = 0.2
_PART = re.compile(r"Dataset\d{3}_TotalSegmentator_part[1-5]_")


def published_data_set(folder: Path, data_set: str) -> str | None:
    """Return the name of the data set of a network that TotalSegmentator publishes and resamples for; None for any other.

    Args:
        folder: the result folder, which lies in one of that name.
        data_set: the name that plans.json has.
    """
    return next((name for name in (data_set, *folder.absolute().parts) if _DATA_SET.fullmatch(name)), None)


def resampled_as_totalsegmentator(spec: ModelSpec, data_set: str) -> ModelSpec:
    """Return the description of an nnU-Net with TotalSegmentator's way to the network and back.

    Args:
        data_set: the name of its data set, by which the parts are known.

    Raises:
        InputError: it has no spacing of its own along each axis, several channels, or statistics over a mask, which TotalSegmentator's do not.
    """
    spacing = spec.geometry.spacing
    one_grid = spacing is not None and None not in spacing
    if not one_grid or len(spec.channels) > 1 or any(step.mask != "all" for step in spec.normalization):
        raise InputError(
            f"{spec.name} is none of TotalSegmentator's networks: these take one scan at one spacing, normalized as a whole.",
            "Give --resampling nnunet.",
        )
    geometry = replace(
        spec.geometry,
        orientation="RAS",
        anchor="corners",
        interpolation="bspline",
        tolerance=0.0,
        spline=None,
        score_spline=None,
        label_spline=None,
    )
    # What nnU-Net reads is a scan of whole numbers at its own spacing: its crop comes after that, and resamples nothing.
    order: list[Step] = ["reorient", "resample", "normalize", "crop"]
    order += ["normalize"] * len(spec.normalization)
    return replace(
        spec,
        geometry=geometry,
        normalization=(Normalization("truncate"), *spec.normalization),
        normalize_in="network",
        order=tuple(order),
        window=replace(spec.window, overlap=_PART_OVERLAP) if _PART.match(data_set) else spec.window,
        output=replace(spec.output, resample="labels"),
        cleaning=tuple(replace(step, where="network") for step in spec.cleaning),
    )


def totalsegmentator_original(fold: TrainedFold, spec: ModelSpec) -> TotalSegmentatorPipeline:
    """TotalSegmentator's steps around nnU-Net with one fold; errors as :func:`.nnunet_original.nnunet_original`."""
    inner = nnunet_original(fold)
    inner.predictor.tile_step_size = 1 - spec.window.overlap
    spacing = spec.geometry.spacing
    assert spacing is not None
    return TotalSegmentatorPipeline(inner, np.array(spacing[::-1], np.float64))


@dataclass
class TotalSegmentatorPipeline:
    """TotalSegmentator's steps around nnU-Net itself; see :class:`.import_check.OriginalPipeline`.

    Its own program is not run: the steps are SciPy's and nibabel's functions, called as it calls them.

    Attributes:
        spacing: (3,) millimeters along I, J and K of the network's grid.
    """

    inner: NnunetPipeline
    spacing: NDArray[np.float64]
    _zoomed: tuple[Volume, Volume] | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        return f"{self.inner.title} between TotalSegmentator's steps"

    def prepare(self, volume: Volume) -> NDArray[np.float32]:
        return self.inner.prepare(self._zoom(volume))

    def scores(self, volume: Volume) -> NDArray[np.float32]:
        return self.inner.scores(self._zoom(volume))

    def labels(self, volume: Volume) -> NDArray[Any]:
        labels = self.inner.labels(self._zoom(volume)).transpose()
        with at_work("TotalSegmentator"):
            import nibabel
            from scipy import ndimage

            canonical = nibabel.as_closest_canonical(_image(volume))
            factors = np.array(canonical.shape) / np.array(labels.shape)
            labels = ndimage.zoom(labels.astype(np.float64), factors, order=0).astype(np.uint8)
            orientations = nibabel.io_orientation(volume.grid.ijk_to_ras)
            back = nibabel.orientations.ornt_transform(nibabel.io_orientation(canonical.affine), orientations)
            return np.ascontiguousarray(nibabel.orientations.apply_orientation(labels, back).transpose())

    def _zoom(self, volume: Volume) -> Volume:
        """Return the scan as nnU-Net gets it."""
        if self._zoomed is None or self._zoomed[0] is not volume:
            with at_work("TotalSegmentator"):
                import nibabel
                from scipy import ndimage

                canonical = nibabel.as_closest_canonical(_image(volume))
                factors = np.array(canonical.header.get_zooms(), np.float64) / self.spacing
                data = ndimage.zoom(canonical.get_fdata(), factors, order=3).astype(np.int32)
                matrix = canonical.affine.copy()
                matrix[:3, :3] /= factors
                zoomed = Volume(data.transpose()[None], matrix, volume.name)
            self._zoomed = volume, zoomed
        return self._zoomed[1]


def _image(volume: Volume) -> Any:
    import nibabel

    return nibabel.Nifti1Image(np.asarray(volume.data[0], np.float64).transpose(), volume.grid.ijk_to_ras)
