"""What the Slicer extension does with a model of Auto3DSeg, by MONAI's own transforms, beside an import.

The transforms stand in the order of the extension's inference script (lassoan/SlicerMONAIAuto3DSeg), with the weights read as data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError
from ..imaging.volume import Volume
from .auto3dseg_config import Auto3DSegConfig
from .original_software import at_work


@dataclass(frozen=True)
class Auto3DSegModel:
    """A model as the Slicer extension's pipeline needs it.

    Attributes:
        config: The configuration of the model.
        brats: Whether the extension treats the model as one of BraTS.
        values: The label value of each structure, in the order of the output channels.
        network: The function that builds the module, which maps (N, C, I, J, K) to (N, classes, I, J, K).
    """

    config: Auto3DSegConfig
    brats: bool
    values: tuple[int, ...]
    network: Callable[[], Any]


def auto3dseg_original(model: Auto3DSegModel) -> Auto3DSegPipeline:
    """Return the extension's pipeline for a model.

    Raises:
        DependencyError: MONAI is not installed.
    """
    try:
        from monai.transforms import Compose
    except ImportError as error:
        raise DependencyError(
            "MONAI is not installed.", "Install it with: pip install 'medquantint8[import]'"
        ) from error
    with at_work("MONAI"):
        return Auto3DSegPipeline(model, Compose(_transforms(model.config, model.brats)), model.network().eval())


def _transforms(config: Auto3DSegConfig, brats: bool) -> list[Any]:
    """Return the transforms of a dictionary with image0, image1 and so on, whose result is ``image``."""
    from monai.transforms import ConcatItemsd, CropForegroundd, Orientationd, Spacingd

    keys = [f"image{n}" for n in range(config.channels)]
    concatenation = ConcatItemsd(keys=keys, name="image", dim=0)
    space: list[Any] = [Orientationd(keys="image", axcodes="RAS", labels=None)] if config.reorient else []
    source = "image0" if len(config.modes) > 1 and not brats else "raw"
    if config.crop:
        space.append(
            CropForegroundd(keys="image", source_key="image" if brats else source, margin=10, allow_smaller=True)
        )
    if config.spacing is not None:
        pixdim = np.array(config.spacing)
        limits: dict[str, Any] = {"min_pixdim": 0.75 * pixdim, "max_pixdim": 1.25 * pixdim}
        space.append(Spacingd(keys="image", pixdim=config.spacing, mode="bilinear", dtype=np.float32, **limits))
    if brats:
        return [concatenation, *space, *_intensity("image", config.modes[0], config)]
    if len(config.modes) == 1:
        return [concatenation, *_intensity("image", config.modes[0], config), *_turn_source(config, source, space)]
    each = [step for key, mode in zip(keys, config.modes, strict=True) for step in _intensity(key, mode, config)]
    return [*each, concatenation, *_turn_source(config, source, space)]


def _turn_source(config: Auto3DSegConfig, source: str, space: list[Any]) -> list[Any]:
    """Return the spatial transforms, before which the image in which foreground is looked for is turned like the other."""
    from monai.transforms import Orientationd

    return ([Orientationd(keys=source, axcodes="RAS", labels=None)] if config.reorient else []) + space


def _intensity(key: str, mode: str, config: Auto3DSegConfig) -> list[Any]:
    import torch
    from monai.transforms import Lambdad, NormalizeIntensityd, ScaleIntensityRanged

    if mode == "none":
        return []
    if mode == "range":
        assert config.bounds is not None
        low, high = config.bounds
        scaling = ScaleIntensityRanged(keys=key, a_min=low, a_max=high, b_min=-1, b_max=1, clip=False)
        return [scaling, Lambdad(keys=key, func=torch.sigmoid)]
    if mode == "pet":
        return [Lambdad(keys=key, func=lambda x: torch.sigmoid((x - x.min()) / x.std()))]
    zscore = NormalizeIntensityd(keys=key, nonzero=True, channel_wise=True)
    return [zscore] if mode == "meanstd" else [zscore, Lambdad(keys=key, func=lambda x: 3 * torch.tanh(x / 3))]


@dataclass
class Auto3DSegPipeline:
    """The Slicer extension's pipeline as the original of an import; see :class:`.import_check.OriginalPipeline`."""

    model: Auto3DSegModel
    transform: Any
    network: Any
    _volume: Volume | None = field(default=None, repr=False)
    _image: Any = field(default=None, repr=False)
    _scores: Any = field(default=None, repr=False)

    @property
    def title(self) -> str:
        from importlib.metadata import version

        return f"MONAI {version('monai')} as Slicer's MONAIAuto3DSeg calls it"

    def prepare(self, volume: Volume) -> NDArray[np.float32]:
        return np.asarray(self._prepare_image(volume), np.float32)

    def scores(self, volume: Volume) -> NDArray[np.float32]:
        return np.asarray(self._predict(volume), np.float32)

    def labels(self, volume: Volume) -> NDArray[Any]:
        import torch
        from monai.data import MetaTensor
        from monai.transforms import Invertd

        scores, image = self._predict(volume), self._image
        if self.model.config.sigmoid:
            prediction = (torch.sigmoid(scores) >= 0.5).to(torch.uint8)
        else:
            prediction = torch.softmax(scores, dim=0).argmax(dim=0, keepdim=True).to(torch.uint8)
        data: dict[Any, Any] = {
            "image": image,
            "pred": MetaTensor(prediction, meta=image.meta, applied_operations=image.applied_operations),
        }
        with at_work("MONAI"):
            scan_prediction = Invertd(keys="pred", orig_keys="image", transform=self.transform, nearest_interp=True)(
                data
            )["pred"]
        return self._paint(
            np.asarray(scan_prediction) > 0.5 if self.model.config.sigmoid else np.asarray(scan_prediction)
        ).transpose(2, 1, 0)

    def _paint(self, prediction: NDArray[Any]) -> NDArray[Any]:
        """Return the label values (I, J, K) of regions, each painted over those before it, or of exclusive classes."""
        if self.model.config.sigmoid:
            labels = np.zeros(prediction.shape[1:], np.uint16)
            for value, region in zip(self.model.values, prediction, strict=True):
                labels[region] = value
            return labels
        return np.array([0, *self.model.values], np.uint16)[prediction[0].astype(int)]

    def _prepare_image(self, volume: Volume) -> Any:
        import torch
        from monai.data import MetaTensor

        if self._volume is not volume:
            affine = torch.from_numpy(volume.ijk_to_ras)

            def tensor(data: NDArray[Any]) -> Any:
                return MetaTensor(
                    torch.from_numpy(np.ascontiguousarray(data.astype(np.float32).transpose(0, 3, 2, 1))), affine=affine
                )

            data = {f"image{n}": tensor(channel[None]) for n, channel in enumerate(volume.data)}
            with at_work("MONAI"):
                self._image = self.transform({**data, "raw": tensor(volume.data)})["image"]
            self._volume, self._scores = volume, None
        return self._image

    def _predict(self, volume: Volume) -> Any:
        """Return the blended logits (classes, I, J, K) in network space."""
        import torch
        from monai.inferers import SlidingWindowInfererAdapt

        image = self._prepare_image(volume)
        if self._scores is None:
            inferer = SlidingWindowInfererAdapt(
                roi_size=self.model.config.roi, sw_batch_size=1, overlap=0.625, mode="gaussian"
            )
            with at_work("MONAI"), torch.no_grad():
                self._scores = inferer(image.as_tensor()[None], self.network)[0]
        return self._scores
