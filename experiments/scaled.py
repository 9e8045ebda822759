"""The study's seven networks, narrowed to fit a data set of small crops: same blocks, fewer channels. Each takes its number of classes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

PATCH = (64, 64, 64)


def _unet(classes: int) -> Any:
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, classes, features=(16, 16, 32, 64, 128, 16), norm="batch", act="relu")


def _transunet(classes: int) -> Any:
    from MedQuantINT8Lib.importers.networks.transunet import TransUNet

    return TransUNet(1, classes, PATCH, features=(16, 32, 64), hidden=192, layers=6, heads=6)


def _nnunet(classes: int) -> Any:
    from MedQuantINT8Lib.importers.networks.nnunet import plain_nnunet

    return plain_nnunet(classes, filters=[16, 32, 64, 96, 128])


def _swinunetr(classes: int) -> Any:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=classes, feature_size=12)


def _segresnet(classes: int) -> Any:
    from monai.networks.nets import SegResNet

    return SegResNet(3, 16, 1, classes, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))


def _unest(classes: int) -> Any:
    from MedQuantINT8Lib.importers.networks.unest import UNesT

    return UNesT(1, classes, PATCH, widths=(32, 64, 128), heads=(2, 4, 8), layers=(2, 2, 4), features=(16, 16))


def _vista3d(classes: int) -> Any:
    from monai.networks.nets.segresnet_ds import SegResNetDS2
    from monai.networks.nets.vista3d import ClassMappingClassify

    from MedQuantINT8Lib.importers.networks.vista3d import AutomaticVista3D

    encoder = SegResNetDS2(3, 8, 1, 8, norm="instance", blocks_down=(1, 2, 2, 4, 4), dsdepth=1)
    return AutomaticVista3D(
        SimpleNamespace(image_encoder=encoder, class_head=ClassMappingClassify(8, 8)), range(1, classes)
    )


SCALED: dict[str, Callable[[int], Any]] = {
    "unet": _unet,
    "transunet": _transunet,
    "nnunet": _nnunet,
    "swinunetr": _swinunetr,
    "segresnet": _segresnet,
    "unest": _unest,
    "vista3d": _vista3d,
}
