"""The seven networks of the study (arXiv 2501.17343), at the study's sizes.

Importing this module needs nothing; building a network needs torch and MONAI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import DependencyError, InputError

if TYPE_CHECKING:
    from torch import nn

Size = tuple[int, int, int]
PATCH: Size = (96, 96, 96)


@dataclass(frozen=True)
class StudyNetwork:
    """One network of the study.

    Attributes:
        classes: output channels, background included.
        engine_mb: the size in MB of the study's FP32 engine.
        multiples: the numbers that the sides of a patch must be multiples of.
        fixed_by: what ties an exported graph to one patch size; empty if the graph takes any of the multiples.
        note: what differs from the study's, and why.
        build: a function that builds the module for a patch size.
    """

    name: str
    title: str
    data: str
    classes: int
    engine_mb: float
    multiples: Size
    fixed_by: str
    build: Callable[[Size], Any]
    note: str = ""

    @property
    def free_size(self) -> bool:
        """Whether one exported graph takes patches of any size."""
        return not self.fixed_by


def _build_unet(patch: Size) -> Any:
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, 14, features=(32, 32, 64, 128, 256, 32), norm="batch", act="relu")


def _build_transunet(patch: Size) -> Any:
    from .transunet import TransUNet

    return TransUNet(1, 14, patch)


def _build_nnunet(patch: Size) -> Any:
    from .nnunet import plain_nnunet

    return plain_nnunet(105)


def _build_swinunetr(patch: Size) -> Any:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=105, feature_size=48)


def _build_segresnet(patch: Size) -> Any:
    from monai.networks.nets import SegResNet

    return SegResNet(3, 48, 1, 105, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))


def _build_unest(patch: Size) -> Any:
    from .unest import UNesT

    return UNesT(1, 133, patch)


def _build_vista3d(patch: Size) -> Any:
    from types import SimpleNamespace

    from monai.networks.nets.segresnet_ds import SegResNetDS2
    from monai.networks.nets.vista3d import ClassMappingClassify

    from .vista3d import AutomaticVista3D

    # The parts of MONAI's vista3d132 that the automatic mode needs; its point head takes no 28 filters.
    width = 28
    encoder = SegResNetDS2(3, width, 1, width, norm="instance", blocks_down=(1, 2, 2, 4, 4), dsdepth=1)
    parts = SimpleNamespace(image_encoder=encoder, class_head=ClassMappingClassify(512, width))
    return AutomaticVista3D(parts, range(1, 105))


_POSITIONS = "its learned positions, one for each voxel of the patch"
_NETWORKS = (
    StudyNetwork("unet", "U-Net", "BTCV", 14, 23.11, (16, 16, 16), "", _build_unet),
    StudyNetwork("transunet", "TransUNet", "BTCV", 14, 351.85, PATCH, _POSITIONS, _build_transunet),
    StudyNetwork(
        "nnunet",
        "nnU-Net",
        "TotalSegmentator V2",
        105,
        107.84,
        (32, 32, 32),
        "",
        _build_nnunet,
        "nnU-Net's own plan for this patch (six levels, 32 to 320 filters, two convolutions a level) is 16 % larger than the "
        "study's engine, whose plan is not published",
    ),
    StudyNetwork(
        "swinunetr",
        "SwinUNETR",
        "TotalSegmentator V2",
        105,
        247.96,
        (32, 32, 32),
        "its shifted windows: torch's exporter writes down how many fit into the patch it sees",
        _build_swinunetr,
    ),
    StudyNetwork("segresnet", "SegResNet", "TotalSegmentator V2", 105, 170.44, (8, 8, 8), "", _build_segresnet),
    StudyNetwork("unest", "UNesT", "Whole Brain", 133, 349.41, PATCH, _POSITIONS, _build_unest),
    StudyNetwork(
        "vista3d",
        "VISTA3D",
        "TotalSegmentator V2",
        105,
        264.57,
        (16, 16, 16),
        "",
        _build_vista3d,
        "28 filters give the size of the study's engine; the released weights have 48 (785 MB). Automatic road with 104 "
        "fixed classes; point prompts and zero-shot classes are left out",
    ),
)
STUDY = {network.name: network for network in _NETWORKS}


def study_network(name: str) -> StudyNetwork:
    """Return the network of that name.

    Raises:
        InputError: there is none.
    """
    if name not in STUDY:
        raise InputError(f"There is no network {name!r}.", f"The study's are: {', '.join(STUDY)}.")
    return STUDY[name]


def make(name: str | StudyNetwork, weights: str | None = None, *, seed: int = 0) -> nn.Module:
    """Return a network (of the study, by its name) in evaluation mode, with random weights (of a fixed seed) or those of a checkpoint.

    Args:
        weights: a file with a state dictionary, read without running code.

    Raises:
        DependencyError: torch or MONAI is not installed.
        InputError: an unknown name, or weights that do not fit.
    """
    network = study_network(name) if isinstance(name, str) else name
    try:
        import torch

        torch.manual_seed(seed)
        module = network.build(PATCH)
    except ImportError as error:
        raise DependencyError(
            f"{network.title} cannot be made: {str(error).splitlines()[0]}.",
            "Install it with: pip install 'medquantint8[import]'",
        ) from error
    if weights is not None:
        from ..checkpoints import load_weights

        load_weights(module, weights)
    module.eval()
    return module
